"""The Dice that training steers by: pooled over the validation cases, on the plan's grid."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..volumes.plan import Plan
from ..volumes.prompts import GridPrompts
from ..volumes.sliding_window import sliding_window
from .predictor import make_predictor
from .prepared import PreparedCase
from .prompt_sampling import PromptSampler
from .ranks import gathered, share_of


class PooledDice:
    """Dice per class over the voxels of all cases together, and the mean over the foreground classes."""

    def __init__(self, class_names: dict[int, str]) -> None:
        self.class_names = class_names
        self.overlap, self.total = np.zeros(len(class_names)), np.zeros(len(class_names))

    def add(self, prediction: np.ndarray, truth: np.ndarray | None) -> None:
        """Count the voxels of one case; both are label maps [D, H, W]."""
        for value in self.class_names:
            predicted, true = prediction == value, truth == value
            self.overlap[value] += np.count_nonzero(predicted & true)
            self.total[value] += np.count_nonzero(predicted) + np.count_nonzero(true)

    def of_all_ranks(self) -> "PooledDice":
        """The counts of the cases of every device together: whole numbers, whose sum does not depend on any order."""
        pooled = PooledDice(self.class_names)
        for overlap, total in gathered((self.overlap, self.total)):
            pooled.overlap += overlap
            pooled.total += total
        return pooled

    def scores(self) -> dict[str, float]:
        """Dice by class name, and ``mean``; a class in no prediction and no truth is left out."""
        present = [value for value in self.class_names if value and self.total[value]]
        dice = {self.class_names[value]: float(2 * self.overlap[value] / self.total[value]) for value in present}
        return {"mean": float(np.mean(list(dice.values()))) if dice else 0.0, **dice}


def grid_dice(
    network: torch.nn.Module,
    cases: Sequence[PreparedCase],
    *,
    plan: Plan,
    class_names: dict[int, str],
    prompts: PromptSampler | None = None,
) -> dict[str, float]:
    """Dice per class and their mean on the plan's grid: the quick score that training steers by.

    Voxels of all cases are pooled, so that an organ absent from one case needs no rule. A network that learns with
    ``prompts`` in some of its steps is scored both ways, and by both: each number is the probability of a prompted step
    times the prompted score and the rest times the automatic one, whose means are added as "prompted" and "automatic".
    Of several devices each segments its share of the cases, and all return the scores of all.
    """
    predictor = make_predictor(network)

    def score(prompts_of: Callable[[PreparedCase], GridPrompts | None]) -> dict[str, float]:
        pooled = PooledDice(class_names)
        for case in share_of(cases):
            image = np.asarray(case.image)
            probabilities = sliding_window(
                image, plan.patch, plan.overlap, predictor, num_classes=len(class_names), prompts=prompts_of(case)
            )
            pooled.add(probabilities.argmax(0), case.labels)
        return pooled.of_all_ranks().scores()

    automatic = score(lambda _: None)
    if prompts is None:
        return automatic
    prompted = score(lambda case: prompts.as_a_user(np.asarray(case.labels), case.spacing))
    probability = prompts.settings.share
    # A class of no truth that one of them predicts scores 0 there, and is not in the other.
    both = {
        name: probability * prompted.get(name, 0.0) + (1 - probability) * automatic.get(name, 0.0)
        for name in automatic | prompted
    }
    return {**both, "automatic": automatic["mean"], "prompted": prompted["mean"]}
