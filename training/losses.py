"""The segmentation loss: pure functions of logits and labels."""

import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from torch import Tensor
from torch.nn import functional as F

from .ranks import total, world_size

_dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
_focal = FocalLoss(include_background=False, to_onehot_y=True, gamma=2.0, alpha=0.25)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    focal_weight: float = 0.0,
) -> Tensor:
    """``L_seg = a * Dice + b * cross-entropy + c * focal``.

    logits ``[B, K, D, H, W]``, labels ``[B, D, H, W]`` integers in [0, K). Dice is over the foreground classes and
    the whole batch (Milletari et al. 2016; the batch form of Isensee et al. 2021), that of all devices together. The
    focal loss is SAM's: of every
    foreground class against the background, alpha 0.25 and gamma 2, the mean over classes and voxels (Lin et al. 2017).
    """
    loss = logits.new_zeros(())
    if dice_weight:
        loss = loss + dice_weight * _dice_loss(logits, labels)
    if cross_entropy_weight:
        loss = loss + cross_entropy_weight * F.cross_entropy(logits, labels.long())
    if focal_weight:
        loss = loss + focal_weight * _focal(logits - logits[:, :1], labels[:, None].long())
    return loss


def _dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """MONAI's batch Dice; of several devices its sums are over the batches of all, as of one device with that batch."""
    if world_size() == 1:
        return _dice(logits, labels[:, None])
    probabilities = logits.softmax(1)[:, 1:]
    truth = torch.stack([(labels == value) for value in range(1, logits.shape[1])], dim=1).to(probabilities)
    over = (0, *range(2, logits.ndim))
    overlap, sizes = total(torch.stack([(truth * probabilities).sum(over), (truth + probabilities).sum(over)]))
    return (1 - (2 * overlap + _dice.smooth_nr) / (sizes + _dice.smooth_dr)).mean()


def iou_loss(predicted: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The squared error of the IoU ``[B, K - 1, D]`` predicted for every slice's mask of every foreground class.

    A mask is where the class's logit is above the background's, as SAM's is; where neither mask nor class is, the IoU
    is 1. logits ``[B, K, D, H, W]``, labels ``[B, D, H, W]``; masks and their IoU are not learned from.
    """
    classes = torch.arange(1, logits.shape[1], device=labels.device)
    truth = labels[:, None] == classes[:, None, None, None]
    mask = logits[:, 1:].detach() > logits[:, :1].detach()
    overlap = (mask & truth).sum((-2, -1))
    union = (mask | truth).sum((-2, -1))
    return F.mse_loss(predicted, torch.where(union > 0, overlap / union.clamp(min=1), 1.0).to(predicted.dtype))
