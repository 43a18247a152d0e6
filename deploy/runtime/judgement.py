"""What was judged of a package, as its manifest records it: gate, candidates, geometries, classes, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Gate:
    """What was judged: no class (with `per_class`), or not the mean of all, may lose more than `max_drop` of Dice.

    `per_class` is None in a package that was written before this was recorded.
    """

    max_drop: float
    per_class: bool | None


@dataclass(frozen=True)
class ClassDrop:
    """Mean Dice of one class before (torch) and after (converted) conversion, over the same `cases`."""

    name: str
    torch: float | None
    converted: float | None
    drop: float | None
    cases: int
    worst_case: str | None
    worst_drop: float | None


@dataclass(frozen=True)
class ValidationScores:
    """The mean Dice and NSD (0 to 1) and HD95 (mm) of a class over the validation cases; None where no case has it."""

    dice: float | None
    hd95_mm: float | None
    nsd: float | None


@dataclass(frozen=True)
class ConvertedScores(ValidationScores):
    """The scores of a class against the truth, and `to_torch` those against the masks of the torch network."""

    to_torch: ValidationScores


@dataclass(frozen=True)
class PromptedResult:
    """What one candidate did when it was shown each class by a prompt of that kind.

    `agreement` is the share of all voxels that got the class which the torch network gave with the same prompts.
    """

    kind: str
    agreement: float
    per_class: dict[str, ConvertedScores]


@dataclass
class CandidateResult:
    """What one candidate did.

    `agreement` is the share of all voxels that got the torch network's class, `per_class` the scores by class name;
    `snr_db` is the signal-to-noise ratio of the probabilities in decibels, None for exact ones. `prompted` is what it
    did with prompts. A candidate that was refused before it was measured has none of these. `cpu_seconds` are those of
    the processor for a validation scan; only a package whose speed was measured keeps them.
    """

    precision: str
    inference_precision: str
    quantization: str | None
    refusal: str | None = None
    snr_db: float | None = None
    agreement: float | None = None
    per_class: dict[str, ConvertedScores] = field(default_factory=dict)
    prompted: PromptedResult | None = None
    cpu_seconds: float | None = None

    @property
    def title(self) -> str:
        return f"{self.precision} ({self.quantization})" if self.quantization else self.precision


def accepted(candidates: Sequence[CandidateResult]) -> CandidateResult:
    """The candidate that is packed: the last that was not refused."""
    return next(each for each in reversed(candidates) if each.refusal is None)


def timed_precisions(candidates: Sequence[CandidateResult]) -> str:
    """What the candidates took of the processor, and whether the last gains anything on float32, the first; empty where
    nothing was timed.
    """
    timed = [(each.title, each.cpu_seconds) for each in candidates if each.cpu_seconds is not None]
    if not timed:
        return ""
    line = f"Seconds of the processor a scan: {', '.join(f'{title} {seconds:.2f}' for title, seconds in timed)}."
    (first, least), (last, seconds) = timed[0], timed[-1]
    if len(timed) > 1 and seconds >= least and candidates[-1].refusal is None:
        line += f" {last} passed and is not faster than {first} on the machine that judged: pack {first} for its kind."
    return line


@dataclass(frozen=True)
class GeometryResult:
    """What one geometry of inference did: patches (D, H, W) whose neighbours overlap by that part of them, or from 2 on
    by so many voxels.

    `work` is the number of voxels that the network computes for each voxel of a prepared scan; `dice` and `hd95_mm` are
    means over the classes against the truth, `seconds` and `cpu_seconds` those for a validation scan on the machine
    that judged, by the clock and of the processor. One that was refused before it was measured has none of these.
    `blending` and `crop` are those of a plan.
    """

    patch: tuple[int, int, int]
    overlap: float
    work: float
    refusal: str | None = None
    dice: float | None = None
    hd95_mm: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    blending: str = "gaussian"
    crop: str = "none"

    @property
    def overlap_text(self) -> str:
        """How neighbours overlap, for a table."""
        voxels = " voxels" if self.overlap >= 2 else ""
        plain = ", plain" if self.blending == "plain" else ""
        return f"{self.overlap:g}{voxels}{plain}{', without the air' if self.crop == 'content' else ''}"


def read_candidate(values: Mapping[str, Any]) -> CandidateResult:
    prompted = values.get("prompted")
    return CandidateResult(
        precision=str(values["precision"]),
        inference_precision=str(values["inference_precision"]),
        quantization=optional_text(values["quantization"]),
        refusal=optional_text(values.get("refusal")),
        snr_db=_number(values.get("snr_db")),
        agreement=_number(values.get("agreement")),
        per_class=_converted_scores(values.get("per_class", {})),
        cpu_seconds=_number(values.get("cpu_seconds")),
        prompted=prompted
        and PromptedResult(
            str(prompted["kind"]), float(prompted["agreement"]), _converted_scores(prompted["per_class"])
        ),
    )


def read_geometry_result(values: Mapping[str, Any]) -> GeometryResult:
    d, h, w = map(int, values["patch"])
    return GeometryResult(
        patch=(d, h, w),
        overlap=float(values["overlap"]),
        work=float(values["work"]),
        refusal=optional_text(values.get("refusal")),
        dice=_number(values.get("dice")),
        hd95_mm=_number(values.get("hd95_mm")),
        seconds=_number(values.get("seconds")),
        cpu_seconds=_number(values.get("cpu_seconds")),
        blending=str(values.get("blending", "gaussian")),
        crop=str(values.get("crop", "none")),
    )


def _converted_scores(per_class: Mapping[str, Any]) -> dict[str, ConvertedScores]:
    return {
        name: ConvertedScores(*_scores(row), to_torch=ValidationScores(*_scores(row["to_torch"])))
        for name, row in per_class.items()
    }


def _scores(row: Mapping[str, Any]) -> tuple[float | None, ...]:
    return tuple(_number(row[key]) for key in ("dice", "hd95_mm", "nsd"))


def read_gate(values: Mapping[str, Any]) -> Gate | None:
    if "gate" in values:
        return Gate(float(values["gate"]["max_drop"]), bool(values["gate"]["per_class"]))
    if "scores" in values:  # before it was recorded what the gate judged
        return Gate(float(values["scores"]["max_drop"]), None)
    return None


def read_class_drop(name: str, row: Mapping[str, Any]) -> ClassDrop:
    return ClassDrop(
        name=name,
        torch=_number(row["torch"]),
        converted=_number(row["package"]),
        drop=_number(row["drop"]),
        cases=int(row["cases"]),
        worst_case=optional_text(row.get("worst_case")),
        worst_drop=_number(row.get("worst_drop")),
    )


def score_row(drop: ClassDrop) -> tuple[str, dict[str, Any]]:
    """A row of the table of scores: in the file, the Dice of the converted model is called "package"."""
    row = asdict(drop)
    return row.pop("name"), {"package": row.pop("converted"), **row}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def optional_text(value: Any) -> str | None:
    return None if value is None else str(value)
