"""3DSAM-adapter: the contract, its points, its options."""

import json
import re

import pytest
import torch
from helpers.paths import SHARED
from helpers.prompts import points_to_prompts
from helpers.teachers import SAM3D_TRAINED, tiny_teacher
from torch import nn

from samkd.errors import UsageError
from samkd.teachers import build_teacher

COUNTS = SHARED / "conformance" / "parameter_counts.json"


@pytest.mark.parametrize(
    ("backbone", "patch", "options"),
    [
        ("vit_tiny_p8", (8, 16, 24), {}),
        ("vit_tiny", (8, 16, 12), {}),
        ("vit_tiny", (32, 64, 48), {"upsample": 1}),
        ("vit_tiny_p8", (3, 32, 48), {"upsample": 1, "slices": 1}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_and_backward(backbone: str, patch: tuple[int, int, int], options: dict, channels: int):
    model = tiny_teacher("sam3d", backbone=backbone, patch=patch, in_channels=channels, **options)
    assert (model.in_channels, model.num_classes, model.patch) == (channels, 3, patch)
    image = torch.randn(2, channels, *patch)
    asked = points_to_prompts(torch.rand(2, 2, 3, 3).tolist(), [[[1, 1, 0], [-1, -1, -1]], [[1, -1, -1], [0, -1, 1]]])
    for given in (None, asked):
        model.zero_grad()
        logits = model(image, given)
        assert logits.shape == (2, 3, *patch)
        assert torch.isfinite(logits).all() and (logits[:, 0] == 0).all()
        nn.functional.cross_entropy(logits, torch.randint(3, (2, *patch))).backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        unused = r"prompt_encoder\." + ("" if given is None else r"layers\.\d\.cross_attn_token_to_image\.")
        assert without == {name for name, _ in model.named_parameters() if re.match(unused, name)}


def test_a_class_without_a_point_inside_is_automatic():
    model = tiny_teacher("sam3d").eval()
    image = torch.randn(1, 1, 8, 16, 24)
    point = [2.0, 3.0, 4.0]
    with torch.no_grad():
        automatic = model(image)
        for labels in ([-1], [0]):
            assert torch.equal(model(image, points_to_prompts([[[point], [point]]], [[labels, labels]])), automatic)
        first = model(image, points_to_prompts([[[point], [point]]], [[[1], [-1]]]))
        both = model(image, points_to_prompts([[[point], [point]]], [[[1], [1]]]))
    assert torch.equal(first[:, 2], automatic[:, 2]) and not torch.allclose(first[:, 1], automatic[:, 1])
    assert torch.equal(first[:, 1], both[:, 1]) and not torch.allclose(both[:, 2], automatic[:, 2])


@pytest.mark.parametrize("count", [1, 3, 10])
def test_points_count_as_a_set_and_fillers_do_not_count(count: int):
    model = tiny_teacher("sam3d", num_classes=2).eval()
    image = torch.randn(1, 1, 8, 16, 24)
    points = torch.rand(1, 1, count, 3) * torch.tensor([7.0, 15.0, 23.0])
    filled = torch.cat([points.flip(2), torch.zeros(1, 1, 2, 3)], dim=2)
    with torch.no_grad():
        logits = model(image, points_to_prompts(points.tolist(), [[[1] * count]]))
        again = model(image, points_to_prompts(filled.tolist(), [[[1] * count + [-1, 0]]]))
        moved = model(image, points_to_prompts((points / 2).tolist(), [[[1] * count]]))
    torch.testing.assert_close(logits, again, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, moved, rtol=1e-3, atol=1e-4)


def test_scans_of_a_batch_do_not_see_each_other():
    model = tiny_teacher("sam3d").eval()
    images = torch.randn(2, 1, 8, 16, 24)
    points, labels = torch.rand(2, 2, 1, 3).tolist(), [[[1], [-1]], [[-1], [1]]]
    with torch.no_grad():
        both = model(images, points_to_prompts(points, labels))
        second = model(images[1:], points_to_prompts(points[1:], labels[1:]))
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_memory_not_numbers():
    plain, saving = tiny_teacher("sam3d"), tiny_teacher("sam3d", checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 8, 16, 24)
    for model in (plain, saving):
        model(image).square().mean().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_stays_close_to_single_precision():
    model = tiny_teacher("sam3d").eval()
    image, asked = torch.rand(1, 1, 8, 16, 24), points_to_prompts([[[[1, 2, 3]], [[4, 5, 6]]]], [[[1], [1]]])
    with torch.no_grad():
        exact = model(image, asked)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(image, asked)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_freeze_pretrained_leaves_what_the_authors_tune():
    model = tiny_teacher("sam3d", num_classes=2)
    model.freeze_pretrained()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(SAM3D_TRAINED.match(name)), name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(1, 1, 8, 16, 24)).square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(SAM3D_TRAINED.match(name) for name in changed)
    assert {"image_encoder.blocks.0.adapter.down.weight", "image_encoder.blocks.3.attn.rel_pos_d"} <= changed


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"no {COUNTS}")
@pytest.mark.parametrize("backbone", ["vit_b", "vit_h"])
def test_parameter_counts(backbone: str):
    counts = json.loads(COUNTS.read_text())
    (expected,) = (value for key, value in counts.items() if key.startswith(f"3DSAM-adapter {backbone}"))
    with torch.device("meta"):
        model = build_teacher("sam3d", backbone=backbone, in_channels=1, num_classes=2, patch=(128, 128, 128))
    model.freeze_pretrained()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tuned = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def total(pattern: str) -> int:
        return sum(size for name, size in tuned.items() if re.search(pattern, name))

    assert sum(sizes.values()) == expected["total_used_1_prompt_encoder"]
    assert sum(tuned.values()) == expected["trainable_used_1_prompt_encoder"]
    for part in ("slice_embed", "depth_embed", "rel_pos_d", "mask_decoder"):
        assert total(part) == expected[part], part
    assert total(r"\.adapter\.") == expected["adapters"] and total("necks") == expected["necks"]
    unused = total("cross_attn_token_to_image")
    assert total("prompt_encoder") == expected["prompt_encoder_each"]
    assert total("prompt_encoder") - unused == expected["prompt_encoder_receiving_gradient"]
    if backbone == "vit_b":
        assert sum(tuned.values()) / 1e6 == pytest.approx(25.46, abs=0.005)  # the paper's table 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.*vit_b"),
        ({"in_channels": 2}, "1 channel .* or 3, not 2"),
        ({"patch": (6, 16, 24)}, "6x16x24 does not fit .*vit_tiny_p8.*multiples of 4, 4, 4.*change the patch"),
        ({"patch": (8, 16, 22)}, "multiples of 4, 4, 4"),
        ({"patch": (0, 16, 24)}, "multiples of 4, 4, 4"),
        ({"patch": (4, 4, 4)}, "more than one token of 8x8x8"),
        ({"patch": (8, 16, 24), "upsample": 1, "slices": 3}, "up-sampled 1 times.*multiples of 3, 8, 8"),
        ({"rank": 4}, "no option rank.*upsample, slices"),
    ],
)
def test_bad_options(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tiny_teacher("sam3d", **changes)


@pytest.mark.parametrize("shape", [(1, 3, 8, 16, 24), (1, 1, 8, 24, 16), (1, 1, 4, 16, 24), (1, 8, 16, 24)])
def test_wrong_image_shape(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"expected \[B, 1, 8, 16, 24\]"):
        tiny_teacher("sam3d")(torch.zeros(shape))


@pytest.mark.parametrize("rows", [(1, 1), (2, 2), (1, 3)])
def test_wrong_points_shape(rows: tuple[int, int]):
    asked = points_to_prompts(torch.zeros(*rows, 1, 3).tolist(), torch.ones(*rows, 1, dtype=torch.int64).tolist())
    with pytest.raises(UsageError, match=r"expected \[1, 2, P, 3\]: one row per foreground class"):
        tiny_teacher("sam3d")(torch.zeros(1, 1, 8, 16, 24), asked)
