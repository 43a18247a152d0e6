"""The conversion ladder: each rung measured through the deployed pipeline, against the torch network and the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GateRefusedError
from ...evaluation.scores import score_case, summarise
from ...volumes.geometry import Volume
from ...volumes.prompts import ScanPrompts
from ..export.registry import Rung
from ..runtime.package import Package
from .gate import ClassDrop, Rows, compare, require_accuracy, require_sensible

HeldOut = Sequence[tuple[str, Volume, np.ndarray]]
_KEPT = ("dice", "hd95_mm", "nsd")


@dataclass
class Step:
    """What one rung did. `per_class` holds Dice, HD95 and NSD against the truth and, as "to_torch", against the masks
    of the torch network; `agreement` is the share of all voxels that got the network's class; `snr_db` is that of the
    probabilities, None for exact ones. `prompted` holds "kind", and "agreement" and "per_class" for masks with prompts.
    A rung that was refused before it was measured has none of these."""

    precision: str
    inference_precision: str
    quantization: str | None
    refusal: str | None = None
    snr_db: float | None = None
    agreement: float | None = None
    per_class: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompted: dict[str, Any] | None = None
    drops: tuple[ClassDrop, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.precision} ({self.quantization})" if self.quantization else self.precision

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, **{key: value for key, value in asdict(self).items() if key != "drops"}}


@dataclass(frozen=True)
class Prompted:
    """What a promptable student was shown for each held-out case (a "point" or "box" of each class, from the truth),
    and the masks [D, H, W] that the torch network then gave."""

    kind: str
    prompts: Sequence[ScanPrompts]
    reference: Sequence[np.ndarray]


class Jury:
    """The held-out cases (name, scan, truth [D, H, W]), and what the torch network says of them.

    `reference` are its masks, `answers` its probabilities [K, *patch] for `probes` [C, *patch].
    """

    def __init__(
        self,
        held_out: HeldOut,
        reference: Sequence[np.ndarray],
        *,
        labels: Mapping[int, str],
        probes: Sequence[np.ndarray],
        answers: Sequence[np.ndarray],
        max_drop: float,
        per_class: bool,
        prompted: Prompted | None = None,
    ) -> None:
        self._held_out, self._reference, self._labels = held_out, reference, labels
        self.probes, self._answers = probes, answers
        self._max_drop, self._per_class = max_drop, per_class
        self._prompted = prompted
        self._truths = [truth for _, _, truth in held_out]
        self._before = self._score(reference, self._truths)
        self._before_prompted = self._score(prompted.reference, self._truths) if prompted else {}

    def judge(self, package: Package, step: Step) -> None:
        """Measure a rung into `step`. Raises GateRefusedError; what could be measured stands in it all the same."""
        found = require_sensible(package.engine, self.probes, subject="the converted model")
        step.snr_db = signal_to_noise(self._answers, found)
        masks = [package.segment(volume) for _, volume, _ in self._held_out]
        step.agreement, step.per_class, step.drops = self._measured(masks, self._reference, self._before)
        require_accuracy(step.drops, max_drop=self._max_drop, per_class=self._per_class)
        if (shown := self._prompted) is None:
            return
        pairs = zip(self._held_out, shown.prompts, strict=True)
        masks = [package.segment(volume, prompts=prompts) for (_, volume, _), prompts in pairs]
        agreement, per_class, drops = self._measured(masks, shown.reference, self._before_prompted)
        step.prompted = {"kind": shown.kind, "agreement": agreement, "per_class": per_class}
        try:
            require_accuracy(drops, max_drop=self._max_drop, per_class=self._per_class)
        except GateRefusedError as refusal:
            raise GateRefusedError(f"with a {shown.kind} for each class, {refusal}") from None

    def _measured(
        self, masks: Sequence[np.ndarray], reference: Sequence[np.ndarray], before: Rows
    ) -> tuple[float, dict[str, dict[str, Any]], tuple[ClassDrop, ...]]:
        """The share of voxels with the class of the reference, the scores per class, and what was lost of them."""
        same = sum(int(np.count_nonzero(m == r)) for m, r in zip(masks, reference, strict=True))
        after = self._score(masks, self._truths)
        to_torch = summarise(self._score(masks, reference))["per_class"]
        per_class = {
            name: {**{key: row[key] for key in _KEPT}, "to_torch": {key: to_torch[name][key] for key in _KEPT}}
            for name, row in summarise(after)["per_class"].items()
        }
        return same / sum(mask.size for mask in masks), per_class, tuple(compare(before, after))

    def _score(self, masks: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> Rows:
        return {
            name: score_case(
                mask, truth, spacing=volume.geometry.spacing, labels=self._labels, frames=volume.geometry.frames
            )
            for (name, volume, _), mask, truth in zip(self._held_out, masks, truths, strict=True)
        }


def signal_to_noise(signal: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float | None:
    """10 log10 of the power of `signal` over that of the differences, in dB; None when there is no difference."""
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(signal, found, strict=True))
    power = sum(float(np.square(a, dtype=np.float64).sum()) for a in signal)
    return 10 * math.log10(power / noise) if noise else None


def climb(
    rungs: Iterable[Rung],
    jury: Jury,
    folder: Path,
    *,
    describe: Callable[[Rung], dict[str, Any]],
) -> tuple[Package, list[Step]]:
    """The package of the first rung of the last precision that the jury lets pass, its model in `folder`.

    `describe` is the manifest of a rung. float32 has to pass before anything smaller is tried. Raises GateRefusedError
    when no rung of the precision wanted passes, and then names the one to fall back on.
    """
    steps: list[Step] = []
    passed: Package | None = None
    for rung in rungs:
        manifest = describe(rung)
        step = Step(rung.precision.value, manifest["inference_precision"], rung.quantization)
        steps.append(step)
        for old in folder.glob("model.*"):
            old.unlink()
        rung.write(folder)
        package = Package.of(folder, manifest)
        try:
            jury.judge(package, step)
        except GateRefusedError as refusal:
            step.refusal = str(refusal)
            if rung.weakest is not None and step.per_class:
                step.refusal += f" The layers that lost most: {'; '.join(rung.weakest(jury.probes[0]))}."
            passed = None
            if len(steps) == 1:
                break
            continue
        passed = package
        if len(steps) > 1:
            break
    if passed is None:
        raise GateRefusedError("\n".join(_told(step) for step in steps))
    return passed, steps


def _told(step: Step) -> str:
    if step.refusal is None:
        return f"{step.title}: passed. `samkd deploy --precision {step.precision}` packs it."
    return f"{step.title}: {step.refusal}"
