import json

import pytest
import torch
from helpers.paths import SHARED
from monai.networks.nets import swin_unetr as monai
from torch import nn

from samkd.errors import UsageError
from samkd.students import STUDENTS, build_student
from samkd.students.swinunetr.window_attention import FastWindowAttention

COUNTS = SHARED / "conformance" / "parameter_counts.json"


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).abs().max() / expected.abs().max()).item()


def test_equals_monais_own_with_shifted_and_padded_windows():
    theirs = monai.SwinUNETR(in_channels=2, out_channels=3, feature_size=12)
    ours = build_student("swinunetr-tiny", in_channels=2, num_classes=3, patch=(32, 64, 32))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 2, 32, 64, 32)
    expected, result = theirs(image), ours(image)
    assert result.shape == (1, 3, 32, 64, 32)
    assert relative(result, expected) < 1e-5
    with torch.no_grad():
        assert relative(ours(image), expected) < 1e-5
    expected.square().mean().backward()
    result.square().mean().backward()
    largest = max(p.grad.abs().max().item() for p in theirs.parameters() if p.grad is not None)
    for (name, parameter), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None and reference.grad is not None
        assert (parameter.grad - reference.grad).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_in_double_precision(masked: bool):
    theirs = monai.WindowAttention(8, num_heads=2, window_size=(2, 3, 2), qkv_bias=True).double()
    ours = FastWindowAttention(8, num_heads=2, window_size=(2, 3, 2), qkv_bias=True).double()
    nn.init.normal_(theirs.relative_position_bias_table)
    ours.load_state_dict(theirs.state_dict())
    mask = -100.0 * (torch.rand(5, 12, 12).double() < 0.3) if masked else None
    x, twin = (torch.randn(10, 12, 8, generator=torch.Generator().manual_seed(3)).double() for _ in range(2))
    x.requires_grad_()
    twin.requires_grad_()
    expected, result = theirs(x, mask), ours(twin, mask)
    torch.testing.assert_close(result, expected)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (result * weights).sum().backward()
    torch.testing.assert_close(twin.grad, x.grad)
    for (name, parameter), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(ours(twin, mask), expected)


def test_trains_under_autocast():
    model = build_student("swinunetr-tiny", in_channels=1, num_classes=2, patch=(32, 32, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(1, 1, 32, 32, 64))
    logits.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("grad", [True, False])
def test_can_be_exported_without_the_training_path(grad: bool):
    attention = FastWindowAttention(8, num_heads=2, window_size=(2, 2, 2), qkv_bias=True).eval()
    x = torch.randn(3, 8, 8)
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(attention, (x, None))
    assert any("scaled_dot_product_attention" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x, None), attention(x, None))


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"no {COUNTS}")
@pytest.mark.parametrize(
    ("name", "feature_size"), [("swinunetr-tiny", 12), ("swinunetr-small", 24), ("swinunetr-base", 48)]
)
def test_parameter_counts(name: str, feature_size: int):
    expected = json.loads(COUNTS.read_text())[f"SwinUNETR feature_size={feature_size} in=1 out=14 @96^3"]
    model = build_student(name, in_channels=1, num_classes=14, patch=(96, 96, 96))
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    assert (model.in_channels, model.num_classes, model.patch) == (1, 14, (96, 96, 96))


@pytest.mark.parametrize("patch", [(32, 64, 48), (0, 32, 32), (16, 32, 32), (32, 32, 32)])
def test_patch_must_be_a_multiple_of_32(patch: tuple[int, int, int]):
    with pytest.raises(UsageError, match=r"multiples of 32.* not"):
        build_student("swinunetr-tiny", in_channels=1, num_classes=2, patch=patch)


def test_unknown_student_and_prompts():
    with pytest.raises(UsageError, match=f"unknown student 'unet'.*{next(iter(STUDENTS))}"):
        build_student("unet", in_channels=1, num_classes=2, patch=(32, 32, 32))
    model = build_student("swinunetr-tiny", in_channels=1, num_classes=2, patch=(32, 32, 64))
    with pytest.raises(UsageError, match="no prompts"):
        model(torch.zeros(1, 1, 32, 32, 64), prompts=torch.zeros(1))
