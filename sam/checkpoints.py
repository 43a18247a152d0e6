"""Reading published SAM weights into our models, with a report that accounts for every key."""

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
from .image_encoder import ImageEncoder
from .presets import BACKBONES

WRAPPERS = ((r"^module\.", ""), (r"^sam\.", ""))  # DistributedDataParallel's prefix and that of models around SAM

# What a decoder for K classes replaces: tokens and heads are per mask, stages beyond SAM's two are new.
REPLACED = re.compile(
    r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\."
    r"|mask_decoder\.output_upscaling\.([4-9]|\d\d)\."
)


@dataclass(frozen=True)
class LoadReport:
    """Where every key went. `loaded` holds the interpolated ones too; `dropped` are the file's keys that the model
    replaces by design (`reinitialised`, on the model's side); `added` are parts that SAM does not have."""

    variant: str
    loaded: tuple[str, ...]
    interpolated: tuple[str, ...]
    reinitialised: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, on the CPU, without running any pickled code.

    BadInputError: no such file, or not a flat mapping of names to tensors. IntegrityError: truncated or damaged,
    or only readable by running code from inside it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(f"{path}: no such weights file; give the path of a SAM checkpoint (.pth, .safetensors)")
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
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInputError(f"{path}: expected a flat mapping of names to tensors, as SAM's published files hold")
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


def recognise(state: Mapping[str, Tensor]) -> str:
    """The name of the backbone these weights belong to, by keys and shapes; a description if it is none of ours."""
    blocks = {match[1] for key in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", key))}
    patch = state.get("image_encoder.patch_embed.proj.weight")
    if patch is None or not blocks:
        return "not a SAM image encoder"
    dim, depth, size = patch.shape[0], len(blocks), patch.shape[-1]
    for backbone in BACKBONES.values():
        if (backbone.dim, backbone.depth, backbone.patch_size) == (dim, depth, size):
            return backbone.name
    return f"a ViT of width {dim}, depth {depth}, patch size {size}"


def match_published(
    model: nn.Module, state: Mapping[str, Tensor], *, added: Collection[str] = ()
) -> tuple[dict[str, Tensor], LoadReport]:
    """What to write into `model` (with SAM's parts `image_encoder`, `prompt_encoder`, `mask_decoder`) from SAM's state.

    `added` names the model's keys that SAM does not have (adapters). Position tables are interpolated to the
    model's token grid as MA-SAM does. Every other difference is named in one BadInputError.
    """
    state = canonical_state(state)
    own = {key: value for key, value in model.state_dict().items() if key not in added}
    variant = recognise(state)
    tables = _position_tables(model)
    values: dict[str, Tensor] = {}
    interpolated, missing, wrong = [], [], []
    for key, target in own.items():
        if REPLACED.match(key):
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
    dropped = [key for key in state if REPLACED.match(key)]
    unexpected = [key for key in state if key not in own and key not in dropped]
    faults = [
        f"{kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if keys
    ]
    if faults:
        raise BadInputError(
            f"these weights ({variant}) do not fit the model; {'; '.join(faults)}. Choose the backbone that the "
            "weights belong to, or download the file again"
        )
    report = LoadReport(
        variant=variant,
        loaded=tuple(values),
        interpolated=tuple(interpolated),
        reinitialised=tuple(key for key in own if REPLACED.match(key)),
        added=tuple(added),
        dropped=tuple(dropped),
    )
    return values, report


def load_published(model: nn.Module, path: str | Path, *, added: Collection[str] = ()) -> LoadReport:
    """Fill `model` from a published SAM checkpoint (sam_vit_b.pth ...) and say where every key went.

    Nothing is written into the model unless everything fits; errors as in `read_state` and `match_published`.
    """
    state = read_state(path)
    try:
        values, report = match_published(model, state, added=added)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    model.load_state_dict(values, strict=False)  # `report` is the strict account
    return report


def _position_tables(model: nn.Module) -> set[str]:
    """The keys whose size follows the token grid: absolute positions, and relative ones of the global blocks."""
    encoder = model.get_submodule("image_encoder")
    assert isinstance(encoder, ImageEncoder)
    indexes = encoder.backbone.global_attn_indexes
    tables = {f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in indexes for axis in "hw"}
    return {"image_encoder.pos_embed", *tables}


def _to_grid(table: Tensor, shape: torch.Size) -> Tensor:
    """A position table ([1, h, w, C] or [2 h - 1, head_dim]) at another grid, bilinear as MA-SAM's `load_from`."""
    if table.ndim == 2:
        return interpolate(table[None, None], tuple(shape), mode="bilinear", align_corners=False)[0, 0]
    channels_first = table.permute(0, 3, 1, 2)
    resized = interpolate(channels_first, tuple(shape[1:3]), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
