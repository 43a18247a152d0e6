import pytest
import torch
from torch import nn

from samkd.errors import UsageError
from samkd.students import build_student
from samkd.training.losses import segmentation_loss


@pytest.mark.parametrize(("classes", "count"), [(7, 1_417_247), (13, 1_417_301)])
def test_parameter_count(classes: int, count: int):
    model = build_student("mednext-tiny", in_channels=1, num_classes=classes, patch=(96, 96, 96))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_its_convolutions_are_depthwise_or_of_one_voxel():
    """But for the stem, the fine layer, its way back and MONAI's three outputs of a depth."""
    model = build_student("mednext-tiny", in_channels=1, num_classes=3, patch=(16, 16, 32))
    body = model.get_submodule("body")
    convolutions = [each for each in body.modules() if isinstance(each, nn.Conv3d | nn.ConvTranspose3d)]
    wide = [each for each in convolutions if max(each.kernel_size) > 1]
    assert len(wide) == 20 and all(each.groups == each.in_channels for each in wide)


def test_takes_every_grid_and_any_number_of_channels():
    model = build_student("mednext-tiny", in_channels=2, num_classes=4, patch=(16, 32, 16)).eval()
    assert (model.in_channels, model.num_classes, model.patch, model.takes_any_patch) == (2, 4, (16, 32, 16), True)
    with torch.no_grad():
        for grid in ((16, 32, 16), (32, 16, 48)):
            assert model(torch.randn(2, 2, *grid)).shape == (2, 4, *grid)


def test_sees_a_single_voxel_and_far_around_it():
    """The fine layer sees the voxel itself, the rest more than 24 voxels around it."""
    torch.manual_seed(0)
    model = build_student("mednext-tiny", in_channels=1, num_classes=3, patch=(64, 64, 64)).eval()
    image = torch.randn(1, 1, 64, 64, 64, requires_grad=True)
    model(image)[0, 1, 32, 32, 32].backward()
    assert image.grad is not None
    seen = image.grad[0, 0].abs()
    assert seen[32, 32, 32] > 0 and seen[32, 32, 8] > 0


def test_two_steps_lower_the_loss():
    torch.manual_seed(0)
    model = build_student("mednext-tiny", in_channels=1, num_classes=3, patch=(16, 16, 32))
    labels = torch.zeros(1, 16, 16, 32, dtype=torch.long)
    labels[:, 4:12, 4:12, 4:14], labels[:, 4:12, 4:12, 18:28] = 1, 2
    image = labels[:, None] + 0.1 * torch.randn(1, 1, 16, 16, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = segmentation_loss(model(image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0] and losses[2] < 0.97 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("patch", [(8, 96, 96), (16, 24, 32), (0, 16, 16), (16, 16, 16)])
def test_patch_must_be_a_multiple_of_16(patch: tuple[int, int, int]):
    with pytest.raises(UsageError, match=r"multiples of 16, one of them larger than that, not .*plan"):
        build_student("mednext-tiny", in_channels=1, num_classes=2, patch=patch)


def test_takes_no_prompts():
    model = build_student("mednext-tiny", in_channels=1, num_classes=2, patch=(16, 16, 32))
    with pytest.raises(UsageError, match="no prompts"):
        model(torch.zeros(1, 1, 16, 16, 32), prompts=torch.zeros(1))
