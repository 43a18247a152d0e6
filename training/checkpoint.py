"""Weights and training state as safetensors: one file each, written atomically, no pickle.

Each file carries the sha256 of all it says: names, types, shapes and bytes of its tensors, and a state's counters. It
is checked when the file is read; files of earlier releases have none. NaN and infinity are neither written nor read.

Frozen parameters are not written, but those that a network names as `saved_frozen`: a run that adapts a published
checkpoint keeps what it trained, and the checkpoint's hash.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..errors import BadInputError, IntegrityError, SamkdError
from ..volumes.files import atomic_path, regular_file
from .ranks import is_main
from .sharding import divided_like, whole

_METADATA = "samkd"  # the one key: safetensors writes several in any order, and the file's bytes would differ each time
_WEIGHTS, _STATE = "weights-2", "state-2"
_WITHOUT_SUM = {_WEIGHTS: "samkd-weights-1", _STATE: "samkd-state-1"}  # earlier releases, under the key "format"
_WAYS_OUT = {
    _WEIGHTS: "remove its run folder and train again with the same command, or copy the file again",
    _STATE: "remove this file, and the same command begins the run anew; the best weights so far are in its folder",
}


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
    """Write all of a network but its frozen parameters, and ``facts`` that tell the file from others.

    Of processes that train together all call this, and the first writes: a network may be divided among them.
    Raises SamkdError, and leaves the file that is there, when a weight is not finite; OutputError.
    """
    _save(path, trainable_state(network), kind=_WEIGHTS, facts=facts)


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Fill all of a network but its frozen parameters.

    Raises IntegrityError for a broken file, BadInputError when keys or shapes differ.
    """
    _fill(network, _read(path, kind=_WEIGHTS)[0], path)


def load_shared(network: torch.nn.Module, path: Path) -> list[str]:
    """Fill what has the same name and shape in a network of other classes; the names of the rest, which stays.

    Raises IntegrityError for a broken file.
    """
    own = network.state_dict()
    tensors, _ = _read(path, kind=_WEIGHTS)
    shared = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
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
    """Everything a resumed run needs: weights, their average, optimiser moments, the counters in ``progress``.

    Of processes that train together all call this, and the first writes: all of them may be divided among the devices.
    Raises SamkdError, and leaves the file that is there, when one of them is not finite; OutputError.
    """
    tensors = {f"network.{name}": tensor for name, tensor in trainable_state(network).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    _save(path, tensors, kind=_STATE, facts={"progress": progress})


def load_state(
    path: Path,
    *,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor] | None = None,
) -> dict[str, float | int]:
    """Inverse of save_state; also fills ``average``. Returns ``progress``.

    Raises IntegrityError for a broken file, BadInputError for the state of another network.
    """
    tensors, facts = _read(path, kind=_STATE)
    progress = facts.get("progress")
    if not isinstance(progress, dict):
        raise _damaged(path, _STATE, "it has no counters")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    weights, averages = {}, {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        index, _, moment = name.partition(".")
        if kind == "network":
            weights[name] = tensor
        elif kind == "average":
            averages[name] = tensor
        elif kind == "optimizer" and index.isdecimal() and moment:
            moments.setdefault(int(index), {})[moment] = tensor
        else:
            raise _damaged(path, _STATE, f"it holds {key!r}, which is no part of a state")
    if _shapes(averages) != _shapes(average or {}):
        raise _damaged(path, _STATE, "its averaged weights are not this network's")
    _check_moments(moments, optimizer, path)
    _fill(network, weights, path)
    if average is not None:
        average |= {name: divided_like(average[name], tensor) for name, tensor in averages.items()}
    parameters = _parameters(optimizer)
    for index, values in moments.items():
        values |= {name: divided_like(parameters[index], value) for name, value in values.items() if value.ndim}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_moments(
    moments: Mapping[int, Mapping[str, torch.Tensor]], optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """Raises IntegrityError unless these are the optimiser's own moments: one number, or the parameter's shape."""
    names = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    parameters = _parameters(optimizer)
    for index, values in moments.items():
        if index >= len(parameters):
            raise _damaged(path, _STATE, f"it has moments of parameter {index} where {len(parameters)} learn")
        if values.keys() != names:
            raise _damaged(path, _STATE, f"parameter {index} has the moments {sorted(values)}, not {sorted(names)}")
        for name, value in values.items():
            if value.ndim and value.shape != parameters[index].shape:
                raise _damaged(path, _STATE, f"{name} of parameter {index} has the shape {list(value.shape)}")


def _read(path: Path, *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file, and what else it says. Raises IntegrityError, BadInputError where there is none."""
    regular_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        tensors = load_file(path)
        facts = _facts(metadata, tensors, kind=kind)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, kind, error) from None
    if unfit := _not_finite(tensors):
        raise _damaged(path, kind, f"NaN or infinity in {unfit}")
    return tensors, facts


def _facts(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor], *, kind: str) -> dict[str, Any]:
    """What a file's metadata say besides its format and sum, which is checked. Raises ValueError and other errors."""
    if metadata.get("format") == _WITHOUT_SUM[kind] or not metadata:
        return {name: json.loads(text) for name, text in metadata.items() if name != "format"}
    facts = json.loads(metadata[_METADATA])
    checksum = facts.pop("sha256")
    if facts["format"] != kind or checksum != _digest(tensors, facts):
        raise ValueError("it does not match its checksum")
    return facts


def _digest(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> str:
    """sha256 of tensors with their names, types and shapes, and of JSON values."""
    described = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([described, facts], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """The first three names of tensors with NaN or infinity in them; "" where there is none."""
    return ", ".join([name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()][:3])


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _damaged(path: Path, kind: str, what: object) -> IntegrityError:
    name = "training state" if kind == _STATE else "safetensors file"
    return IntegrityError(f"{path}: not a readable {name} ({what}); {_WAYS_OUT[kind]}")


def _frozen(network: torch.nn.Module) -> set[str]:
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return frozen - network.saved_frozen if isinstance(network, SavesFrozen) else frozen


def _fill(network: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = network.state_dict()
    tensors = {name: divided_like(own[name], tensor) if name in own else tensor for name, tensor in tensors.items()}
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


def _save(path: Path, tensors: Mapping[str, torch.Tensor], *, kind: str, facts: Mapping[str, Any]) -> None:
    # Tensors that share storage (MA-SAM's FacT factors) are written once per name: safetensors wants them apart.
    apart = {}
    for name, tensor in tensors.items():
        values = whole(tensor)  # by every process
        if is_main():
            apart[name] = values.detach().cpu().contiguous().clone()
    if not is_main():
        return
    if unfit := _not_finite(apart):
        raise SamkdError(
            f"{path}: not written, training went astray: NaN or infinity in {unfit}. What was written before stays; "
            f"lower training.learning_rate and train in a new --run folder"
        )
    facts = {"format": kind, **facts}
    metadata = {_METADATA: json.dumps({**facts, "sha256": _digest(apart, facts)}, sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            save_file(apart, temporary, metadata=metadata)
        except SafetensorError as error:  # also for a full disk
            raise OSError(str(error)) from error
