from typing import Any

import pytest
import torch
from monai.networks.nets import swin_unetr as monai
from torch import Tensor, nn

from samkd.students import build_student
from samkd.students.swinunetr.inference import _compose, _Windows


def trained_like(patch: tuple[int, int, int], *, in_channels: int, num_classes: int) -> Any:
    model: Any = build_student("swinunetr-tiny", in_channels=in_channels, num_classes=num_classes, patch=patch).eval()
    for name, parameter in model.named_parameters():
        if "relative_position" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


# At half the size windows are 7 or the whole axis: 16 and 48 are padded and rolled, by other numbers of tokens.
@pytest.mark.parametrize(("patch", "in_channels"), [((32, 32, 64), 1), ((96, 32, 32), 2)])
@torch.inference_mode()
def test_equals_monais_own(patch: tuple[int, int, int], in_channels: int):
    ours = trained_like(patch, in_channels=in_channels, num_classes=3)
    theirs = monai.SwinUNETR(in_channels=in_channels, out_channels=3, feature_size=12).eval()
    theirs.load_state_dict(ours.state_dict())
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    fast = ours.for_inference()
    image = torch.randn(1, in_channels, *patch)
    expected = theirs(image)
    assert (fast(image) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    for module in fast.modules():
        if isinstance(module, _Windows):
            module.get_buffer("code_depth").zero_()
    assert (fast(image) - expected).abs().max() > 1e-3  # without what stands for the mask of one axis


def test_windows_are_those_of_monai_and_come_back():
    grid, window, shift = (8, 15, 3), (7, 7, 3), (3, 3, 0)
    x = torch.randn(8 * 15 * 3, 5)
    padded = nn.functional.pad(x.reshape(1, *grid, 5), (0, 0, 0, 0, 0, 6, 0, 6))
    rolled = torch.roll(padded, (-3, -3, 0), (1, 2, 3))
    expected = monai.window_partition(rolled, window)
    windows = _Windows(grid, window, shift, channels=5)
    result = windows.cut(x)
    assert torch.equal(result[:, :5], expected.flatten(0, 1))
    assert torch.equal(windows.join(result[:, :5]), x)
    codes = result[:, 5:].reshape(*expected.shape[:2], 2)
    apart = (codes[:, :, None] != codes[:, None]).any(-1)
    assert torch.equal(apart, monai.compute_mask(padded.shape[1:4], window, shift, x.device) < 0)


@pytest.mark.parametrize("size", [1, 3])
def test_transposed_convolution_and_convolution_as_one(size: int):
    up, conv = torch.randn(3, 4, 2, 2, 2), torch.randn(5, 4, size, size, size)
    x = torch.randn(1, 3, 4, 2, 3)

    def two(x: Tensor) -> Tensor:
        return nn.functional.conv3d(nn.functional.conv_transpose3d(x, up, stride=2), conv, padding=size // 2)

    result = nn.functional.conv_transpose3d(x, _compose(up, conv), stride=2, padding=size // 2)
    torch.testing.assert_close(result, two(x), rtol=1e-4, atol=1e-4)
