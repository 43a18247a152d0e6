"""Weights and training state as safetensors: one file each, written atomically, no pickle.

Frozen parameters are not written, but those that a network names as `saved_frozen`: a run that adapts a published
checkpoint keeps what it trained, and the checkpoint's hash.
"""

import json
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..errors import BadInputError, IntegrityError
from ..volumes.files import atomic_path


@runtime_checkable
class SavesFrozen(Protocol):
    """A network that names parameters which no longer learn, and which a checkpoint holds all the same.

    No published file has them: they were learned by the run that this one started from.
    """

    saved_frozen: frozenset[str]


def trainable_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state without frozen parameters: those stay in the published file they came from."""
    frozen = _frozen(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def save_weights(network: torch.nn.Module, path: Path, **facts: str) -> None:
    """Write all of a network but its frozen parameters, and ``facts`` that tell the file from others."""
    _save(path, trainable_state(network), {"format": "samkd-weights-1", **facts})


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Fill all of a network but its frozen parameters.

    Raises IntegrityError for a broken file, BadInputError when keys or shapes differ.
    """
    _fill(network, _read(path), path)


def load_shared(network: torch.nn.Module, path: Path) -> list[str]:
    """Fill what has the same name and shape in a network of other classes; the names of the rest, which stays.

    Raises IntegrityError for a broken file.
    """
    own = network.state_dict()
    shared = {name: tensor for name, tensor in _read(path).items() if name in own and own[name].shape == tensor.shape}
    network.load_state_dict(shared, strict=False)
    return sorted(own.keys() - shared.keys() - _frozen(network))


def save_state(
    path: Path,
    *,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, float | int],
    average: dict[str, torch.Tensor] | None = None,
) -> None:
    """Everything a resumed run needs: weights, their average, optimiser moments, the counters in ``progress``."""
    tensors = {f"network.{name}": tensor for name, tensor in trainable_state(network).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    _save(path, tensors, {"format": "samkd-state-1", "progress": json.dumps(progress)})


def load_state(
    path: Path,
    *,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor] | None = None,
) -> dict[str, float | int]:
    """Inverse of save_state; also fills ``average``. Returns ``progress``. Raises IntegrityError for a broken file."""
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{path}: not a readable training state ({error}); start a new run") from None
    moments: dict[int, dict[str, torch.Tensor]] = {}
    weights = {}
    for key, tensor in tensors.items():
        kind, rest = key.split(".", 1)
        if kind == "network":
            weights[rest] = tensor
        elif kind == "average":
            assert average is not None
            average[rest] = tensor
        else:
            index, name = rest.split(".")
            moments.setdefault(int(index), {})[name] = tensor
    _fill(network, weights, path)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{path}: not a readable safetensors file ({error}); run the stage again") from None


def _frozen(network: torch.nn.Module) -> set[str]:
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return frozen - network.saved_frozen if isinstance(network, SavesFrozen) else frozen


def _fill(network: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise BadInputError(f"{path}: these weights are not this network's: {error}") from None
    if unexpected or set(missing) != _frozen(network):
        missing = sorted(set(missing) - _frozen(network))
        twice = sorted(_frozen(network) & tensors.keys())
        raise BadInputError(
            f"{path}: these weights are not this network's: missing {missing}, unexpected {unexpected}, "
            f"in the file though frozen {twice}"
        )


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # Tensors that share storage (MA-SAM's FacT factors) are written once per name: safetensors wants them apart.
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(apart, temporary, metadata=metadata)
