"""The geometry of inference: which patches the device's sliding window runs, and how far neighbours overlap.

A network is trained on patches that fit a GPU; a scan is cut into many of them, and each voxel is then computed several
times. Larger patches with less overlap compute fewer voxels. Whether they cost accuracy depends on the network (its
norms see another patch), so each is judged as a conversion is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from pathlib import Path
from statistics import mean

import numpy as np

from ...errors import GateRefusedError
from ...volumes.files import temporary_folder
from ...volumes.plan import Plan
from ...volumes.region import content_box
from ...volumes.sliding_window import computed_voxels, tile_step
from ..runtime.judgement import GeometryResult, accepted
from ..runtime.manifest import SmallGraph
from ..runtime.package import Package
from .candidates import Selection

Triple = tuple[int, int, int]

SIDE = 32  # voxels; the sides of every student's patch may be multiples of it
SMALL = "model.small"  # the files of the training's graph, beside those of a larger patch
MAX_GROWTH = 12  # times the voxels of the training's patch: memory grows with the patch
_OVERLAPS = (0.5, 0.25, 0.125, 16.0, 8.0, 0.0)  # fractions of a patch; from 2 on, voxels
_SEAMS = (16.0, 8.0)  # overlaps so thin that plain weights are tried as well: there a Gaussian's are all tail
_WORTH_CROPPING = 0.95  # of the voxels of whole scans
_WORTH_TRYING = 0.9  # of the work of the training's geometry
MAX_HD95_RISE = 1.0  # mm, in the mean over the classes: seams between patches move a surface before they cost Dice


@dataclass(frozen=True)
class InferenceGeometry:
    """The sliding window's patch (D, H, W), and the part of it by which neighbours overlap.

    An overlap of 2 or more counts voxels. `blending` and `crop` are those of a plan.
    """

    patch: Triple
    overlap: float
    blending: str = "gaussian"
    crop: str = "none"

    @classmethod
    def of(cls, plan: Plan) -> InferenceGeometry:
        return cls(plan.patch, plan.overlap, plan.blending, plan.crop)

    def work(self, scans: Sequence[ScanShape]) -> float:
        """Voxels that the network computes for each voxel of these prepared scans."""
        seen = (scan.content if self.crop == "content" else scan.whole for scan in scans)
        return sum(computed_voxels(shape, self.patch, self.overlap) for shape in seen) / sum(
            prod(scan.whole) for scan in scans
        )

    def in_plan(self, plan: Plan) -> Plan:
        return replace(plan, patch=self.patch, overlap=self.overlap, blending=self.blending, crop=self.crop)


@dataclass(frozen=True)
class ScanShape:
    """The voxels (D, H, W) of a prepared scan, and those of the box of its `content` (volumes.region.content_box)."""

    whole: Triple
    content: Triple

    @classmethod
    def of(cls, prepared: np.ndarray) -> ScanShape:
        """That of a prepared scan [C, D, H, W]."""
        box = content_box(prepared)
        sides = prepared.shape[1:] if box is None else [part.stop - part.start for part in box]
        return cls((*prepared.shape[1:],), (sides[0], sides[1], sides[2]))


def cheaper_geometries(
    plan: Plan, scans: Sequence[ScanShape], *, fixed_patch: bool = False, side: int = SIDE
) -> list[InferenceGeometry]:
    """Geometries that compute fewer voxels than the plan's for these prepared scans, the fewest first.

    Along d, and along h and w together, a patch keeps the plan's width or takes the whole of the largest scan, rounded
    up to a multiple of `side`; with `fixed_patch` it keeps all. Overlaps are at most the plan's. Where a good part of
    the scans is air, each is tried on the box of their content as well.
    """
    crops = ["none"]
    if sum(prod(scan.content) for scan in scans) <= _WORTH_CROPPING * sum(prod(scan.whole) for scan in scans):
        crops.append("content")
    geometries = [
        InferenceGeometry(patch, overlap, blending, crop)
        for crop in crops
        for patch in _patches(plan, [scan.content if crop == "content" else scan.whole for scan in scans], side=side)
        if patch == plan.patch or not fixed_patch
        for overlap in _overlaps(plan)
        for blending in ("gaussian", "plain")
        if blending == "gaussian" or overlap in _SEAMS
    ]
    own = InferenceGeometry.of(plan).work(scans)
    work = {geometry: geometry.work(scans) for geometry in geometries}
    # Of two that compute the same voxels the one with more overlap, or the smaller patch, loses less.
    ordered = sorted(geometries, key=lambda one: (work[one], prod(one.patch), -_shared(one), one.crop, one.blending))
    cheaper, seen = [], set()
    for geometry in ordered:
        tiles = (geometry.patch, geometry.blending, work[geometry])
        if work[geometry] <= _WORTH_TRYING * own and tiles not in seen:
            cheaper.append(geometry)
        seen.add(tiles)
    return [each for each in cheaper if each.blending == "gaussian" or _has_seams(each, scans)]


def _patches(plan: Plan, shapes: Sequence[Triple], *, side: int) -> list[Triple]:
    whole = [side * ceil(max(sizes) / side) for sizes in zip(*shapes, strict=True)]
    d, h, w = plan.patch
    depths, planes = {d, max(d, whole[0])}, {(h, w), (max(h, whole[1]), max(w, whole[2]))}
    patches = [(depth, *plane) for depth, plane in product(sorted(depths), sorted(planes))]
    return [patch for patch in patches if prod(patch) <= MAX_GROWTH * prod(plan.patch)]


def _overlaps(plan: Plan) -> list[float]:
    """The plan's and all of _OVERLAPS that share less of its patch."""
    least = [plan.patch[axis] - tile_step(plan.patch[axis], plan.overlap) for axis in range(3)]
    less = (each for each in _OVERLAPS if sum(w - tile_step(w, each) for w in plan.patch) < sum(least))
    return [plan.overlap, *less]


