"""samkd report: teacher, control, student and package side by side in one HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..deploy.runtime.manifest import Manifest
from ..distill.networks import load_network
from ..errors import BadInputError
from ..evaluation.html_report import write_report
from ..evaluation.overlay import comparison_png
from ..evaluation.records import ScoreSummary
from ..evaluation.scores import score_case, summarise
from ..training.predictor import make_predictor
from ..training.prompt_sampling import prompts_from_truth
from ..training.run import Run, control_of
from ..volumes.datasets.registry import Case, Dataset, read_labelled_case
from ..volumes.files import is_leftover, size_of, temporary_folder
from ..volumes.geometry import reorient
from ..volumes.io.nifti import read_labels
from ..volumes.io.scans import as_nifti
from ..volumes.pipeline import segment
from ..volumes.plan import slice_axis
from ..volumes.prompts import ScanPrompts
from .data import config_for, labelled_test, open_dataset
from .device import on_device
from .models import checked_manifest

PICTURED_CASES = 3


@dataclass(frozen=True)
class Comparison:
    """Teacher, control, student and package side by side on the test scans."""

    columns: dict[str, dict[str, float | None]]  # teacher, control, student, package -> class or "mean" -> Dice
    package: Path
    html: Path
    facts: dict[str, str]


def report(
    package: Path | None,
    *,
    out: Path,
    data: Path | None,
    runs: Path,
    pretrained_path: Path | None = None,
    trust: Path | None = None,
) -> Comparison:
    """Compare a package with its student, the student's control (if it was trained) and teacher in one HTML file.

    `package` is the newest in `runs` if it is None. It is checked before anything of it is read, with `trust`, a public
    key (PEM), its signature, too; then its masks are made in a process of their own. `pretrained_path` is the published
    file that a run adapts, where it has moved. Raises what deploy.runtime.package.Package.open raises, and
    BadInputError when the runs that the package comes from are not in `runs`.
    """
    package = package or newest_package(runs)
    manifest = checked_manifest(package, trust=trust)
    student = Run.read(_origin(package, manifest, runs))
    stages = _runs_before(student, runs)
    dataset = open_dataset(config_for(None, student, []), data or Path(student.config.data), runs=runs)
    cases = labelled_test(dataset)

    masks, device = _segment_on_device(package, cases, dataset, trust=trust)
    columns = {name: test.summary.dice_by_class() for name, run in stages.items() if (test := run.metrics().test)}
    columns["package"] = _summary_of(masks, cases, dataset).dice_by_class()
    config_name = str(manifest.provenance.get("recipe", ""))
    facts = {
        "config": config_name,
        "dataset": f"{dataset.name}: {len(cases)} test scans",
        "package": f"{package.name}, {size_of(package) / 1e6:.1f} MB, {manifest.precision}",
        "device": f"{device['seconds_per_scan']:.2f} s and {device['peak_memory_mb']:.0f} MB per scan "
        f"(median time, peak memory of the whole process)",
        **{f"{name} run": _training_cost(run) for name, run in stages.items()},
    }
    curves = {
        "training loss": {name: smoothed(run, "loss") for name, run in stages.items()},
        "validation Dice": {name: points(run, "dice") for name, run in stages.items()},
    }
    pictures = _pictures(stages, cases[:PICTURED_CASES], dataset, package_masks=masks, pretrained_path=pretrained_path)
    title = f"samkd: {config_name}"
    write_report(out, title=title, facts=facts, curves=curves, columns=columns, pictures=pictures)
    return Comparison(columns, package, out, facts)


def newest_package(runs: Path) -> Path:
    """The package in `runs` that was written last. Raises BadInputError when there is none."""
    manifests = [path for path in (runs / "packages").glob("*/manifest.json") if not is_leftover(path.parent)]
    manifests.sort(key=lambda path: path.stat().st_mtime_ns)
    if not manifests:
        raise BadInputError(f"{runs}: no package here; run `samkd deploy` first or name one")
    return manifests[-1].parent


def points(run: Run, key: str) -> list[tuple[float, float]]:
    """(step, value) of every entry of a run's log that holds `key`."""
    return [(entry["step"], entry[key]) for entry in run.history() if key in entry]


def smoothed(run: Run, key: str, window: int = 10) -> list[tuple[float, float]]:
    """Mean over ``window`` steps, one point per window, so that a curve can be read."""
    raw = points(run, key)
    chunks = [raw[start : start + window] for start in range(0, len(raw), window)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]


