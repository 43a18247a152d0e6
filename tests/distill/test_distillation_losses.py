"""Every distance against its formula, and the weighted sum of the paper at and between its ends."""

import math

import pytest
import torch

from samkd.configs.load import load_config
from samkd.configs.schema import Distillation
from samkd.distill.losses import (
    FLOOR,
    boundary_weights,
    class_weights,
    distance_of,
    distillation_loss,
    kl_divergence,
    logit_mse,
    probability_mse,
    soft_dice,
)
from samkd.errors import UsageError
from samkd.training.losses import segmentation_loss

SQUARED = distance_of(Distillation())


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5, 6))
    teacher = torch.randn(2, 3, 4, 5, 6).softmax(1)
    return logits, labels, teacher


def test_mse_is_summed_over_classes_and_averaged_over_voxels(batch):
    logits, _, teacher = batch
    expected = (logits.softmax(1) - teacher).pow(2).sum() / (2 * 4 * 5 * 6)
    torch.testing.assert_close(probability_mse(logits, teacher), expected)
    assert float(probability_mse(teacher.log(), teacher)) < 1e-12


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_total_is_the_weighted_sum(batch, weight):
    logits, labels, teacher = batch
    total = distillation_loss(logits, labels, teacher, lambda_=weight, distance=SQUARED)["loss"]
    expected = weight * segmentation_loss(logits, labels) + (1 - weight) * probability_mse(logits, teacher)
    torch.testing.assert_close(total, expected)


def test_lambda_one_needs_no_teacher_and_lambda_zero_ignores_labels(batch):
    logits, labels, teacher = batch
    alone = distillation_loss(logits, labels, None, lambda_=1.0, distance=SQUARED)
    assert torch.equal(alone["loss"], segmentation_loss(logits, labels))
    assert "distillation" not in alone
    one = distillation_loss(logits, labels, teacher, lambda_=0.0, distance=SQUARED)["loss"]
    other = distillation_loss(logits, (labels + 1) % 3, teacher, lambda_=0.0, distance=SQUARED)["loss"]
    assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_equals_hintons_formula(batch, temperature):
    logits, _, teacher = batch
    soft = (teacher.log() / temperature).softmax(1)
    own = (logits / temperature).softmax(1)
    expected = temperature**2 * (soft * (soft / own).log()).sum() / (2 * 4 * 5 * 6)
    torch.testing.assert_close(kl_divergence(logits, teacher, temperature=temperature), expected)
    assert abs(float(kl_divergence(teacher.log() + 7, teacher, temperature=temperature))) < 1e-6


def test_logits_are_compared_up_to_a_constant_and_are_the_limit_of_kl(batch):
    logits, _, teacher = batch
    assert float(logit_mse(teacher.log() - 3, teacher, temperature=1.0)) < 1e-10
    centred = logits - logits.mean(1, keepdim=True) - teacher.log() + teacher.log().mean(1, keepdim=True)
    expected = centred.pow(2).sum() / (2 * 4 * 5 * 6)
    torch.testing.assert_close(logit_mse(logits, teacher, temperature=1.0), expected)
    torch.testing.assert_close(logit_mse(logits, teacher, temperature=2.0), expected / 4)
    # Hinton et al. 2015, eq. 4: T^2 KL tends to half the squared distance over the number of classes.
    limit = kl_divergence(logits.double(), teacher.double(), temperature=300.0)
    torch.testing.assert_close(limit, expected.double() / 6, rtol=2e-2, atol=0)


def test_a_probability_of_zero_has_a_finite_logarithm_and_gradient():
    teacher = torch.zeros(1, 2, 1, 1, 1)
    teacher[0, 0] = 1
    for distance in (kl_divergence, logit_mse):
        logits = torch.zeros(1, 2, 1, 1, 1, requires_grad=True)
        distance(logits, teacher, temperature=1.0).backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0
    expected = 2 * (math.log(FLOOR) / 2) ** 2
    assert float(logit_mse(torch.zeros(1, 2, 1, 1, 1), teacher, temperature=1.0)) == pytest.approx(expected)


