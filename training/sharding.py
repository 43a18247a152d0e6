"""Networks whose weights, gradients and moments are divided among the processes that train together (FSDP2).

Each process holds its shard of every parameter. A block of the image encoder gathers its own for the moment in which it
computes; all other parameters are gathered once in a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UsageError
from ..sam.efficient_vit import EfficientBlock
from ..sam.vit import Block
from .ranks import gathered


def shard(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide a network's parameters among the processes of a mesh, in place; its buffers stay whole."""
    mesh = mesh["data_parallel"] if mesh.mesh_dim_names else mesh
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return fully_shard(network, mesh=mesh, reshard_after_forward=False)  # type: ignore[return-value]


def check_shardable(network: nn.Module, *, name: str, planned: bool = False, compiled: bool = False) -> None:
    """Raises UsageError for a network, called ``name``, that cannot be divided among devices.

    Its blocks share parameters, of which each would keep its own; or its steps are planned or compiled, both of which
    wrap the whole network.
    """
    if planned or compiled:
        raise UsageError(
            "--strategy fsdp: a network that is divided among devices is neither planned (--vram) nor compiled "
            "(training.compile); leave these out, or take --strategy ddp"
        )
    blocks = _blocks(network)
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in network.modules() if id(module) not in inside]
    owned = [(block, parameter) for block in blocks for parameter in block.parameters()]
    owned += [(network, parameter) for module in outside for parameter in module.parameters(recurse=False)]
    owners: dict[nn.Parameter, nn.Module] = {}
    if shared := [parameter for owner, parameter in owned if owners.setdefault(parameter, owner) is not owner]:
        raise UsageError(
            f"--strategy fsdp: the blocks of {name} share {len(shared)} parameters with others, so that they cannot be "
            "divided among devices block by block; take --strategy ddp"
        )


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, Block | EfficientBlock)]


def _units(network: nn.Module) -> list[FSDPModule]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on each process; where it is divided every process must ask for it at the same point."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.full_tensor()


def divided_like(own: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, where ``own`` is divided; each process has the whole one at hand."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


@contextmanager
def gathered_weights(network: nn.Module) -> Iterator[None]:
    """Every process holds all weights inside the block, and may compute as often as it likes, for nothing is exchanged.

    The weights must not change in it. Of a network that is not divided there is nothing to gather.
    """
    units = _units(network)
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not network, recurse=False)
            unit.reshard()


def with_everybodys_parameters(network: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """The loss, in which each parameter occurs that it depends on in any of the processes.

    Gradients of parameters that are divided are exchanged all at once, so each process needs one for the same of them;
    those that only another's batch needs, such as a prompt's embedding, get zeros here. Blocks are in every loss.
    To be called between forward and backward. Of a network that is not divided the loss stays as it is.
    """
    if not _units(network):
        return loss
    at_hand = [p for p in network.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    leaves = _leaves(loss)
    mine = [id(parameter) in leaves for parameter in at_hand]
    for parameter, here, *anywhere in zip(at_hand, mine, *gathered(mine), strict=True):
        if any(anywhere) and not here:
            loss = loss + 0 * parameter.flatten()[0]
    return loss


def _leaves(loss: torch.Tensor) -> set[int]:
    """The ids of the tensors that a loss's gradient flows into."""
    stack: list[Any] = [loss.grad_fn]
    seen, ids = set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            ids.add(id(variable))
        stack += [function for function, _ in node.next_functions]
    return ids