def _origin(package: Path, manifest: Manifest, runs: Path) -> Path:
    """The folder in `runs` of the run that a package was made from. Raises BadInputError when it names none."""
    if "run" not in manifest.provenance:
        raise BadInputError(f"{package}: its manifest names no run (provenance.run); nothing to compare with")
    return runs / str(manifest.provenance["run"])


def _runs_before(student: Run, runs: Path) -> dict[str, Run]:
    """The runs behind a package by their title in the report: teachers, the control if there is one, the student."""
    stages: dict[str, Run] = {}
    if student.stage == "distill":
        teachers = [teacher for teacher in student.config.objective.teachers if not teacher.predictions]
        for number, teacher in enumerate(teachers, start=1):
            stages["teacher" if len(teachers) == 1 else f"teacher {number}"] = Run.read(runs / teacher.run)
    if control := control_of(student, runs):
        stages["student without teacher"] = control
    if student.stage == "distill":
        stages["student with teacher"] = student
    return stages


def _segment_on_device(
    package: Path, cases: Sequence[Case], dataset: Dataset, *, trust: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The package's masks [D, H, W] by case name, and the report of the runtime."""
    with temporary_folder() as scratch:
        scans = {case.name: as_nifti(case.image, Path(scratch), channels=len(dataset.channels)) for case in cases}
        device = on_device(package, list(scans.values()), Path(scratch) / "device", trust=trust)
        return {name: read_labels(device.masks[scan.name])[0] for name, scan in scans.items()}, device.report


def _summary_of(masks: dict[str, np.ndarray], cases: Sequence[Case], dataset: Dataset) -> ScoreSummary:
    """The means of the masks' scores against the truth."""
    scores = {}
    for case in cases:
        volume, truth = read_labelled_case(case, dataset)
        grid = volume.geometry
        scores[case.name] = score_case(
            masks[case.name], truth, spacing=grid.spacing, labels=dataset.labels, frames=grid.frames
        )
    return summarise(scores)


def _training_cost(run: Run) -> str:
    metrics = run.metrics()
    return (
        f"{run.path.name}, {metrics.steps} steps, {metrics.seconds:.0f} s, {metrics.parameters / 1e6:.2f} M parameters"
    )


def _pictures(
    stages: dict[str, Run],
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    package_masks: dict[str, np.ndarray],
    pretrained_path: Path | None,
) -> dict[str, bytes]:
    """A PNG per case: the truth beside the masks of every run and of the package.

    A run that finds nothing without prompts is shown a box on every slice, from the truth; these are drawn, too.
    """
    networks = {name: (run.plan, load_network(run, pretrained_path=pretrained_path)) for name, run in stages.items()}
    pictures = {}
    for case in cases:
        volume, truth = read_labelled_case(case, dataset)
        masks = {"truth": truth}
        for name, (plan, network) in networks.items():
            prompts = None
            if getattr(network, "prompts_required", False):
                axis, spacing = slice_axis(plan, volume.geometry), volume.geometry.spacing
                prompts = prompts_from_truth("boxes", truth, labels=dataset.labels, spacing=spacing, axis=axis)
                masks["boxes"] = _outlines(prompts, truth.shape, axis=axis)
            infer = make_predictor(network)
            masks[name] = segment(volume, plan, infer, num_classes=len(dataset.labels), prompts=prompts)
        masks["package"] = package_masks[case.name]
        upright = volume.geometry.oriented("SPL")
        pictures[case.name] = comparison_png(
            reorient(volume.array[0], volume.geometry, upright),
            {name: reorient(mask, volume.geometry, upright) for name, mask in masks.items()},
            spacing=upright.spacing,
        )
    return pictures


def _outlines(prompts: ScanPrompts, shape: tuple[int, ...], *, axis: int) -> np.ndarray:
    """Label map [D, H, W] of the edges, a voxel wide, of boxes in voxels, on the slices along `axis`."""
    labels = np.zeros(shape, np.uint16)
    for value, shown in prompts.classes.items():
        for box in shown.boxes:
            low, high = np.array(box[2::-1], int), np.array(box[:2:-1], int)
            inner_low, inner_high = low + 1, high - 1
            inner_low[axis], inner_high[axis] = low[axis], high[axis]
            edge = np.zeros(shape, bool)
            edge[_voxels(low, high)] = True
            edge[_voxels(inner_low, inner_high)] = False
            labels[edge] = value
    return labels


def _voxels(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    """The part of a grid from voxel `low` to voxel `high`, both included; nothing where they are inverted."""
    return tuple(slice(first, max(first, last + 1)) for first, last in zip(low.tolist(), high.tolist(), strict=True))
