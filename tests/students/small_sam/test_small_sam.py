"""MobileSAM and EfficientSAM as students: slices, prompts, published weights, errors."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.encoder_sizes import EFFICIENT, TINY
from helpers.prompts import prompts
from helpers.published_checkpoints import manifest, state_of
from torch import Tensor, nn

from samkd.errors import BadInputError, UsageError
from samkd.sam.prompt_tensors import Prompts
from samkd.students import STUDENTS, build_student
from samkd.students.small_sam.model import MAX_POINTS, STUDENT_ENCODERS, SmallSAM, build_small_sam

BOTH = pytest.mark.parametrize("size", [TINY, EFFICIENT], ids=lambda size: size.name)


def small(size: Any = TINY, **changes: Any) -> SmallSAM:
    return build_small_sam(size, **({"in_channels": 1, "num_classes": 4, "patch": (3, 48, 64)} | changes))


def given() -> Prompts:
    return prompts(
        batch=2,
        points=[(0, 0, (1.0, 5.0, 9.0), 1), (0, 0, (2.0, 40.0, 60.0), 0), (1, 2, (0.0, 3.0, 3.0), 1)],
        boxes=[(0, 1, (0, 3, 4, 1, 20, 30.0)), (1, 2, (1, 3, 4, 2, 20, 30.0))],
    )


# --- what it computes -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("slices", ["channels", "depth"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_any_channels_any_depth_and_every_parameter_learns(size, slices, channels: int, depth: int):
    model = small(size, slices=slices, in_channels=channels)
    assert (model.in_channels, model.num_classes, model.patch) == (channels, 4, (3, 48, 64))
    image = torch.randn(2, channels, depth, 48, 64)
    logits = model(image, given())
    assert logits.shape == model(image).shape == (2, 4, depth, 48, 64)
    assert not logits[:, 0].any()
    nn.functional.cross_entropy(logits, torch.randint(4, (2, depth, 48, 64))).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = r"prompt_encoder\.mask_downscaling|mask_decoder\.iou_prediction_head"
    assert all(re.match(unused, name) for name in without), without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def seen_by_the_encoder(model: SmallSAM, image: Tensor) -> Tensor:
    seen: list[Tensor] = []
    model.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.eval().encode(image)
    return seen[0]


def test_neighbours_are_the_channels():
    image = torch.arange(5.0)[None, None, :, None, None].expand(1, 1, 5, 48, 64)
    seen = seen_by_the_encoder(small(), image)
    assert seen.shape == (5, 3, 48, 64)
    assert seen[:, :, 7, 9].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    alone = seen_by_the_encoder(small(), image[:, :, 2:3])
    assert alone[:, :, 0, 0].tolist() == [[2, 2, 2]]


def test_slices_on_their_own():
    image = torch.randn(2, 3, 4, 48, 64)
    seen = seen_by_the_encoder(small(slices="depth", in_channels=3), image)
    assert torch.equal(seen, image.transpose(1, 2).flatten(0, 1))
    seen = seen_by_the_encoder(small(slices="depth"), image[:, :1])
    assert torch.equal(seen, image[:, :1].transpose(1, 2).flatten(0, 1).expand(-1, 3, -1, -1))


@BOTH
@pytest.mark.parametrize("slices", ["channels", "depth"])
def test_a_slice_knows_its_neighbours_and_no_other_case(size, slices):
    model = small(size, slices=slices).eval()
    image = torch.randn(2, 1, 5, 48, 64)
    changed = image.clone()
    changed[0, :, 4] += torch.randn(48, 64)

    def difference() -> Tensor:
        with torch.no_grad():
            return (model(image) - model(changed)).abs().amax(dim=(1, 3, 4))

    if slices == "depth":
        assert difference()[0, :4].max() < 1e-6  # at the start slices are SAM's, one by one
        nn.init.normal_(model.get_parameter("along_depth.weight"), std=0.05)
    result = difference()
    assert (result[0, 3:] > 1e-4).all()
    assert result[0, :3].max() < 1e-6 and result[1].max() < 1e-6


@BOTH
def test_a_class_without_a_prompt_is_segmented_automatically_and_a_batch_changes_nothing(size):
    model = small(size).eval()
    image = torch.randn(2, 1, 3, 48, 64)
    with torch.no_grad():
        automatic, both = model(image), model(image, given())
        close = [[torch.allclose(both[b, k], automatic[b, k], atol=1e-6) for k in range(4)] for b in range(2)]
        assert close == [[True, False, False, True], [True, True, True, False]]
        for row in range(2):
            alone = Prompts(given().points[[row]], given().labels[[row]], given().boxes[[row]])
            torch.testing.assert_close(model(image[[row]], alone), both[[row]], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model(image, prompts(batch=2)), automatic)


@BOTH
def test_empty_places_among_the_points_change_nothing(size):
    model = small(size).eval()
    image, places = torch.randn(1, 1, 3, 48, 64), [(1.0, 5.0, 9.0), (2.0, 40.0, 60.0)]
    few = prompts(points=[(0, 1, place, 1) for place in places])
    many = Prompts(torch.zeros(1, 3, 9, 3), torch.full((1, 3, 9), -1), few.boxes)
    for index, place in zip((3, 8), places, strict=True):
        many.points[0, 1, index], many.labels[0, 1, index] = torch.tensor(place), 1
    with torch.no_grad():
        torch.testing.assert_close(model(image, many), model(image, few))


def test_autocast_leaves_clicks_where_they_are():
    model = small().eval()
    seen: list[Tensor] = []
    model.mask_decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    image = torch.randn(2, 1, 3, 48, 64)
    with torch.no_grad():
        model(image, given())
        exact = list(seen)
        seen.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(image, given())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, exact, strict=True))
    assert torch.isfinite(logits).all()


# --- the named ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoder", "total"),
    [
        ("mobilesam", 5_743_892, 10_871_972),
        ("efficientsam-ti", 6_163_840, 11_286_724),
        ("efficientsam-s", 22_353_664, 27_476_548),
    ],
)
def test_parameter_counts(name: str, encoder: int, total: int):
    with torch.device("meta"):
        model = build_student(name, in_channels=1, num_classes=13, patch=(3, 1024, 1024))
    assert isinstance(model, SmallSAM)
    assert sum(p.numel() for p in model.image_encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) == total
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", STUDENT_ENCODERS)
@pytest.mark.parametrize("slices", ["channels", "depth"])
def test_a_published_file_fills_all_that_does_not_belong_to_classes(name: str, slices, tmp_path: Path):
    shapes = manifest(STUDENT_ENCODERS[name])
    torch.save(state_of(shapes), tmp_path / "weights.pt")
    model = build_student(name, in_channels=2, num_classes=4, patch=(3, 64, 96), slices=slices)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert isinstance(model, SmallSAM)
    report = model.load_pretrained(tmp_path / "weights.pt")
    assert report.variant == STUDENT_ENCODERS[name] and report.interpolated == ()
    kinds = [report.loaded, report.reinitialised, report.added]
    assert sorted(key for kind in kinds for key in kind) == sorted(before)
    assert set(report.loaded) | set(report.dropped) == set(shapes)
    added = {key.split(".")[0] for key in report.added}
    assert added == {"slice_prompts", "to_three"} | ({"along_depth"} if slices == "depth" else set())
    replaced = r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\.|mask_decoder\..*upscaling"
    assert all(re.match(replaced, key) for key in report.reinitialised)
    assert {key for key in shapes if key.startswith(("image_encoder.", "prompt_encoder."))} <= (
        set(report.loaded) | {key for key in shapes if re.match(r"image_encoder\.(norm_)?head\.", key)}
    )
    first_stages = {key for key in report.loaded if "upscaling" in key}
    assert len({before[key].shape for key in first_stages if before[key].ndim == 4}) == 2
    for key, value in model.state_dict().items():
        expected = torch.full_like(value, 0.5) if key in report.loaded and value.ndim else before[key]
        assert (key in report.loaded and not value.ndim) or torch.equal(value, expected), key


def test_another_family_is_refused(tmp_path: Path):
    torch.save(state_of(manifest("efficient_vit_ti")), tmp_path / "weights.pt")
    for name in ("mobilesam", "efficientsam-s"):
        model = build_student(name, in_channels=1, num_classes=4, patch=(3, 64, 96))
        assert isinstance(model, SmallSAM)
        with pytest.raises(BadInputError, match=r"weights\.pt: these are weights of EfficientSAM"):
            model.load_pretrained(tmp_path / "weights.pt")


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDENT_ENCODERS)
def test_wrong_options(name: str):
    fit: dict[str, Any] = {"in_channels": 1, "num_classes": 3, "patch": (1, 64, 64)}
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"patch": (3, 64, 70)}, r"64x70 does not fit .* multiples of (16|4)\b"),
        ({"patch": (3, 0, 64)}, "0x64 does not fit"),
        ({"num_classes": 1}, "num_classes=1: give at least 2"),
        ({"slices": "stack"}, "slices is 'stack': choose one of channels, depth"),
        ({"rank": 4}, f"student '{name}' has no option rank: choose among slices"),
    )
    for changes, message in wrong:
        with pytest.raises(UsageError, match=message):
            build_student(name, **(fit | changes))


@pytest.mark.parametrize("name", [name for name in STUDENTS if name not in STUDENT_ENCODERS])
def test_others_have_no_option(name: str):
    with pytest.raises(UsageError, match=f"'{name}' has no option slices: choose among none"):
        build_student(name, in_channels=1, num_classes=3, patch=(64, 64, 64), slices="depth")


@pytest.mark.parametrize("shape", [(1, 2, 3, 48, 64), (1, 1, 3, 64, 64), (1, 3, 48, 64)])
def test_wrong_image_shape(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=re.escape(f"{shape}, expected [B, 1, D, 48, 64]")):
        small()(torch.zeros(shape))


def test_wrong_prompts():
    image = torch.zeros(1, 1, 3, 48, 64)
    with pytest.raises(UsageError, match=r"for \(1, 2\) cases and classes, expected \(1, 3\)"):
        small()(image, prompts(classes=2))
    many = Prompts(torch.zeros(1, 3, 9, 3), torch.full((1, 3, 9), -1), torch.full((1, 3, 6), torch.nan))
    many.labels[0, 1, -MAX_POINTS:] = 1
    assert small()(image, many).shape == (1, 4, 3, 48, 64)
    many.labels[0, 1, 0] = 0
    with pytest.raises(UsageError, match="class 2 has 7 points in one patch, this student takes 6 and a box"):
        small()(image, many)
