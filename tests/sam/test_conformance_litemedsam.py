"""The published LiteMedSAM against numbers taken from its authors' code; the vectors hold a picture and no weights.

The authors' attention copies its table of biases when it is put into evaluation mode. litemedsam.a was taken from a
model that was put into it before its weights were loaded, so its numbers are those of a table of zeros. Loaded first,
then put into evaluation mode, as the package's own `model()` does it, the authors' code gives what ours gives with the
published biases (largest relative difference 3e-6). A file may hold either; the tests find out which, and then every
number must agree.
"""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.conformance import TOLERANCE, assert_conforms, errors, of_kind
from helpers.published_weights import litemedsam_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from samkd.sam.build import build_image_encoder
from samkd.sam.checkpoints import NOTHING, load_published
from samkd.sam.mask_decoder import build_mask_decoder, decode
from samkd.sam.presets import get_encoder_size
from samkd.sam.prompt_encoder import build_prompt_encoder

pytestmark = pytest.mark.slow

SIDE = 256
EMBEDDING = "image_embedding[::8,::4,::4]"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def published() -> nn.ModuleDict:
    size = get_encoder_size("litemedsam")
    model = nn.ModuleDict(
        {
            "image_encoder": build_image_encoder(size, image_size=(SIDE, SIDE)),
            "prompt_encoder": build_prompt_encoder(size, image_size=(SIDE, SIDE)),
            "mask_decoder": build_mask_decoder(size, masks=4, stages=2),
        }
    ).eval()
    report = load_published(model, litemedsam_weights(), replaced=NOTHING)
    assert report.variant == "litemedsam" and set(report.loaded) == set(model.state_dict())
    assert report.interpolated == report.reinitialised == report.added == report.dropped == ()
    return model


def without_biases(parts: nn.ModuleDict) -> nn.ModuleDict:
    for name, parameter in parts.named_parameters():
        if name.endswith(".attention_biases"):
            parameter.zero_()
    return parts


@pytest.fixture(params=of_kind("litemedsam"))
def case(request: pytest.FixtureRequest) -> tuple[nn.ModuleDict, Path]:
    """A file of vectors, and the model in the state that its numbers were taken in."""
    parts = published()
    with torch.no_grad():
        ours, theirs = compared(parts, request.param)
        conforms = errors(ours, theirs)[EMBEDDING] <= TOLERANCE
        return parts if conforms else without_biases(parts), request.param


def taps_of(parts: nn.ModuleDict, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every value that the files name, whole: the first of the decoder's four masks, or the other three (multi)."""
    encoder, prompts, decoder = (cast(Any, parts[name]) for name in ("image_encoder", "prompt_encoder", "mask_decoder"))
    taps = {"image_embedding": (embedding := encoder(inputs["image"][None, None].expand(1, 3, -1, -1)))[0]}
    box, point = inputs["box_xyxy"].view(1, 2, 2), inputs["point_xy"].view(1, 1, 2)
    sparse = {
        "box": prompts.clicks(box, torch.tensor([[2, 3]])),
        "point": prompts.clicks(torch.cat([point, torch.zeros(1, 1, 2)], 1), torch.tensor([[1, -1]])),
    }
    for name, tokens in sparse.items():
        masks, iou = decode(decoder, prompts, embedding, tokens)
        taps |= {f"prompt/{name}_sparse": tokens[0], f"masks_{name}": masks[0, 0], f"iou_{name}": iou[0, :1]}
        taps |= {f"masks_{name}_multi": masks[0, 1:], f"iou_{name}_multi": iou[0, 1:]}
    return taps


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs by name; "masks_box[::4,::4]" keeps every fourth row and column."""
    content = load_file(path)
    groups = ({}, {})
    for key, value in content.items():
        group, name = key.split("/", 1)
        groups[group == "output"][name] = value
    return groups


def compared(parts: nn.ModuleDict, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours and theirs, by the names of the file."""
    inputs, outputs = read(path)
    taps = taps_of(parts, inputs)
    ours = {}
    for key in outputs:
        name, steps = re.fullmatch(r"([\w/]+)(?:\[(.*)\])?", key).groups()  # pyright: ignore[reportOptionalMemberAccess]
        kept = [slice(None, None, int(step.strip(":") or 1)) for step in (steps or "").split(",") if step]
        ours[key] = taps[name][tuple(kept)]
    return ours, outputs


def test_litemedsam(case: tuple[nn.ModuleDict, Path]):
    assert_conforms(*compared(*case))


def test_another_activation_in_the_stem_is_caught(case: tuple[nn.ModuleDict, Path]):
    parts, _ = case
    stem = parts.get_submodule("image_encoder.patch_embed.seq.1")
    assert isinstance(stem, nn.GELU)
    stem.approximate = "tanh"
    assert errors(*compared(*case))[EMBEDDING] > 2 * TOLERANCE


def test_corners_the_other_way_round_are_caught(case: tuple[nn.ModuleDict, Path]):
    first, second = (case[0].get_parameter(f"prompt_encoder.point_embeddings.{kind}.weight") for kind in (2, 3))
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)
    result = errors(*compared(*case))
    assert result["prompt/box_sparse"] > 2 * TOLERANCE and result["prompt/point_sparse"] <= TOLERANCE
    assert max(error for name, error in result.items() if name.startswith("masks_box")) > 2 * TOLERANCE


def test_the_published_biases_count(case: tuple[nn.ModuleDict, Path]):
    """So that nobody takes a model without them for the published one."""
    parts, path = case
    with_biases, without = (taps_of(each, read(path)[0]) for each in (published(), without_biases(parts)))
    difference = (with_biases["image_embedding"] - without["image_embedding"]).abs().max()
    assert difference > 0.1 * with_biases["image_embedding"].abs().max()
