"""The published checkpoints of SAM, MedSAM, MobileSAM and EfficientSAM: every key finds its place or is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.conformance import FOLDER, efficient_vit_of, of_kind, read, tiny_vit_of
from helpers.published_checkpoints import (
    classifier_manifest,
    efficient_sam_manifest,
    manifest,
    state_of,
    tiny_vit_manifest,
)
from torch import nn

from samkd.errors import BadInputError, IntegrityError, UsageError
from samkd.sam.build import build_image_encoder
from samkd.sam.checkpoints import NOTHING, load_published, match_published, read_state
from samkd.sam.families import family, recognise
from samkd.sam.mask_decoder import build_mask_decoder
from samkd.sam.presets import (
    ENCODERS,
    Backbone,
    EfficientViTSize,
    FineSize,
    TinyViTSize,
    get_backbone,
    get_encoder_size,
)
from samkd.sam.prompt_encoder import build_prompt_encoder

PUBLISHED = ["vit_b", "vit_l", "vit_h", "mobile_vit_t", "litemedsam", "efficient_vit_ti", "efficient_vit_s"]
COUNTS = {
    "vit_b": "SAM vit_b",
    "vit_l": "SAM vit_l",
    "vit_h": "SAM vit_h",
    "mobile_vit_t": "MobileSAM vit_t",
    "efficient_vit_ti": "EfficientSAM vitt",
    "efficient_vit_s": "EfficientSAM vits",
}

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")


@pytest.mark.parametrize("path", of_kind("mobilesam"))
def test_tiny_vit_manifest_is_the_authors(path: Path):
    vectors = read(path)
    result = {key: tuple(value.shape) for key, value in vectors.weights.items()}
    size = tiny_vit_of(vectors.sizes)
    classifier = {key: result[key] for key in result if key.startswith(("norm_head.", "head."))}
    assert classifier.keys() <= classifier_manifest(size).keys()
    assert tiny_vit_manifest(size) | classifier == result


@pytest.mark.parametrize("path", of_kind("efficientsam"))
def test_efficient_sam_manifest_is_the_authors(path: Path):
    vectors = read(path)
    result = {key: tuple(value.shape) for key, value in vectors.weights.items()}
    assert efficient_sam_manifest(efficient_vit_of(vectors.sizes)) == result


# --- complete loading -----------------------------------------------------------------------------------------------


def whole_model(name: str, side: int = 1024) -> nn.ModuleDict:
    """The whole published model at full size, without its memory."""
    size = get_encoder_size(name)
    with torch.device("meta"):
        encoder = build_image_encoder(size, image_size=(side, side))
        prompts = build_prompt_encoder(size, image_size=encoder.image_size)
        decoder = build_mask_decoder(size, masks=4, stages=2)
        return nn.ModuleDict({"image_encoder": encoder, "prompt_encoder": prompts, "mask_decoder": decoder})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name: str):
    path = FOLDER / "parameter_counts.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    counts = json.loads(path.read_text())[COUNTS[name]]
    model = whole_model(name)
    result = {part: count(module) for part, module in model.items()}
    unused = counts.get("head", 0) + counts.get("norm_head", 0)
    result["image_encoder"] += unused
    assert result == {part: counts[part] for part in result}
    assert count(model) + unused == counts["total"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_loads_without_a_rest(tmp_path: Path, name: str):
    shapes = manifest(name)
    state = state_of(shapes)
    torch.save({"model": state} if name.startswith("efficient") else state, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size < 2e6
    model = whole_model(name)
    report = load_published(model, tmp_path / "weights.pt", replaced=NOTHING)
    assert report.variant == name
    assert set(report.loaded) == set(model.state_dict())
    assert report.interpolated == report.reinitialised == report.added == ()
    heads = r"image_encoder\.(norm_)?head\.(weight|bias)"
    assert set(report.loaded) | set(report.dropped) == set(shapes)
    assert len(report.dropped) == (4 if name == "mobile_vit_t" else 0)
    assert all(re.fullmatch(heads, key) for key in report.dropped)


@pytest.mark.parametrize(
    ("name", "tables"), [("vit_b", 1 + 2 * 4), ("vit_h", 1 + 2 * 4), ("mobile_vit_t", 0), ("efficient_vit_s", 0)]
)
def test_another_image_size(name: str, tables: int):
    model = whole_model(name, side=512)
    _, report = match_published(model, state_of(manifest(name)), replaced=NOTHING)
    assert set(report.loaded) == set(model.state_dict())
    assert len(report.interpolated) == tables


@pytest.mark.parametrize("wrap", ["plain", "training", "parallel"])
def test_medsam_files_are_sams_vit_b(tmp_path: Path, wrap: str):
    """The released file is flat; those of its training lie beside an optimiser, with or without "module."."""
    state = state_of(manifest("vit_b"))
    if wrap == "parallel":
        state = {f"module.{key}": value for key, value in state.items()}
    file = state if wrap == "plain" else {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}
    torch.save(file, tmp_path / "medsam_vit_b.pth")
    model = whole_model("vit_b")
    report = load_published(model, tmp_path / "medsam_vit_b.pth", replaced=NOTHING)
    assert report.variant == "vit_b" and set(report.loaded) == set(model.state_dict())


# --- refusals -------------------------------------------------------------------------------------------------------

A_BIAS = {
    "vit_b": "image_encoder.blocks.3.mlp.lin1.bias",
    "mobile_vit_t": "image_encoder.layers.2.blocks.3.mlp.fc1.bias",
    "efficient_vit_ti": "image_encoder.blocks.3.mlp.fc1.bias",
}


@pytest.mark.parametrize("name", A_BIAS)
def test_renamed_reshaped_and_missing_keys_are_named(tmp_path: Path, name: str):
    state = state_of(manifest(name))
    state[f"{A_BIAS[name]}_"] = state.pop(A_BIAS[name])
    state["image_encoder.neck.0.weight"] = state["image_encoder.neck.0.weight"][:, :-1]
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(BadInputError) as caught:
        load_published(whole_model(name), tmp_path / "weights.pt")
    result = re.search(
        r"\((.*)\) do not fit.* missing: (.*); unexpected: (.*); wrong shape: (.*?)\. ", str(caught.value)
    )
    assert result is not None, caught.value
    assert result[1] == name
    assert set(result[2].split(", ")) == {A_BIAS[name], "mask_decoder.iou_token.weight"}
    assert result[3] == f"{A_BIAS[name]}_"
    assert re.fullmatch(r"image_encoder\.neck\.0\.weight is \[.*\], expected \[.*\]", result[4])


@pytest.mark.parametrize(
    ("weights", "model", "message"),
    [
        ("mobile_vit_t", "vit_b", r"weights of MobileSAM \(mobile_vit_t\), the model is built on SAM \(vit_b\)"),
        (
            "litemedsam",
            "mobile_vit_t",
            r"of LiteMedSAM \(litemedsam\), .* on MobileSAM \(mobile_vit_t\)",
        ),
        (
            "mobile_vit_t",
            "litemedsam",
            r"of MobileSAM \(mobile_vit_t\), .* on LiteMedSAM \(litemedsam\)",
        ),
        ("vit_h", "mobile_vit_t", r"weights of SAM \(vit_h\), the model is built on MobileSAM \(mobile_vit_t\)"),
        ("vit_b", "efficient_vit_s", r"of SAM \(vit_b\), the model is built on EfficientSAM \(efficient_vit_s\)"),
        ("efficient_vit_ti", "efficient_vit_s", r"\(efficient_vit_ti\), .* on EfficientSAM \(efficient_vit_s\)"),
        ("vit_l", "vit_b", r"weights of SAM \(vit_l\), the model is built on SAM \(vit_b\)"),
    ],
)
def test_another_family_or_size_is_refused(tmp_path: Path, weights: str, model: str, message: str):
    torch.save(state_of(manifest(weights)), tmp_path / "weights.pt")
    with pytest.raises(BadInputError, match=rf"weights\.pt: these are .*{message}"):
        load_published(whole_model(model), tmp_path / "weights.pt")


def test_weights_of_something_else(tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(BadInputError, match=r"resnet\.pth: none of these 2 tensors \(such as conv1\.weight\) .* vit_b"):
        load_published(whole_model("vit_b"), tmp_path / "resnet.pth")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["mobile_vit_t", "efficient_vit_ti"])
def test_truncated_files_and_files_with_code(tmp_path: Path, name: str):
    path = tmp_path / "weights.pt"
    state = state_of(manifest(name))
    torch.save({"model": state}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(IntegrityError, match=r"weights\.pt: truncated or damaged"):
        read_state(path)
    torch.save({"model": state, "extra": Evil(tmp_path / "ran")}, path)
    with pytest.raises(IntegrityError, match=r"weights\.pt: .*refused"):
        read_state(path)
    assert not (tmp_path / "ran").exists()


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_recognised_and_keeps_the_contract(name: str):
    size = get_encoder_size(name)
    side = 6 * size.patch_size * (4 if isinstance(size, FineSize) else 1)
    with torch.device("meta"):
        encoder = build_image_encoder(name, image_size=(side, 2 * side)).eval()
        embedding = encoder(torch.empty(2, 3, side, 2 * side))
    grid = (side // size.patch_size, 2 * side // size.patch_size)
    assert (encoder.image_size, encoder.grid, encoder.out_chans) == ((side, 2 * side), grid, size.out_chans)
    assert embedding.shape == (2, size.out_chans, *grid)
    state = {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}
    assert recognise(state) == name
    families = {Backbone: "SAM", TinyViTSize: "MobileSAM", EfficientViTSize: "EfficientSAM", FineSize: "small student"}
    whose = families[type(size)]
    assert family(state) == ("LiteMedSAM" if name == "litemedsam" else whose)
    coarse = size.coarse if isinstance(size, FineSize) else size  # tokens of 16 pixels divide what tokens of 4 do not
    message = f"{coarse.name}: height and width must be multiples of {coarse.patch_size}"
    with pytest.raises(UsageError, match=message):
        build_image_encoder(name, image_size=(side, side + 1))


def test_wrong_names():
    with pytest.raises(UsageError, match=r"unknown backbone 'vit_x'.*vit_h.*mobile_vit_t.*efficient_vit_s"):
        build_image_encoder("vit_x", image_size=(64, 64))
    for name in ("mobile_vit_t", ENCODERS["efficient_vit_s"]):
        with pytest.raises(UsageError, match=r"'(mobile_vit_t|efficient_vit_s)' is not one of SAM's own .*vit_b"):
            get_backbone(name)
    with pytest.raises(UsageError, match="mobile_vit_t has batch norms"):
        build_image_encoder("mobile_vit_t", image_size=(64, 64), checkpointing=True)
