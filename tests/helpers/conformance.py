"""Numbers taken from the authors' code, and how a test reads and compares them.

The folder is ../shared/conformance beside the repository, or the one named by SAMKD_CONFORMANCE. Sizes come from each
file's JSON; the authors' keys are mapped by the function that reads published checkpoints.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from samkd.sam.presets import Backbone, DecoderSize, EfficientViTSize, TinyViTSize

from .paths import CONFORMANCE

TOLERANCE = 2e-5
FOLDER = CONFORMANCE
FILES = sorted(FOLDER.glob("*.safetensors"))
assert FILES or "SAMKD_CONFORMANCE" not in os.environ, f"SAMKD_CONFORMANCE names {FOLDER}, which holds no vectors"


def of_kind(kind: str) -> list[Any]:
    files = [path for path in FILES if path.name.split(".")[0] == kind]
    skip = pytest.mark.skip(reason=f"no {kind}.*.safetensors in {FOLDER}; set SAMKD_CONFORMANCE")
    return [pytest.param(path, id=path.stem) for path in files] or [pytest.param(None, marks=skip)]


@dataclass
class Vectors:
    sizes: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read(path: Path) -> Vectors:
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "input": {}, "output": {}}
    for key, value in load_file(path).items():
        group, name = key.split("/", 1)
        groups[group][name] = value
    sizes = json.loads(path.with_suffix(".json").read_text())["constructor"]
    return Vectors(sizes, groups["weights"], groups["input"], groups["output"])


def backbone_of(sizes: dict[str, Any]) -> Backbone:
    return Backbone(
        "conformance",
        dim=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        global_attn_indexes=tuple(sizes["global_attn_indexes"]),
        window=sizes["window_size"],
        patch_size=sizes.get("patch_size", 16),
        out_chans=sizes["out_chans"],
        mlp_ratio=sizes.get("mlp_ratio", 4.0),
        decoder=DecoderSize(
            depth=sizes.get("decoder_depth", 2),
            heads=sizes["decoder_heads"],
            mlp_dim=sizes["decoder_mlp_dim"],
            iou_hidden=sizes["iou_head_hidden_dim"],
            mask_in_chans=sizes.get("mask_in_chans", 16),
        ),
    )


def tiny_vit_of(sizes: dict[str, Any]) -> TinyViTSize:
    return TinyViTSize(
        "conformance",
        dims=tuple(sizes["embed_dims"]),
        depths=tuple(sizes["depths"]),
        heads=tuple(sizes["num_heads"]),
        windows=tuple(sizes["window_sizes"]),
        mlp_ratio=sizes["mlp_ratio"],
        expand_ratio=sizes["mbconv_expand_ratio"],
        local_conv=sizes["local_conv_size"],
        out_chans=sizes["neck_chans"],
    )


def efficient_vit_of(sizes: dict[str, Any]) -> EfficientViTSize:
    return EfficientViTSize(
        "conformance",
        dim=sizes["patch_embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        patch_size=sizes["patch_size"],
        mlp_ratio=sizes["mlp_ratio"],
        out_chans=sizes["neck_dims"][0],
        decoder=DecoderSize(
            depth=sizes.get("decoder_depth", 2),
            heads=sizes["decoder_heads"],
            mlp_dim=sizes["decoder_mlp_dim"],
            iou_hidden=sizes["iou_head_hidden_dim"],
        ),
        upscaling=tuple(sizes["upscaling_layer_dims"]),
        max_points=sizes["decoder_max_num_input_points"],
    )


def errors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each tap, relative to the largest value of the authors' tap."""
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
    return {
        name: ((value - theirs[name]).abs().max() / theirs[name].abs().max()).item() for name, value in ours.items()
    }


def assert_conforms(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert {name: error for name, error in errors(ours, theirs).items() if not error <= TOLERANCE} == {}
