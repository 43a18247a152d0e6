"""The segmentation loss: a pure function of logits and labels."""

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
