"""By which rules masks are scored, and which of the scores are printed."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import UsageError

METRICS = ("dice", "iou", "hd95_mm", "hd95_voxels", "asd_mm", "nsd")
TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95, mm",
    "hd95_voxels": "HD95, voxels",
    "asd_mm": "ASD, mm",
    "nsd": "NSD",
}
_CHOICES = {
    "surface": ("voxels", "subvoxel"),
    "hd95": ("larger", "pooled"),
    "both_absent": ("skip", "perfect"),
    "average": ("classes", "cases"),
    "unit": ("scan", "frame"),
}


@dataclass(frozen=True, kw_only=True)
class ScoringRules:
    """How masks are scored; the defaults are those of every figure that does not name its rules.

    - `metrics`: what is printed, of METRICS. `hd95_voxels` is computed only where it is named.
    - `tolerance_mm`: how far apart two surfaces count as one in the NSD; `class_tolerances_mm` by class name.
    - `surface`: "voxels" counts the outermost voxels of a mask, each as much as any other (MONAI); "subvoxel" takes the
      surface between the voxels, each piece by its area (Nikolov et al. 2018, DeepMind's surface-distance).
    - `hd95`: the "larger" of the two directed percentiles, or that of both directions "pooled" (MedPy).
    - `both_absent`: a class that neither truth nor prediction holds is left out ("skip") or "perfect" in that case.
    - `average`: the mean over "classes" of their means over cases, or over "cases" of their means over classes.
    - `unit`: a case is a whole "scan" (of a video all frames together), or each "frame" of a video by itself.
    """

    metrics: tuple[str, ...] = ("dice",)
    tolerance_mm: float = 1.0
    class_tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    surface: str = "voxels"
    hd95: str = "larger"
    both_absent: str = "skip"
    average: str = "classes"
    unit: str = "scan"

    def tolerance_of(self, name: str) -> float:
        """The tolerance in mm of the class of that name."""
        return self.class_tolerances_mm.get(name, self.tolerance_mm)

    def check_classes(self, names: Iterable[str]) -> None:
        """Raises UsageError for a tolerance of a class that is none of `names`."""
        names = list(names)
        if unknown := [name for name in self.class_tolerances_mm if name not in names]:
            raise UsageError(f"evaluation.class_tolerances_mm: no class {unknown[0]!r}; the classes are {names}")

    @property
    def absent_rule(self) -> str:
        """What became of classes that are absent from a mask, for readers of a table."""
        both = {
            "skip": "is not scored in that case and left out of the means",
            "perfect": "counts in that case as a perfect score",
        }
        return (
            f"A class that is absent from both truth and prediction {both[self.both_absent]}. One that is present in "
            "only one of them scores Dice, IoU and NSD 0, and as its HD95 and ASD the diagonal of the scan."
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"metrics": list(self.metrics), "class_tolerances_mm": dict(self.class_tolerances_mm)}

    @classmethod
    def from_json(cls, values: Any) -> "ScoringRules":
        """Read what to_json gave. Raises TypeError for anything else."""
        if not isinstance(values, dict) or (unknown := values.keys() - {each.name for each in fields(cls)}):
            raise TypeError(f"rules are {values!r}" if not isinstance(values, dict) else f"unknown rules {unknown}")
        keywords: dict[str, Any] = values | {"metrics": tuple(values.get("metrics", ("dice",)))}
        rules = cls(**keywords)
        tolerances = [rules.tolerance_mm, *dict(rules.class_tolerances_mm).values()]
        sound = all(type(value) in (int, float) and value > 0 for value in tolerances)
        if not sound or not all(getattr(rules, name) in choices for name, choices in _CHOICES.items()):
            raise TypeError(f"rules are {values!r}")
        if not rules.metrics or not set(rules.metrics) <= set(METRICS):
            raise TypeError(f"metrics are {rules.metrics!r}")
        return rules


DEFAULT_RULES = ScoringRules()
