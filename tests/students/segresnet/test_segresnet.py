import pytest
import torch
from monai.networks.nets.segresnet import SegResNet

from samkd.errors import UsageError
from samkd.students import build_student


def test_is_monais_own():
    torch.manual_seed(0)
    theirs = SegResNet(spatial_dims=3, init_filters=16, in_channels=2, out_channels=3)
    ours = build_student("segresnet", in_channels=2, num_classes=3, patch=(8, 16, 24))
    ours.load_state_dict(theirs.state_dict())
    assert (ours.in_channels, ours.num_classes, ours.patch) == (2, 3, (8, 16, 24))
    image = torch.randn(2, 2, 8, 16, 24)
    result = ours(image)
    assert result.shape == (2, 3, 8, 16, 24)
    torch.testing.assert_close(result, theirs(image))


def test_parameter_count():
    model = build_student("segresnet", in_channels=1, num_classes=13, patch=(96, 96, 96))
    assert sum(p.numel() for p in model.parameters()) == 4_701_101


@pytest.mark.parametrize("patch", [(3, 96, 96), (8, 12, 16), (0, 8, 8)])
def test_patch_must_be_a_multiple_of_8(patch: tuple[int, int, int]):
    with pytest.raises(UsageError, match=r"multiples of 8, not .*plan"):
        build_student("segresnet", in_channels=1, num_classes=2, patch=patch)


def test_takes_no_prompts():
    model = build_student("segresnet", in_channels=1, num_classes=2, patch=(8, 8, 8))
    with pytest.raises(UsageError, match="no prompts"):
        model(torch.zeros(1, 1, 8, 8, 8), prompts=torch.zeros(1))
