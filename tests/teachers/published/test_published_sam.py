"""A published model as it is: its own tokens and masks on the slices that a prompt meets, nothing elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.base_models import published, published_sam
from helpers.prompts import prompts
from torch import Tensor
from torch.nn.functional import interpolate

from samkd.errors import BadInputError, UsageError
from samkd.sam.mask_decoder import decode
from samkd.sam.prompted_sam import PIXEL_MEAN, PIXEL_STD, UNSEEN
from samkd.teachers import build_teacher
from samkd.teachers.published.model import PublishedSAM

SIDE, DEPTH = 64, 4
BOX, POINT = (1.0, 10.0, 12.0, 2.0, 40.0, 50.0), (3.0, 30.0, 20.0)


def small(backbone: str = "vit_tiny", **changes: Any) -> PublishedSAM:
    torch.manual_seed(0)
    options = {"in_channels": 1, "num_classes": 3, "patch": (1, SIDE, SIDE)} | changes
    model = build_teacher("published", backbone=backbone, **options).eval()
    assert isinstance(model, PublishedSAM)
    return model


def as_the_authors(model: PublishedSAM, slices: Tensor, places: list, kinds: list, *, photographs: bool) -> Any:
    """Their way of a prompt: slices [N, 1, H, W] to the four masks [N, 4, H, W] and the predicted IoU."""
    images = slices.expand(-1, 3, -1, -1)
    if photographs:
        mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
        images = (images - mean) / std
    tokens = model.prompt_encoder.clicks(torch.tensor([places]), torch.tensor([kinds]))
    tokens = tokens.expand(len(slices), -1, -1)
    masks, iou = decode(model.mask_decoder, model.prompt_encoder, model.image_encoder(images), tokens)
    return interpolate(masks, (SIDE, SIDE), mode="bilinear"), iou


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "convention"), [("vit_tiny", None), ("vit_tiny", "medsam"), ("efficient_vit_ti", None)]
)
def test_it_gives_the_authors_masks_where_a_prompt_is_and_nothing_elsewhere(backbone: str, convention: str | None):
    model = small(backbone, convention=convention)
    image = torch.rand(1, 1, DEPTH, SIDE, SIDE)
    logits = model(image, prompts(classes=2, points=[(0, 0, POINT, 1)], boxes=[(0, 1, BOX)]))
    assert logits.shape == (1, 3, DEPTH, SIDE, SIDE) and not logits[:, 0].any()
    slices = image[0].transpose(0, 1)
    photographs = convention != "medsam"
    first = {"box": convention is not None or backbone == "vit_tiny", "point": convention == "medsam"}

    boxed, iou = as_the_authors(model, slices[1:3], [[12.0, 10], [50, 40]], [2, 3], photographs=photographs)
    taken = torch.zeros(2, dtype=torch.long) if first["box"] else 1 + iou[:, 1:].argmax(1)
    torch.testing.assert_close(logits[0, 2, 1:3], boxed[torch.arange(2), taken], atol=1e-5, rtol=1e-4)
    assert (logits[0, 2, [0, 3]] == UNSEEN).all()

    clicked, iou = as_the_authors(model, slices[3:], [[20.0, 30], [0, 0]], [1, -1], photographs=photographs)
    taken = 0 if first["point"] else 1 + int(iou[0, 1:].argmax())
    torch.testing.assert_close(logits[0, 1, 3], clicked[0, taken], atol=1e-5, rtol=1e-4)
    assert (logits[0, 1, :3] == UNSEEN).all()


@torch.no_grad()
def test_nothing_without_prompts_and_cases_do_not_mix():
    model = small()
    image = torch.rand(2, 1, DEPTH, SIDE, SIDE)
    nothing = model(image)
    assert not nothing[:, 0].any() and (nothing[:, 1:] == UNSEEN).all()
    one = model(image, prompts(batch=2, classes=2, boxes=[(1, 0, BOX)]))
    torch.testing.assert_close(one[0], nothing[0])
    alone = model(image[1:], prompts(classes=2, boxes=[(0, 0, BOX)]))
    torch.testing.assert_close(one[1:], alone, atol=1e-5, rtol=1e-4)


def test_nothing_is_trained_and_every_key_is_the_files(tmp_path: Path):
    path = published_sam(tmp_path / "sam.pth", backbone="vit_tiny")
    model = small()
    report = model.load_pretrained(path)
    assert set(report.loaded) == set(model.state_dict()) and not report.added and not report.reinitialised
    model.freeze_pretrained()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.save(published("efficient_vit_ti").state_dict(), tmp_path / "efficient.pth")
    with pytest.raises(BadInputError, match="weights of EfficientSAM"):
        model.load_pretrained(tmp_path / "efficient.pth")


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "convention"), [("vit_tiny", None), ("vit_tiny", "medsam"), ("efficient_vit_ti", None)]
)
def test_several_points_on_a_slice_are_those_of_the_authors(backbone: str, convention: str | None):
    model = small(backbone, convention=convention)
    image = torch.rand(1, 1, DEPTH, SIDE, SIDE)
    logits = model(image, prompts(classes=2, points=[(0, 0, POINT, 1), (0, 0, (3.0, 8.0, 9.0), 1)]))
    clicks, photographs = [[20.0, 30], [9.0, 8], [0, 0]], convention != "medsam"
    slices = image[0].transpose(0, 1)
    masks, iou = as_the_authors(model, slices[3:], clicks, [1, 1, -1], photographs=photographs)
    taken = 1 + int(iou[0, 1:].argmax()) if backbone.startswith("efficient") else 0
    torch.testing.assert_close(logits[0, 1, 3], masks[0, taken], atol=1e-5, rtol=1e-4)
    assert (logits[0, 1, :3] == UNSEEN).all() and (logits[0, 2] == UNSEEN).all()
    apart = model(image, prompts(classes=2, points=[(0, 0, POINT, 1), (0, 0, (1.0, 8.0, 9.0), 1)]))
    assert [bool((plane != UNSEEN).all()) for plane in apart[0, 1]] == [False, True, False, True]


def test_points_beside_a_box_of_a_class_are_refused():
    shown = prompts(classes=2, points=[(0, 1, POINT, 1)], boxes=[(0, 1, BOX)])
    with pytest.raises(UsageError, match="class 2 has 2 prompts in one patch: give points or one box"):
        small()(torch.rand(1, 1, DEPTH, SIDE, SIDE), shown)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 2}, "takes 1 or 3 channels, not 2"),
        ({"num_classes": 1}, "give at least 2"),
        ({"convention": "theirs"}, "convention is 'theirs': choose one of sam, medsam, efficientsam"),
        ({"patch": (1, 64, 70)}, "64x70 does not fit"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        small(**changes)
