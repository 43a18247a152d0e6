"""What a finished run says of itself: the typed record that a run folder keeps as ``metrics.json``."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..configs.evaluation_schema import Evaluation
from ..evaluation.records import CaseScores, flat_record
from ..evaluation.rules import ScoringRules


def scoring_rules(settings: Evaluation, class_names: Iterable[str]) -> ScoringRules:
    """The rules that a config's section says, for these classes. Raises UsageError for a tolerance of any other."""
    rules = ScoringRules(**settings.model_dump())
    rules.check_classes(class_names)
    return rules


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """The best Dice on the validation cases (pooled, on the plan's grid), and the step after which it was reached."""

    dice: float
    step: int


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Optimiser steps, wall-clock seconds, steps left out for a loss that was not finite, and parameters as counts."""

    steps: int
    seconds: float
    skipped_steps: int
    parameters: int
    trained_parameters: int


@dataclass(frozen=True, kw_only=True)
class RunMetrics(TrainingCost):
    """The cost of a run, how good it was on validation, and its scores on whole test scans.

    `validation` is None for a published model as it is, `test` where there are no test scans. `test_prompts` says what
    the network was shown of each test scan's mask, as `--prompt-from-truth` spells it, None for nothing. `memory`
    is the memory plan that the run ended with, None without `--vram`.
    """

    validation: BestValidation | None
    test: CaseScores | None
    test_prompts: str | None = None
    memory: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A run without a memory plan has no key ``memory``."""
        values = asdict(self) | {"test": self.test and self.test.to_json()}
        return {name: value for name, value in values.items() if name != "memory" or value is not None}

    @classmethod
    def from_json(cls, values: Any) -> "RunMetrics":
        """Read what to_json gave. Raises KeyError, TypeError and AttributeError for anything else."""
        return cls(
            **asdict(flat_record(TrainingCost, values)),
            validation=None if values["validation"] is None else flat_record(BestValidation, values["validation"]),
            test=None if values["test"] is None else CaseScores.from_json(values["test"]),
            test_prompts=values.get("test_prompts"),
            memory=values.get("memory"),
        )