def test_boundary_weights_mark_the_voxels_on_both_sides_of_a_border():
    labels = torch.zeros(1, 1, 6, 6, dtype=torch.long)
    labels[..., 3:] = 1
    teacher = torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    weights = boundary_weights(teacher, 4.0)
    assert weights.shape == (1, 1, 6, 6)
    assert weights[0, 0, 0].tolist() == [1, 1, 5, 5, 1, 1]
    logits = torch.zeros(1, 2, 1, 6, 6)
    logits[:, 0, :, :, 2] = 30  # right at the border only
    plain = distance_of(Distillation())(logits, teacher)
    weighted = distance_of(Distillation(boundary=4.0))(logits, teacher)
    assert float(plain) == pytest.approx(5 / 6 * 0.5)  # each other voxel is half wrong in both classes
    assert float(weighted) == pytest.approx((4 * 1 + 5) * 0.5 / (4 * 1 + 2 * 5))


def test_samples_without_labels_count_for_the_teacher_alone(batch):
    logits, labels, teacher = batch
    result = distillation_loss(logits, labels[:1], teacher, lambda_=0.4, distance=SQUARED)
    expected = 0.4 * segmentation_loss(logits[:1], labels[:1]) + 0.6 * probability_mse(logits, teacher)
    torch.testing.assert_close(result["loss"], expected)


def test_a_temperature_that_would_be_ignored_is_refused():
    with pytest.raises(UsageError, match="has no temperature"):
        load_config("phantom", ["student.distillation.temperature=2"])
    settings = load_config("phantom", ["student.distillation={loss: kl, temperature: 2}"]).student.distillation
    logits, teacher = torch.randn(1, 3, 2, 2, 2), torch.randn(1, 3, 2, 2, 2).softmax(1)
    assert torch.equal(distance_of(settings)(logits, teacher), kl_divergence(logits, teacher, temperature=2.0))


def test_soft_dice_is_zero_only_for_the_teachers_own_probabilities(batch):
    logits, _, teacher = batch
    assert float(soft_dice(teacher.log(), teacher)) == pytest.approx(0, abs=1e-6)
    student = logits.softmax(1)
    expected = 0.0
    for of_class in (1, 2):
        q, p = student[:, of_class], teacher[:, of_class]
        expected += float(1 - 2 * (q * p).sum() / (q.square() + p.square()).sum()) / 2
    assert float(soft_dice(logits, teacher)) == pytest.approx(expected, rel=1e-5)
    settings = Distillation(dice=3.0)
    total = distance_of(settings)(logits, teacher)
    assert float(total) == pytest.approx(float(probability_mse(logits, teacher)) + 3 * expected, rel=1e-5)


def test_a_small_class_weighs_in_soft_dice_as_much_as_a_large_one():
    labels = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    labels[..., :5] = 1
    labels[..., 9, 9] = 2
    teacher = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    without_small, without_large = 30 * teacher, 30 * teacher
    without_small = torch.where(labels[:, None] == 2, torch.tensor([30.0, 0, 0]).view(1, 3, 1, 1, 1), without_small)
    without_large = torch.where(labels[:, None] == 1, torch.tensor([30.0, 0, 0]).view(1, 3, 1, 1, 1), without_large)
    assert float(soft_dice(without_small, teacher)) == pytest.approx(0.5, abs=1e-3)
    assert float(soft_dice(without_large, teacher)) == pytest.approx(0.5, abs=1e-3)
    assert float(probability_mse(without_large, teacher)) > 40 * float(probability_mse(without_small, teacher))


def test_balanced_classes_have_the_same_weight_in_all():
    labels = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    labels[0, 0, 0, 0], labels[1, 0, :2] = 1, 3
    teacher = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).float()
    weights = class_weights(teacher)
    sums = [float(weights[labels == value].sum()) for value in (0, 1, 3)]
    assert sums == pytest.approx([32 / 3] * 3)
    logits = torch.randn(2, 5, 1, 4, 4)
    squares = (logits.softmax(1) - teacher).square().sum(1)
    balanced = distance_of(Distillation(balance_classes=True))(logits, teacher)
    expected = torch.stack([squares[labels == value].mean() for value in (0, 1, 3)]).mean()
    torch.testing.assert_close(balanced, expected)
    both = distance_of(Distillation(balance_classes=True, boundary=2.0))(logits, teacher)
    product = weights * boundary_weights(teacher, 2.0)
    torch.testing.assert_close(both, (squares * product).sum() / product.sum())
