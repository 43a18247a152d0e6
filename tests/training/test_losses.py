import pytest
import torch

from samkd.training.losses import segmentation_loss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5, 6))
    return logits, labels


def test_dice_and_cross_entropy_equal_their_formulas(batch):
    logits, labels = batch
    p = logits.softmax(1)
    truth = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    overlap = (p * truth).sum((0, 2, 3, 4))[1:]
    dice = 1 - ((2 * overlap + 1e-5) / (p.sum((0, 2, 3, 4))[1:] + truth.sum((0, 2, 3, 4))[1:] + 1e-5)).mean()
    entropy = -(truth * p.log()).sum(1).mean()
    torch.testing.assert_close(segmentation_loss(logits, labels), dice + entropy)
    torch.testing.assert_close(
        segmentation_loss(logits, labels, dice_weight=0.8, cross_entropy_weight=0.2), 0.8 * dice + 0.2 * entropy
    )
