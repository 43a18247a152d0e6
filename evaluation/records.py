"""Scores as records, and how they stand in JSON: in a run's metrics.json, and in what `samkd evaluate -o` writes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")
DiceByCase = Mapping[str, Mapping[str, float | None]]  # Dice by class name, by case name
METRICS = ("dice", "iou", "hd95_mm", "nsd")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Dice, IoU and NSD (0 to 1), and the 95th percentile of the surface distances in mm; None where not scored."""

    dice: float | None
    iou: float | None
    hd95_mm: float | None
    nsd: float | None


@dataclass(frozen=True, kw_only=True)
class ClassScore(Scores):
    """The scores of one class in one case, with the class's number in the masks and its sizes in voxels."""

    number: int
    name: str
    truth_voxels: int
    predicted_voxels: int

    def to_json(self) -> dict[str, Any]:
        """The JSON values, in which the number is called "class"."""
        values = asdict(self)
        return {"class": values.pop("number"), "name": values.pop("name"), **values}

    @classmethod
    def from_json(cls, values: Any) -> "ClassScore":
        """Read what to_json gave. Raises KeyError and TypeError for anything else."""
        return flat_record(cls, values | {"number": values["class"]})


@dataclass(frozen=True, kw_only=True)
class ClassMean(Scores):
    """The mean scores of one class over those cases in which it was scored, and how many `cases` these are."""

    cases: int


@dataclass(frozen=True)
class ScoreSummary:
    """Means over cases by class name, and the `mean` of these over the classes that were scored at all."""

    per_class: dict[str, ClassMean]
    mean: Scores

    def dice_by_class(self) -> dict[str, float | None]:
        """The Dice of every class by its name, and last of all their "mean"."""
        return {name: row.dice for name, row in self.per_class.items()} | {"mean": self.mean.dice}


@dataclass(frozen=True)
class CaseScores:
    """The scores of every case by its name, class by class, and their summary."""

    summary: ScoreSummary
    cases: dict[str, tuple[ClassScore, ...]]

    def dice(self) -> DiceByCase:
        return {case: {row.name: row.dice for row in rows} for case, rows in self.cases.items()}

    def to_json(self) -> dict[str, Any]:
        cases = {name: [row.to_json() for row in rows] for name, rows in self.cases.items()}
        return {"summary": asdict(self.summary), "cases": cases}

    @classmethod
    def from_json(cls, values: Any) -> "CaseScores":
        """Read what to_json gave. Raises KeyError, TypeError and AttributeError for anything else."""
        summary = values["summary"]
        per_class = {name: flat_record(ClassMean, row) for name, row in summary["per_class"].items()}
        cases = {name: tuple(map(ClassScore.from_json, rows)) for name, rows in values["cases"].items()}
        return cls(ScoreSummary(per_class, flat_record(Scores, summary["mean"])), cases)


def flat_record(kind: type[T], values: Any) -> T:
    """The record of that kind whose fields, numbers and texts alone, stand in the JSON object `values`.

    Raises KeyError for a field that is missing, TypeError for one that holds a value of another type.
    """
    fields = {}
    for name, hint in get_type_hints(kind).items():
        value = fields[name] = values[name]
        whole = isinstance(value, int) and isinstance(0.0, hint)  # JSON may write a number as 1 instead of 1.0
        if isinstance(value, bool) or not (whole or isinstance(value, hint)):
            raise TypeError(f"{name} is {value!r}")
    return kind(**fields)
