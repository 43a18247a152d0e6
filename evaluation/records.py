"""Scores as records, and how they stand in JSON: in a run's metrics.json, and in what `samkd evaluate -o` writes."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, TypeVar, get_type_hints

from .rules import DEFAULT_RULES, ScoringRules

T = TypeVar("T")
ValuesByCase = Mapping[str, Mapping[str, float | None]]  # the values of one metric by class name, by case name
DiceByCase = ValuesByCase
_PERFECT = {"dice": 1.0, "iou": 1.0, "hd95_mm": 0.0, "asd_mm": 0.0, "nsd": 1.0}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Dice, IoU and NSD (0 to 1), and the 95th percentile (HD95) and mean (ASD) of the surface distances.

    None where not scored; HD95 in voxels also where nobody asked for it, any but Dice and IoU also where an older
    release wrote the scores.
    """

    dice: float | None
    iou: float | None
    hd95_mm: float | None = None
    nsd: float | None = None
    hd95_voxels: float | None = None
    asd_mm: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassScore(Scores):
    """The scores of one class in one case, with the class's number in the masks and its sizes in voxels."""

    number: int
    name: str
    truth_voxels: int
    predicted_voxels: int

    @property
    def missed(self) -> bool:
        """Whether the truth has the class and the prediction nothing of it."""
        return self.truth_voxels > 0 and self.predicted_voxels == 0

    @property
    def invented(self) -> bool:
        """Whether the prediction has the class and the truth nothing of it."""
        return self.predicted_voxels > 0 and self.truth_voxels == 0

    def under(self, rules: ScoringRules) -> "ClassScore":
        """The row as the rules count it where both masks lack the class."""
        if rules.both_absent == "skip" or self.dice is not None:
            return self
        return replace(self, **_PERFECT, hd95_voxels=0.0 if "hd95_voxels" in rules.metrics else None)

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
    """The mean scores of one class over those cases in which it was scored, and how many `cases` these are.

    In `missed` cases the truth has the class and the prediction nothing of it, in `invented` ones it is the other way.
    """

    cases: int
    missed: int = 0
    invented: int = 0


@dataclass(frozen=True)
class ScoreSummary:
    """Means over cases by class name, and the `mean` of these over the classes that were scored at all."""

    per_class: dict[str, ClassMean]
    mean: Scores

    def dice_by_class(self) -> dict[str, float | None]:
        return self.by_class("dice")

    def by_class(self, metric: str) -> dict[str, float | None]:
        """One metric of every class by its name, and last of all their "mean"."""
        per_class = {name: getattr(row, metric) for name, row in self.per_class.items()}
        return per_class | {"mean": getattr(self.mean, metric)}


@dataclass(frozen=True)
class CaseScores:
    """The scores of every case by its name, class by class, their summary, and the rules that both follow."""

    summary: ScoreSummary
    cases: dict[str, tuple[ClassScore, ...]]
    rules: ScoringRules = DEFAULT_RULES

    def dice(self) -> DiceByCase:
        return self.values("dice")

    def values(self, metric: str) -> ValuesByCase:
        """One metric of every case and class, as the rules count it."""
        rules = self.rules
        return {
            case: {row.name: getattr(row.under(rules), metric) for row in rows} for case, rows in self.cases.items()
        }

    def to_json(self) -> dict[str, Any]:
        cases = {name: [row.to_json() for row in rows] for name, rows in self.cases.items()}
        return {"summary": asdict(self.summary), "cases": cases, "rules": self.rules.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> "CaseScores":
        """Read what to_json gave. Raises KeyError, TypeError and AttributeError for anything else.

        What older releases did not count in their summary, cases missed and invented, is counted here.
        """
        summary = values["summary"]
        cases = {name: tuple(map(ClassScore.from_json, rows)) for name, rows in values["cases"].items()}
        per_class = {
            name: flat_record(ClassMean, presence_counts(name, cases) | row)
            for name, row in summary["per_class"].items()
        }
        rules = ScoringRules.from_json(values.get("rules", {}))
        return cls(ScoreSummary(per_class, flat_record(Scores, summary["mean"])), cases, rules)


def presence_counts(name: str, cases: Mapping[str, Sequence[ClassScore]]) -> dict[str, int]:
    """In how many cases the class of that name was missed, and in how many it was invented."""
    rows = [row for each in cases.values() for row in each if row.name == name]
    return {"missed": sum(row.missed for row in rows), "invented": sum(row.invented for row in rows)}


def flat_record(kind: type[T], values: Any) -> T:
    """The record of that kind whose fields, numbers and texts alone, stand in the JSON object `values`.

    A field with a default may be missing. Raises KeyError for any other that is, TypeError for one that holds a value
    of another type.
    """
    optional = {each.name for each in fields(kind) if each.default is not MISSING}  # type: ignore[arg-type]
    record = {}
    for name, hint in get_type_hints(kind).items():
        if name in optional and name not in values:
            continue
        value = record[name] = values[name]
        whole = isinstance(value, int) and isinstance(0.0, hint)  # JSON may write a number as 1 instead of 1.0
        if isinstance(value, bool) or not (whole or isinstance(value, hint)):
            raise TypeError(f"{name} is {value!r}")
    return kind(**record)
