"""Reading published weights into our models, with a report that accounts for every key."""

import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import BadInputError, IntegrityError
from .base import Encoder
from .families import family, recognise
from .presets import ENCODERS

WRAPPERS = ((r"^module\.", ""), (r"^sam\.", ""))  # DistributedDataParallel's prefix and that of models around SAM

# What a decoder for K classes replaces: tokens and heads are per mask, stages beyond the published two are new.
REPLACED = re.compile(
    r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\."
    r"|mask_decoder\.output_upscaling\.([4-9]|\d\d)\."
    r"|mask_decoder\.final_output_upscaling_layers\.([2-9]\.|1\.1\.)"
)
NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class LoadReport:
    """Where every key went. `loaded` holds the interpolated ones too; `dropped` are the file's keys that the model
    replaces by design (`reinitialised`, on the model's side) or that no embedding depends on (MobileSAM's classifier);
    `added` are the model's parts that the file does not have."""

    variant: str
    loaded: tuple[str, ...]
    interpolated: tuple[str, ...]
    reinitialised: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file, on the CPU, without running any pickled code.

    EfficientSAM's and MedSAM's training files hold them under the key "model"; what lies beside it is no weights.

    BadInputError: no such file, or not a flat mapping of names to tensors. IntegrityError: truncated or damaged,
    or only readable by running code from inside it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(f"{path}: no such weights file; give the path of a .pth, .pt or .safetensors file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise IntegrityError(
            f"{path}: not readable as plain tensors ({_first_line(error)}); it is damaged or would run code on "
            "loading, so it is refused: download it again or convert it to .safetensors where you trust it"
        ) from error
    except Exception as error:  # damaged bytes can fail anywhere inside the readers
        raise IntegrityError(
            f"{path}: truncated or damaged weights file ({_first_line(error)}); download it again"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInputError(f"{path}: expected a flat mapping of names to tensors, as SAM's published files hold")
    if broken := [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise IntegrityError(
            f"{path}: {len(broken)} of its tensors hold values that are no finite number, for example {broken[0]}; the "
            "file is damaged or its training failed: download it again"
        )
    return dict(state)


def canonical_state(state: Mapping[str, Tensor], *, renames: Iterable[tuple[str, str]] = ()) -> dict[str, Tensor]:
    """The same tensors under our keys: wrapper prefixes go, then each (regular expression, replacement) applies.

    Keys that fall together must hold the same values (BadInputError otherwise).
    """
    rules = [(re.compile(pattern), replacement) for pattern, replacement in (*WRAPPERS, *renames)]
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        if name in result and not torch.equal(result[name], value):
            raise BadInputError(f"{key}: stands twice in the file (as {name}), with different values")
        result[name] = value
    return result


def match_published(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    added: Collection[str] = (),
    replaced: re.Pattern[str] = REPLACED,
) -> tuple[dict[str, Tensor], LoadReport]:
    """What to write into `model` (its `image_encoder` is an `Encoder`) from a published state or one of our own.

    `added` names the model's keys that published files do not have (adapters); our own have them. `replaced` matches
    the keys of parts that the model exchanges for its own: `NOTHING` for a model that is the published one throughout.
    Position tables are interpolated to the model's token grid as MA-SAM does. Every other difference is named in one
    BadInputError.
    """
    state = canonical_state(state)
    encoder = model.get_submodule("image_encoder")
    assert isinstance(encoder, Encoder)
    full = model.state_dict()
    _check_backbone(state, full)
    ours = bool(added) and state.keys() >= set(added)
    own = {key: value for key, value in full.items() if ours or key not in added}
    if ours and _shapes(own, replaced) == _shapes(state, replaced):
        replaced = NOTHING
    tables = {f"image_encoder.{name}" for name in encoder.position_tables()}
    unused = tuple(f"image_encoder.{name}" for name in encoder.unused)
    values: dict[str, Tensor] = {}
    interpolated, reinitialised, missing, wrong = [], [], [], []
    for key, target in own.items():
        if replaced.match(key):
            reinitialised.append(key)
            continue
        if key not in state:
            missing.append(key)
            continue
        value = state[key]
        if value.shape == target.shape:
            values[key] = value
        elif key in tables and value.ndim == target.ndim and value.shape[-1] == target.shape[-1]:
            values[key] = _to_grid(value, target.shape)
            interpolated.append(key)
        else:
            wrong.append(f"{key} is {list(value.shape)}, expected {list(target.shape)}")
    dropped = [key for key in state if key.startswith(unused) or replaced.match(key)]
    unexpected = [key for key in state if key not in own and key not in dropped]
    if ours and missing and family(state) is None:
        raise BadInputError(
            f"these are the tuned parts of one of our runs, without the published weights that it adapts "
            f"({len(missing)} tensors, such as {missing[0]}): give the published file"
        )
    faults = [
        f"{kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if keys
    ]
    if faults:
        raise BadInputError(
            f"these weights ({recognise(state)}) do not fit the model; {'; '.join(faults)}. Choose the backbone that "
            "the weights belong to, or download the file again"
        )
    report = LoadReport(
        variant=recognise(state),
        loaded=tuple(values),
        interpolated=tuple(interpolated),
        reinitialised=tuple(reinitialised),
        added=() if ours else tuple(added),
        dropped=tuple(dropped),
    )
    return values, report


def load_published(
    model: nn.Module, path: str | Path, *, added: Collection[str] = (), replaced: re.Pattern[str] = REPLACED
) -> LoadReport:
    """Fill `model` from a file of SAM or a relative (families.MARKS), or of our own; say where every key went.

    Nothing is written into the model unless everything fits; errors as in `read_state` and `match_published`.
    """
    state = read_state(path)
    try:
        values, report = match_published(model, state, added=added, replaced=replaced)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    model.load_state_dict(values, strict=False)  # `report` is the strict account
    return report


def _check_backbone(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """BadInputError when file and model have nothing in common, or are known and not the same."""
    theirs, ours = family(state), family(own)
    if not state.keys() & own.keys():
        raise BadInputError(
            f"none of these {len(state)} tensors (such as {next(iter(state), 'none at all')}) is one of the model's: "
            f"give weights of {recognise(own)}"
        )
    if theirs is None or ours is None or recognise(state) == recognise(own):
        return
    if theirs != ours or {recognise(state), recognise(own)} <= ENCODERS.keys():
        raise BadInputError(
            f"these are weights of {theirs} ({recognise(state)}), the model is built on {ours} ({recognise(own)}): "
            "choose the backbone that the weights belong to, or give other weights"
        )


def _shapes(state: Mapping[str, Tensor], keys: re.Pattern[str]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items() if keys.match(key)}


def _to_grid(table: Tensor, shape: torch.Size) -> Tensor:
    """A position table ([1, h, w, C] or [2 h - 1, head_dim]) at another grid, bilinear as MA-SAM's `load_from`."""
    if table.ndim == 2:
        return interpolate(table[None, None], tuple(shape), mode="bilinear", align_corners=False)[0, 0]
    channels_first = table.permute(0, 3, 1, 2)
    resized = interpolate(channels_first, tuple(shape[1:3]), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
