"""Packages for the report: which ones, what they do with the test scans, and how good their masks are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...deploy.runtime.manifest import Manifest
from ...errors import BadInputError
from ...evaluation.package_plot import MeasuredPackage
from ...evaluation.records import CaseScores
from ...evaluation.rules import ScoringRules
from ...evaluation.scores import case_scores, score_scan
from ...volumes.datasets.registry import Case, Dataset, read_labelled_case
from ...volumes.files import is_leftover, size_of
from ...volumes.geometry import Geometry
from ...volumes.io.nifti import read_labels
from ...volumes.io.scans import as_nifti
from ..device import on_device


@dataclass(frozen=True, kw_only=True)
class PackageRun:
    """What one package did with the test scans: masks and their grids by case name, the runtime's report, scores."""

    package: Path
    manifest: Manifest
    masks: Mapping[str, Path]
    grids: Mapping[str, Geometry]
    device: Mapping[str, Any]
    scores: CaseScores

    def mask(self, case: Case) -> np.ndarray:
        """Its labels [D, H, W] of a case, on the scan's own grid."""
        return read_labels(self.masks[case.name])[0]

    def voxel_ml(self) -> dict[str, float]:
        """The volume of a voxel in ml by case name; pictures and videos have none."""
        volumes = {name: grid for name, grid in self.grids.items() if not grid.frames and min(grid.shape) > 1}
        return {name: prod(grid.spacing) / 1000 for name, grid in volumes.items()}

    @property
    def megabytes(self) -> float:
        return size_of(self.package) / 1e6

    def facts(self) -> dict[str, str]:
        """What it is, and what it costs, for a reader."""
        memory = self.device["peak_memory_mb"]
        peak = "" if memory is None else f" and {memory:.0f} MB"
        return {
            "package": f"{self.package.name}, {self.megabytes:.1f} MB, {self.manifest.precision}",
            "device": f"{self.device['seconds_per_scan']:.2f} s{peak} per scan (median time, peak memory of the whole "
            "process)",
        }

    def measured(self, name: str) -> MeasuredPackage | None:
        """The package as a disc of package_plot; None where nothing was scored."""
        dice = self.scores.summary.mean.dice
        if dice is None:
            return None
        seconds = float(self.device["seconds_per_scan"])
        return MeasuredPackage(name=name, seconds=seconds, dice=dice, megabytes=self.megabytes)


def newest_package(runs: Path) -> Path:
    """The package in `runs` that was written last. Raises BadInputError when there is none."""
    manifests = [path for path in (runs / "packages").glob("*/manifest.json") if not is_leftover(path.parent)]
    manifests.sort(key=lambda path: path.stat().st_mtime_ns)
    if not manifests:
        raise BadInputError(f"{runs}: no package here; run `samkd deploy` first or name one")
    return manifests[-1].parent


def package_titles(manifests: Mapping[Path, Manifest]) -> dict[Path, str]:
    """What each package is called in the report: "package"; of several their target and precision, or their name
    where two share these.
    """
    if len(manifests) == 1:
        return dict.fromkeys(manifests, "package")
    titles = {path: f"{manifest.target} {manifest.precision}" for path, manifest in manifests.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    return {path: path.name if title in shared else title for path, title in titles.items()}


def require_classes(manifests: Mapping[Path, Manifest], dataset: Dataset) -> None:
    """Raises BadInputError for a package of other classes than the test scans'."""
    for path, manifest in manifests.items():
        if manifest.class_names != dataset.labels:
            raise BadInputError(
                f"{path}: its classes are {list(manifest.class_names.values())}, those of the test scans "
                f"{list(dataset.labels.values())}; compare packages of one task"
            )


def run_package(
    package: Path,
    manifest: Manifest,
    *,
    cases: Sequence[Case],
    dataset: Dataset,
    rules: ScoringRules,
    out: Path,
    trust: Path | None,
) -> PackageRun:
    """Segment the test scans as a device would, and score the masks, which are written into the folder `out`.

    Raises what workflows.device.on_device raises.
    """
    scans = {case.name: as_nifti(case.image, out, channels=len(dataset.channels)) for case in cases}
    device = on_device(package, list(scans.values()), out / "device", trust=trust)
    masks = {name: device.masks[scan.name] for name, scan in scans.items()}
    scores, grids = {}, {}
    for case in cases:
        volume, truth = read_labelled_case(case, dataset)
        prediction, _ = read_labels(masks[case.name])
        grid = grids[case.name] = volume.geometry
        scores |= score_scan(case.name, prediction, truth, grid=grid, labels=dataset.labels, rules=rules)
    return PackageRun(
        package=package,
        manifest=manifest,
        masks=masks,
        grids=grids,
        device=device.report,
        scores=case_scores(scores, rules=rules),
    )
