"""The gate: what a converted model may lose. Pure functions; a refusal is a GateRefusedError."""

from collections.abc import Callable, Sequence

import numpy as np

from ...errors import GateRefusedError
from ...evaluation.records import DiceByCase
from ...volumes.prompts import PatchPrompts
from ..runtime.judgement import ClassDrop

SENSITIVITY = 1e-3  # least change of a probability between different inputs; rounding is a thousand times smaller
_SUM_TOLERANCE = 1e-3


def compare(reference: DiceByCase, converted: DiceByCase) -> list[ClassDrop]:
    """What each class lost, from the Dice of the torch network's masks and of the converted model's.

    A case in which a class is absent from the truth and from both masks says nothing and is left out. When only one
    of the two masks leaves an absent class out, that one scores 1: inventing an organ counts as a loss.
    """
    assert reference.keys() == converted.keys(), (sorted(reference), sorted(converted))
    drops = []
    for name in dict.fromkeys(name for classes in reference.values() for name in classes):
        pairs = {case: (reference[case][name], converted[case][name]) for case in reference}
        scored = {
            case: tuple(1.0 if dice is None else dice for dice in pair)
            for case, pair in pairs.items()
            if pair != (None, None)
        }
        if not scored:
            drops.append(ClassDrop(name, None, None, None, 0, None, None))
            continue
        mean_before, mean_after = (float(np.mean([pair[i] for pair in scored.values()])) for i in range(2))
        worst = max(scored, key=lambda case: scored[case][0] - scored[case][1])
        worst_drop = scored[worst][0] - scored[worst][1]
        drop = mean_before - mean_after
        drops.append(ClassDrop(name, mean_before, mean_after, drop, len(scored), worst, worst_drop))
    return drops


def require_accuracy(drops: Sequence[ClassDrop], *, max_drop: float, per_class: bool = True) -> None:
    """Refuse a class whose mean Dice fell by more than `max_drop` (without `per_class`: when the mean over the classes
    did), and a comparison without any scored class."""
    judged = [drop for drop in drops if drop.drop is not None]
    if not judged:
        raise GateRefusedError("no class occurs in the validation cases, so there is nothing to judge the package by.")
    mean = float(np.mean([drop.drop for drop in judged if drop.drop is not None]))
    if not per_class and mean <= max_drop:
        return
    lost = [
        f"{d.name}: Dice {d.torch:.4f} -> {d.converted:.4f}, a drop of {d.drop:.4f} over {d.cases} cases; "
        f"the most, {d.worst_drop:.4f}, in case {d.worst_case}"
        for d in judged
        if d.drop is not None and d.drop > max_drop
    ]
    if lost or not per_class:
        where = "" if per_class else f", {mean:.4f} in the mean"
        raise GateRefusedError(f"more than {max_drop:g} of Dice was lost{where}. {'. '.join(lost)}.")


def require_calibration(patches: Sequence[np.ndarray]) -> None:
    """Refuse calibration patches [C, *patch] that show nothing: each of one value throughout, or all of them alike."""
    empty = sum(float(np.ptp(patch)) == 0 for patch in patches)
    if empty == len(patches):
        raise GateRefusedError(
            f"all {len(patches)} calibration patches are empty (one value throughout), so no range of any layer can be "
            "learned from them. Check the training scans and the plan's intensity rules."
        )
    if len(patches) > 1 and all(np.array_equal(patches[0], patch) for patch in patches[1:]):
        raise GateRefusedError(
            f"all {len(patches)} calibration patches are the same, so the ranges of one place would stand for all. "
            "Check the training scans, or raise deployment.calibration."
        )


def shown_the_middle(infer: Callable[..., np.ndarray], *, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A network that finds nothing without prompts, shown a box about the middle half of every patch as each class."""

    def shown(patches: np.ndarray) -> np.ndarray:
        count, _, *patch = patches.shape
        sides = np.array(patch, np.float32)
        box = np.concatenate([sides // 4, np.maximum(sides * 3 // 4, 1) - 1])
        boxes = np.broadcast_to(box, (count, classes - 1, 6)).copy()
        points, labels = np.zeros((count, classes - 1, 1, 3), np.float32), np.full((count, classes - 1, 1), -1)
        return infer(patches, PatchPrompts(points, labels, boxes))

    return shown


def require_sensible(
    infer: Callable[[np.ndarray], np.ndarray], patches: Sequence[np.ndarray], *, subject: str
) -> list[np.ndarray]:
    """Refuse a network whose answers are not probabilities, or do not depend on what it is shown; else the answers.

    `infer` maps [N, C, *patch] to probabilities [N, K, *patch]; `patches` are different prepared patches [C, *patch].
    """
    answers = []
    for index, patch in enumerate(patches):
        answer = infer(patch[None])[0]
        if not np.isfinite(answer).all():
            raise GateRefusedError(
                f"{subject} gives {int((~np.isfinite(answer)).sum())} values that are not finite for patch {index}."
            )
        off = float(np.abs(answer.sum(0) - 1).max())
        if off > _SUM_TOLERANCE or answer.min() < -_SUM_TOLERANCE:
            raise GateRefusedError(f"{subject} gives no probabilities: they miss a sum of 1 by {off:.3g}.")
        answers.append(answer)
    change = max((float(np.abs(a - answers[0]).max()) for a in answers[1:]), default=0.0)
    if change < SENSITIVITY:
        raise GateRefusedError(
            f"{subject} answers {len(answers)} different patches with the same probabilities, to within {change:.2g}; "
            f"expected a difference of {SENSITIVITY:g} or more. It has not learned, or conversion broke it."
        )
    return answers
