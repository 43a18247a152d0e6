"""Segmentation and distillation losses: pure functions of logits, labels and teacher probabilities."""

from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional as F

_dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)


def segmentation_loss(
    logits: Tensor, labels: Tensor, *, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0
) -> Tensor:
    """``L_seg = a * Dice + b * cross-entropy``.

    logits ``[B, K, D, H, W]``, labels ``[B, D, H, W]`` integers in [0, K). Dice is over the foreground classes and
    the whole batch (Milletari et al. 2016; the batch form of Isensee et al. 2021).
    """
    loss = logits.new_zeros(())
    if dice_weight:
        loss = loss + dice_weight * _dice(logits, labels[:, None])
    if cross_entropy_weight:
        loss = loss + cross_entropy_weight * F.cross_entropy(logits, labels.long())
    return loss


def probability_mse(logits: Tensor, teacher: Tensor) -> Tensor:
    """``L_mse``: squared distance of student and teacher class probabilities, ``[B, K, D, H, W]`` both.

    Summed over classes and averaged over voxels, so that its scale does not fall with the number of classes.
    """
    return (logits.softmax(1) - teacher).square().sum(1).mean()


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, *, lambda_: float, **weights: float
) -> dict[str, Tensor]:
    """``L = lambda * L_seg + (1 - lambda) * L_mse`` (Li et al. 2023, AutoSAM Adapter, eq. 2).

    A term whose weight is zero is not computed: lambda = 1 needs no teacher, lambda = 0 ignores the labels.
    Returns the total under ``loss`` and each term computed, for the log.
    """
    terms: dict[str, Tensor] = {}
    loss = logits.new_zeros(())
    if lambda_ > 0:
        terms["segmentation"] = segmentation_loss(logits, labels, **weights)
        loss = loss + lambda_ * terms["segmentation"]
    if lambda_ < 1:
        assert teacher is not None
        terms["mse"] = probability_mse(logits, teacher)
        loss = loss + (1 - lambda_) * terms["mse"]
    return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}
