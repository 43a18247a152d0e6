import pytest
import torch

from samkd.training.losses import distillation_loss, probability_mse, segmentation_loss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5, 6))
    teacher = torch.randn(2, 3, 4, 5, 6).softmax(1)
    return logits, labels, teacher


def test_dice_and_cross_entropy_equal_their_formulas(batch):
    logits, labels, _ = batch
    p = logits.softmax(1)
    truth = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    overlap = (p * truth).sum((0, 2, 3, 4))[1:]
    dice = 1 - ((2 * overlap + 1e-5) / (p.sum((0, 2, 3, 4))[1:] + truth.sum((0, 2, 3, 4))[1:] + 1e-5)).mean()
    entropy = -(truth * p.log()).sum(1).mean()
    torch.testing.assert_close(segmentation_loss(logits, labels), dice + entropy)
    torch.testing.assert_close(
        segmentation_loss(logits, labels, dice_weight=0.8, cross_entropy_weight=0.2), 0.8 * dice + 0.2 * entropy
    )


def test_mse_is_summed_over_classes_and_averaged_over_voxels(batch):
    logits, _, teacher = batch
    expected = (logits.softmax(1) - teacher).pow(2).sum() / (2 * 4 * 5 * 6)
    torch.testing.assert_close(probability_mse(logits, teacher), expected)
    assert float(probability_mse(teacher.log(), teacher)) < 1e-12


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_total_is_the_weighted_sum(batch, weight):
    logits, labels, teacher = batch
    total = distillation_loss(logits, labels, teacher, lambda_=weight)["loss"]
    expected = weight * segmentation_loss(logits, labels) + (1 - weight) * probability_mse(logits, teacher)
    torch.testing.assert_close(total, expected)


def test_lambda_one_needs_no_teacher_and_lambda_zero_ignores_labels(batch):
    logits, labels, teacher = batch
    alone = distillation_loss(logits, labels, None, lambda_=1.0)
    assert torch.equal(alone["loss"], segmentation_loss(logits, labels))
    assert "mse" not in alone
    one = distillation_loss(logits, labels, teacher, lambda_=0.0)["loss"]
    other = distillation_loss(logits, (labels + 1) % 3, teacher, lambda_=0.0)["loss"]
    assert torch.equal(one, other)
