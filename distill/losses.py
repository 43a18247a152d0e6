"""What a student learns from its teachers: pure functions of student logits and teacher probabilities.

Both are ``[B, K, D, H, W]``. Every distance is summed over classes, so that its scale does not fall with their number,
and averaged over voxels, with ``weights`` [B, D, H, W] if given; a config may choose the mean over classes. Sums are
over the batches of all devices that train together.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..configs.schema import Distillation
from ..training.losses import segmentation_loss
from ..training.ranks import total

FLOOR = 1 / 510  # half a level of the cached targets: below it a probability's logarithm is not known

SMOOTH = 1e-5  # as in the Dice loss of L_seg

Distance = Callable[[Tensor, Tensor], Tensor]


def probability_mse(logits: Tensor, teacher: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Squared distance of class probabilities (Li et al. 2023, AutoSAM Adapter, L_mse of eq. 2)."""
    return _mean((logits.softmax(1) - teacher).square().sum(1), weights)


def kl_divergence(logits: Tensor, teacher: Tensor, *, temperature: float, weights: Tensor | None = None) -> Tensor:
    """``T^2 KL(teacher || student)``, both softened by the temperature T (Hinton et al. 2015, section 2)."""
    target = (_logits_of(teacher) / temperature).log_softmax(1)
    found = (logits / temperature).log_softmax(1)
    return _mean(temperature**2 * (target.exp() * (target - found)).sum(1), weights)


def logit_mse(logits: Tensor, teacher: Tensor, *, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Squared distance of logits over T, each less its mean over classes, which no probability depends on.

    Ba & Caruana 2014, eq. 1; the limit of kl_divergence for a high temperature (Hinton et al. 2015, section 2.1).
    """
    target, found = (values - values.mean(1, keepdim=True) for values in (_logits_of(teacher), logits))
    return _mean(((found - target) / temperature).square().sum(1), weights)


def boundary_weights(teacher: Tensor, extra: float) -> Tensor:
    """``1 + extra`` where the teacher's likeliest class is not that of all 26 neighbours, else 1; [B, D, H, W].

    Where two organs meet is where a student errs most and few voxels lie (cf. Wen et al. 2021, boundary-guided
    distillation).
    """
    labels = teacher.argmax(1).float()[:, None]
    highest, lowest = F.max_pool3d(labels, 3, 1, 1), -F.max_pool3d(-labels, 3, 1, 1)
    return 1 + extra * (highest > lowest).float()[:, 0]


def class_weights(teacher: Tensor) -> Tensor:
    """Every voxel's share of equal parts for the teacher's likeliest classes in the batch; [B, D, H, W], mean 1.

    A class of few voxels then weighs as much as the background, as in a cross-entropy weighted by inverse frequencies.
    """
    labels = teacher.argmax(1)
    counts = total(torch.bincount(labels.flatten(), minlength=teacher.shape[1]).to(teacher))
    return (counts.sum() / (counts * (counts > 0).sum()))[labels]


def soft_dice(logits: Tensor, teacher: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """``1 - 2 sum(q p) / (sum(q^2) + sum(p^2))``, the mean over foreground classes; 0 only where both are the same.

    Milletari et al. 2016, whose sums over the whole batch take probabilities in place of a mask. Each class counts the
    same, however few voxels it has.
    """
    student = logits.softmax(1)[:, 1:]
    target = teacher[:, 1:]
    over = (0, *range(2, logits.ndim))
    voxels = 1 if weights is None else weights[:, None]
    overlap = total((voxels * student * target).sum(over))
    sizes = total((voxels * (student.square() + target.square())).sum(over))
    return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()


def distance_of(settings: Distillation) -> Distance:
    """The distance that a config names, as a function of logits and teacher probabilities."""
    if settings.loss == "mse":
        distance: Callable[..., Tensor] = probability_mse
    else:
        named = {"kl": kl_divergence, "logits": logit_mse}[settings.loss]
        distance = partial(named, temperature=settings.temperature)

    def distance_to(logits: Tensor, teacher: Tensor) -> Tensor:
        target = hard_mask(teacher) if settings.hard_masks else teacher
        weights = voxel_weights(settings, teacher)
        loss = distance(logits, target, weights=weights)
        if settings.over_classes == "mean":
            loss = loss / logits.shape[1]
        return loss + settings.dice * soft_dice(logits, target, weights=weights) if settings.dice else loss

    return distance_to


def voxel_weights(settings: Distillation, teacher: Tensor) -> Tensor | None:
    """The weights [B, D, H, W] of voxels that a config names, multiplied; None where all are 1."""
    weights = boundary_weights(teacher, settings.boundary) if settings.boundary else None
    if settings.balance_classes:
        balance = class_weights(teacher)
        weights = balance if weights is None else weights * balance
    return weights


def hard_mask(teacher: Tensor) -> Tensor:
    """The teacher's likeliest class as probabilities of 0 and 1."""
    return F.one_hot(teacher.argmax(1), teacher.shape[1]).movedim(-1, 1).to(teacher)


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    *,
    lambda_: float,
    distance: Distance,
    **weights: float,
) -> dict[str, Tensor]:
    """``L = lambda * L_seg + (1 - lambda) * L_mse`` (Li et al. 2023, AutoSAM Adapter, eq. 2).

    ``labels`` [N, D, H, W] are those of the first N <= B samples; only the teacher knows the others. A term whose
    weight is zero is not computed: lambda = 1 needs no teacher, lambda = 0 ignores the labels. Returns the total under
    ``loss`` and each term computed, for the log.
    """
    terms: dict[str, Tensor] = {}
    loss = logits.new_zeros(())
    if lambda_ > 0:
        terms["segmentation"] = segmentation_loss(logits[: len(labels)], labels, **weights)
        loss = loss + lambda_ * terms["segmentation"]
    if lambda_ < 1:
        assert teacher is not None
        terms["distillation"] = distance(logits, teacher)
        loss = loss + (1 - lambda_) * terms["distillation"]
    return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def _logits_of(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=FLOOR).log()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else total((values * weights).sum()) / total(weights.sum())
