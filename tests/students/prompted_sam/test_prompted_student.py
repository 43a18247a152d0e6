"""A small promptable student: it begins as its teacher on a smaller picture, and its file is a published model's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.encoder_sizes import EFFICIENT, TINY
from helpers.prompts import prompts
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from samkd.errors import BadInputError
from samkd.sam.base import Encoder
from samkd.sam.fine_encoder import FineEncoder
from samkd.sam.presets import FineSize, TinyViTSize
from samkd.students.prompted_sam.model import PromptedStudent, build_prompted
from samkd.teachers.published.model import PublishedSAM, build_published

SIDE = 64
TEACHER = TinyViTSize(
    "small litemedsam",
    dims=TINY.dims,
    depths=TINY.depths,
    heads=TINY.heads,
    windows=TINY.windows,
    stem_kernel=1,
    stem_stride=1,
    out_chans=TINY.out_chans,
    decoder=TINY.decoder,
)
SHAPE: dict[str, Any] = {"in_channels": 1, "num_classes": 3, "patch": (1, SIDE, SIDE)}
BOXES = prompts(classes=2, boxes=[(0, 0, (0.0, 10, 12, 0, 40, 50)), (0, 1, (0.0, 5, 5, 0, 20, 30))])


@pytest.fixture
def teacher() -> PublishedSAM:
    torch.manual_seed(0)
    return build_published(backbone=TEACHER, convention="medsam", **SHAPE).eval()


@pytest.fixture
def teacher_file(teacher: PublishedSAM, tmp_path: Path) -> Path:
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def student() -> PromptedStudent:
    return build_prompted(FineSize("fine", TINY), **SHAPE).eval()


@torch.no_grad()
def test_it_begins_as_the_teacher_on_a_quarter_of_the_picture(teacher: PublishedSAM, teacher_file: Path):
    learner = student()
    report = learner.load_pretrained(teacher_file)
    assert not report.dropped and {name.split(".")[1] for name in report.added} == {
        *("up", "pixels", "near", "near_norm", "widen", "narrow", "out")
    }
    even = torch.full((1, 1, 1, SIDE, SIDE), 0.4)  # where the average of pixels is what a pixel is, but at the edges
    seen = learner.encode(even)[:, :, 0]
    image_encoder = learner.image_encoder
    assert isinstance(image_encoder, FineEncoder) and isinstance(image_encoder.coarse, Encoder)
    coarse = image_encoder.coarse(even[:, 0].expand(-1, 3, -1, -1))
    torch.testing.assert_close(seen, interpolate(coarse, scale_factor=4, mode="bilinear"))
    small = build_published(backbone=TEACHER, convention="medsam", **(SHAPE | {"patch": (1, SIDE // 4, SIDE // 4)}))
    small.load_state_dict(teacher.state_dict() | {k: v for k, v in small.state_dict().items() if "pe_layer" in k})
    theirs = small.eval().encode(even[..., : SIDE // 4, : SIDE // 4])[:, :, 0]
    torch.testing.assert_close(coarse[..., 1:, 1:], theirs[..., 1:, 1:], atol=0.1, rtol=0)
    assert seen.shape == teacher.encode(even)[:, :, 0].shape


def test_another_encoder_takes_the_decoder_alone(teacher: PublishedSAM, teacher_file: Path):
    learner = build_prompted(FineSize("fine", EFFICIENT), **SHAPE)
    report = learner.load_pretrained(teacher_file)
    decoding = {name for name in teacher.state_dict() if name.startswith(("prompt_encoder.", "mask_decoder."))}
    assert decoding <= set(report.loaded) and any(name.startswith("image_encoder.layers.") for name in report.dropped)
    for name in decoding:
        assert torch.equal(learner.state_dict()[name], teacher.state_dict()[name]), name


@torch.no_grad()
def test_its_file_is_a_published_models_of_any_classes(tmp_path: Path):
    learner = student()
    save_file(learner.state_dict(), tmp_path / "weights.safetensors")
    model = build_published(backbone=FineSize("fine", TINY), **SHAPE).eval()
    assert set(model.load_pretrained(tmp_path / "weights.safetensors").loaded) == set(learner.state_dict())
    image = torch.rand(1, 1, 1, SIDE, SIDE)
    logits = model(image, BOXES)
    assert logits.shape == (1, 3, 1, SIDE, SIDE)
    torch.testing.assert_close(logits, learner(image, BOXES))
    again = student()
    again.load_pretrained(tmp_path / "weights.safetensors")
    torch.testing.assert_close(again(image, BOXES), logits)


def test_a_file_without_its_decoder_is_refused(teacher: PublishedSAM, tmp_path: Path):
    encoder = {name: value for name, value in teacher.state_dict().items() if name.startswith("image_encoder.")}
    torch.save(encoder, tmp_path / "encoder.pth")
    with pytest.raises(BadInputError, match=r"encoder\.pth: these weights .* have no .*; give LiteMedSAM's file"):
        student().load_pretrained(tmp_path / "encoder.pth")