def _shared(geometry: InferenceGeometry) -> float:
    """Voxels that neighbours share along the three axes, added up."""
    return sum(width - tile_step(width, geometry.overlap) for width in geometry.patch)


def _has_seams(geometry: InferenceGeometry, scans: Sequence[ScanShape]) -> bool:
    """Whether some scan takes more than one patch."""
    return any(computed_voxels(scan.whole, geometry.patch, geometry.overlap) > prod(geometry.patch) for scan in scans)


Trial = Callable[[InferenceGeometry, Path], Selection]


def select_geometry(
    trained: Selection,
    geometries: Sequence[InferenceGeometry],
    folder: Path,
    *,
    scans: Sequence[ScanShape],
    trial: Trial,
) -> Selection:
    """The first of the geometries that loses no more than a conversion may and is faster than the training's.

    `trained` is the package in `folder`, with the training's geometry, and stays where no other passes; its graph
    stays beside that of another patch, for small scans and where memory is short. `trial` packs and judges a geometry
    in a folder, and raises GateRefusedError. The selection names all that were tried.
    """
    own = InferenceGeometry.of(trained.package.plan)
    results = [_result(own, trained, scans)]
    for geometry in geometries:
        with temporary_folder() as scratch:
            try:
                tried = trial(geometry, scratch)
            except GateRefusedError as refusal:
                results.append(_refused(geometry, scans, str(refusal)))
                continue
            result = _result(geometry, tried, scans)
            refusals = [*_worse_surfaces(results[0], result), *_slower(results[0], result)]
            results.append(replace(result, refusal=" ".join(refusals) or None))
            if not refusals:
                package = _moved(tried.package, scratch, folder, trained=trained.package)
                return replace(tried, package=package, results=trained.results, geometries=results)
    return replace(trained, geometries=results)


def _refused(geometry: InferenceGeometry, scans: Sequence[ScanShape], refusal: str) -> GeometryResult:
    work = geometry.work(scans)
    return GeometryResult(
        geometry.patch, geometry.overlap, work, refusal, blending=geometry.blending, crop=geometry.crop
    )


def _result(geometry: InferenceGeometry, selection: Selection, scans: Sequence[ScanShape]) -> GeometryResult:
    result = accepted(selection.results)
    scored = [row for row in result.per_class.values() if row.dice is not None]
    distances = [row.hd95_mm for row in scored if row.hd95_mm is not None]
    return GeometryResult(
        patch=geometry.patch,
        overlap=geometry.overlap,
        blending=geometry.blending,
        crop=geometry.crop,
        work=geometry.work(scans),
        dice=mean(row.dice for row in scored if row.dice is not None) if scored else None,
        hd95_mm=mean(distances) if distances else None,
        seconds=selection.seconds,
        cpu_seconds=selection.cpu_seconds,
    )


def _worse_surfaces(own: GeometryResult, other: GeometryResult) -> Iterator[str]:
    if own.hd95_mm is not None and other.hd95_mm is not None and other.hd95_mm > own.hd95_mm + MAX_HD95_RISE:
        yield f"HD95 rose from {own.hd95_mm:.2f} to {other.hd95_mm:.2f} mm; at most {MAX_HD95_RISE:g} mm may be lost."


def _slower(own: GeometryResult, other: GeometryResult) -> Iterator[str]:
    if own.cpu_seconds is not None and other.cpu_seconds is not None and other.cpu_seconds >= own.cpu_seconds:
        yield (
            f"It takes {other.cpu_seconds:.2f} s of the processor a scan, the training's geometry "
            f"{own.cpu_seconds:.2f} s."
        )


def _moved(package: Package, scratch: Path, folder: Path, *, trained: Package) -> Package:
    """The package of a scratch folder with its model in `folder`, where that of the training's geometry was.

    The latter stays as its small graph where the patches differ.
    """
    manifest = package.manifest
    for old in sorted(folder.glob("model.*")):
        if package.plan.patch == trained.plan.patch:
            old.unlink()
        else:
            old.rename(folder / old.name.replace("model", SMALL, 1))
    if package.plan.patch != trained.plan.patch:
        model = manifest.model.replace("model", SMALL, 1)
        manifest = replace(manifest, small=SmallGraph(model, trained.plan.patch, trained.plan.overlap))
    for path in scratch.glob("model.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return Package.of(folder, manifest, trusted=True)  # it was written here
