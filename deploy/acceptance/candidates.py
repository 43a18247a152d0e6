"""Each candidate measured through the deployed pipeline, against the torch network and the truth; the one to pack."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import GateRefusedError
from ...evaluation.records import CaseScores, DiceByCase, Scores
from ...evaluation.scores import case_scores, score_case
from ...volumes.geometry import Volume
from ...volumes.prompts import ScanPrompts
from ..export.base import Candidate
from ..export.sensitivity import signal_to_noise
from ..runtime.judgement import (
    CandidateResult,
    ClassDrop,
    ConvertedScores,
    GeometryResult,
    PromptedResult,
    ValidationScores,
)
from ..runtime.manifest import Manifest
from ..runtime.package import Package
from .gate import compare, require_accuracy, require_sensible, shown_the_middle
from .processor import Processor


@dataclass(frozen=True)
class ValidationCase:
    """A scan that the package is judged on: its truth, and the mask that the torch network gives (both [D, H, W]).

    `prompts` are what a network is shown that finds nothing without.
    """

    name: str
    volume: Volume
    truth: np.ndarray
    reference: np.ndarray
    prompts: ScanPrompts | None = None


@dataclass(frozen=True)
class Prompted:
    """What a promptable student was shown for each validation case (a "point" or "box" of each class, from the truth),
    and the masks [D, H, W] that the torch network then gave."""

    kind: str
    prompts: Sequence[ScanPrompts]
    reference: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class AcceptanceCriteria:
    """How a conversion is judged: on which cases, and how much of the mean Dice it may lose.

    `max_drop` holds for every class, without `per_class` for the mean over the classes. A promptable student is judged
    once more with what it was `prompted` with.
    """

    validation: Sequence[ValidationCase]
    max_drop: float
    per_class: bool = True
    prompted: Prompted | None = None


@dataclass(frozen=True)
class Selection:
    """The accepted candidate's package, what each class lost in it, and the results of all candidates that ran.

    `seconds` and `cpu_seconds` are what the package took for a validation scan, in the mean: by the clock, and of the
    process on all cores. `geometries` is what other patches and
    overlaps did, where they were tried.
    """

    package: Package
    drops: Sequence[ClassDrop]
    results: Sequence[CandidateResult]
    seconds: float
    cpu_seconds: float = 0.0
    geometries: Sequence[GeometryResult] = ()


class AcceptanceTest:
    """The criteria, with the scores of the torch network to compare with.

    `probabilities` [K, *patch] are what the torch network gives for `probes` [C, *patch]. The engines compute on
    `processor`.
    """

    def __init__(
        self,
        criteria: AcceptanceCriteria,
        *,
        class_names: Mapping[int, str],
        probes: Sequence[np.ndarray],
        probabilities: Sequence[np.ndarray],
        processor: Processor | None = None,
    ) -> None:
        self.probes = probes
        self.processor = processor or Processor()
        self._criteria, self._class_names = criteria, class_names
        self._probabilities = probabilities
        self._truths = [case.truth for case in criteria.validation]
        self._reference = [case.reference for case in criteria.validation]
        self._before = self._score(self._reference, self._truths).dice()
        prompted = criteria.prompted
        self._before_prompted = self._score(prompted.reference, self._truths).dice() if prompted else {}

    def judge(self, package: Package, result: CandidateResult) -> tuple[Sequence[ClassDrop], float, float]:
        """Measure a candidate into `result`, and return what each class lost, and the mean seconds for a scan by the
        clock and of the processor.

        Raises GateRefusedError; what could be measured stands in `result` all the same.
        """
        infer = package.engine
        if package.prompts_required:
            infer = shown_the_middle(infer, classes=len(self._class_names))
        probabilities = require_sensible(infer, self.probes, subject="the converted model")
        ratio = signal_to_noise(self._probabilities, probabilities)
        result.snr_db = ratio if math.isfinite(ratio) else None
        started, spent = time.perf_counter(), self.processor.spent()
        masks = [package.segment(case.volume, prompts=case.prompts) for case in self._criteria.validation]
        seconds = (time.perf_counter() - started) / len(masks)
        cpu_seconds = result.cpu_seconds = (self.processor.spent() - spent) / len(masks)
        result.agreement, result.per_class, drops = self._measure(masks, self._reference, self._before)
        self._require_accuracy(drops)
        if self._criteria.prompted is not None:
            self._judge_prompted(package, result, self._criteria.prompted)
        return drops, seconds, cpu_seconds

    def _judge_prompted(self, package: Package, result: CandidateResult, prompted: Prompted) -> None:
        pairs = zip(self._criteria.validation, prompted.prompts, strict=True)
        masks = [package.segment(case.volume, prompts=prompts) for case, prompts in pairs]
        agreement, per_class, drops = self._measure(masks, prompted.reference, self._before_prompted)
        result.prompted = PromptedResult(prompted.kind, agreement, per_class)
        try:
            self._require_accuracy(drops)
        except GateRefusedError as refusal:
            raise GateRefusedError(f"with a {prompted.kind} for each class, {refusal}") from None

    def _require_accuracy(self, drops: Sequence[ClassDrop]) -> None:
        require_accuracy(drops, max_drop=self._criteria.max_drop, per_class=self._criteria.per_class)

    def _measure(
        self, masks: Sequence[np.ndarray], reference: Sequence[np.ndarray], before: DiceByCase
    ) -> tuple[float, dict[str, ConvertedScores], list[ClassDrop]]:
        """The share of voxels with the class of the reference, the scores per class, and what was lost of them."""
        same = sum(int(np.count_nonzero(m == r)) for m, r in zip(masks, reference, strict=True))
        after = self._score(masks, self._truths)
        to_torch = self._score(masks, reference).summary.per_class
        per_class = {
            name: ConvertedScores(mean.dice, mean.hd95_mm, mean.nsd, to_torch=_validation_scores(to_torch[name]))
            for name, mean in after.summary.per_class.items()
        }
        return same / sum(mask.size for mask in masks), per_class, compare(before, after.dice())

    def _score(self, masks: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> CaseScores:
        return case_scores(
            {
                case.name: score_case(
                    mask,
                    truth,
                    spacing=case.volume.geometry.spacing,
                    labels=self._class_names,
                    frames=case.volume.geometry.frames,
                )
                for case, mask, truth in zip(self._criteria.validation, masks, truths, strict=True)
            }
        )


def _validation_scores(mean: Scores) -> ValidationScores:
    return ValidationScores(mean.dice, mean.hd95_mm, mean.nsd)


def select_candidate(
    candidates: Iterable[Candidate],
    test: AcceptanceTest,
    folder: Path,
    *,
    describe: Callable[[Candidate], Manifest],
    faster: bool = False,
) -> Selection:
    """The first candidate of the last precision that passes the test, its model in `folder`.

    `describe` is the manifest of a candidate. With `faster` it must take fewer seconds of the processor than float32,
    which is selected otherwise. float32, the first, has to pass before anything smaller is tried. Raises
    GateRefusedError when no candidate of the requested precision passes, and then names one to fall back on.
    """
    results: list[CandidateResult] = []
    accepted: Selection | None = None
    reference: tuple[Candidate, Selection] | None = None
    for candidate in candidates:
        manifest = describe(candidate)
        result = CandidateResult(manifest.precision, manifest.inference_precision, manifest.quantization)
        results.append(result)
        package = _write_model(candidate, folder, manifest, test.processor)
        try:
            drops, seconds, cpu_seconds = test.judge(package, result)
            accepted = Selection(package, drops, results, seconds, cpu_seconds)
        except GateRefusedError as refusal:
            accepted = None
            result.refusal = str(refusal)
            if candidate.weakest is not None and result.per_class:
                result.refusal += f" The layers that lost most: {'; '.join(candidate.weakest(test.probes[0]))}."
        first = len(results) == 1
        if first and accepted is not None:
            reference = (candidate, accepted)
        if (first and accepted is None) or (not first and accepted is not None):
            break
    if accepted is None:
        raise GateRefusedError("\n".join(map(_verdict, results)))
    if faster and reference is not None and len(results) > 1:
        return _the_faster(reference, accepted, folder, test.processor)
    return accepted


def _the_faster(reference: tuple[Candidate, Selection], other: Selection, folder: Path, on: Processor) -> Selection:
    """The other selection where it takes fewer seconds of the processor than float32's, else that, its model in
    `folder` again."""
    candidate, exact = reference
    if other.cpu_seconds < exact.cpu_seconds:
        return other
    where = f"processors of the class {on.name}" if on.name else "the machine that judged"
    other.results[-1].refusal = (
        f"It passed, but takes {other.cpu_seconds:.2f} s of the processor a scan on {where}, float32 "
        f"{exact.cpu_seconds:.2f} s."
    )
    return replace(exact, package=_write_model(candidate, folder, exact.package.manifest, on))


def _write_model(candidate: Candidate, folder: Path, manifest: Manifest, processor: Processor) -> Package:
    """The package of a candidate, whose model takes the place of the one before it."""
    for old in folder.glob("model.*"):
        old.unlink()
    candidate.write(folder)
    return Package.of(folder, manifest, opener=processor.open_engine)


def _verdict(result: CandidateResult) -> str:
    if result.refusal is None:
        return f"{result.title}: passed. `samkd deploy --precision {result.precision}` packs it."
    return f"{result.title}: {result.refusal}"
