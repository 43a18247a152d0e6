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

from ...errors import GateRefusedError
from ...volumes.files import temporary_folder
from ...volumes.plan import Plan
from ...volumes.sliding_window import tile_starts
from ..runtime.judgement import GeometryResult
from ..runtime.package import Package
from .candidates import Selection

Triple = tuple[int, int, int]

SIDE = 32  # voxels; the sides of every student's patch may be multiples of it
MAX_GROWTH = 12  # times the voxels of the training's patch: memory grows with the patch
_OVERLAPS = (0.5, 0.25, 0.125, 0.0)
_WORTH_TRYING = 0.9  # of the work of the training's geometry
MAX_HD95_RISE = 1.0  # mm, in the mean over the classes: seams between patches move a surface before they cost Dice


@dataclass(frozen=True)
class InferenceGeometry:
    """The sliding window's patch (D, H, W), and the part of it by which neighbours overlap."""

    patch: Triple
    overlap: float

    def work(self, shapes: Sequence[Triple]) -> float:
        """Voxels that the network computes for each voxel of prepared scans of these `shapes` (D, H, W)."""
        computed = 0
        for shape in shapes:
            padded = [max(size, width) for size, width in zip(shape, self.patch, strict=True)]
            computed += len(tile_starts(padded, self.patch, self.overlap)) * prod(self.patch)
        return computed / sum(map(prod, shapes))

    def in_plan(self, plan: Plan) -> Plan:
        return replace(plan, patch=self.patch, overlap=self.overlap)


def cheaper_geometries(plan: Plan, shapes: Sequence[Triple], *, fixed_patch: bool = False) -> list[InferenceGeometry]:
    """Geometries that compute fewer voxels than the plan's for prepared scans of these `shapes`, the fewest first.

    Along d, and along h and w together, a patch keeps the plan's width or takes the whole of the largest scan, rounded
    up to a multiple of SIDE; with `fixed_patch` it keeps all. Overlaps are at most the plan's.
    """
    whole = [SIDE * ceil(max(sizes) / SIDE) for sizes in zip(*shapes, strict=True)]
    d, h, w = plan.patch
    depths, planes = {d}, {(h, w)}
    if not fixed_patch:
        depths.add(max(d, whole[0]))
        planes.add((max(h, whole[1]), max(w, whole[2])))
    patches = [(depth, *plane) for depth, plane in product(sorted(depths), sorted(planes))]
    overlaps = [plan.overlap, *(overlap for overlap in _OVERLAPS if overlap < plan.overlap)]
    geometries = [
        InferenceGeometry(patch, overlap)
        for patch, overlap in product(patches, overlaps)
        if prod(patch) <= MAX_GROWTH * prod(plan.patch)
    ]
    own = InferenceGeometry(plan.patch, plan.overlap).work(shapes)
    work = {geometry: geometry.work(shapes) for geometry in geometries}
    # Of two that compute the same voxels the one with more overlap, or the smaller patch, loses less.
    ordered = sorted(geometries, key=lambda one: (work[one], prod(one.patch), -one.overlap))
    cheaper, seen = [], set()
    for geometry in ordered:
        tiles = (geometry.patch, work[geometry])
        if work[geometry] <= _WORTH_TRYING * own and tiles not in seen:
            cheaper.append(geometry)
        seen.add(tiles)
    return cheaper


Trial = Callable[[InferenceGeometry, Path], Selection]


def select_geometry(
    trained: Selection, geometries: Sequence[InferenceGeometry], folder: Path, *, shapes: Sequence[Triple], trial: Trial
) -> Selection:
    """The first of the geometries that loses no more than a conversion may and is faster than the training's.

    `trained` is the package in `folder`, with the training's geometry, and stays where no other passes. `trial` packs
    and judges a geometry in a folder, and raises GateRefusedError. The selection names all that were tried.
    """
    own = InferenceGeometry(trained.package.plan.patch, trained.package.plan.overlap)
    results = [_result(own, trained, shapes)]
    for geometry in geometries:
        with temporary_folder() as scratch:
            try:
                tried = trial(geometry, scratch)
            except GateRefusedError as refusal:
                results.append(GeometryResult(geometry.patch, geometry.overlap, geometry.work(shapes), str(refusal)))
                continue
            result = _result(geometry, tried, shapes)
            refusals = [*_worse_surfaces(results[0], result), *_slower(results[0], result)]
            results.append(replace(result, refusal=" ".join(refusals) or None))
            if not refusals:
                package = _moved(tried.package, scratch, folder)
                return replace(tried, package=package, results=trained.results, geometries=results)
    return replace(trained, geometries=results)


def _result(geometry: InferenceGeometry, selection: Selection, shapes: Sequence[Triple]) -> GeometryResult:
    result = selection.results[-1]
    scored = [row for row in result.per_class.values() if row.dice is not None]
    distances = [row.hd95_mm for row in scored if row.hd95_mm is not None]
    return GeometryResult(
        patch=geometry.patch,
        overlap=geometry.overlap,
        work=geometry.work(shapes),
        dice=mean(row.dice for row in scored if row.dice is not None) if scored else None,
        hd95_mm=mean(distances) if distances else None,
        seconds=selection.seconds,
    )


def _worse_surfaces(own: GeometryResult, other: GeometryResult) -> Iterator[str]:
    if own.hd95_mm is not None and other.hd95_mm is not None and other.hd95_mm > own.hd95_mm + MAX_HD95_RISE:
        yield f"HD95 rose from {own.hd95_mm:.2f} to {other.hd95_mm:.2f} mm; at most {MAX_HD95_RISE:g} mm may be lost."


def _slower(own: GeometryResult, other: GeometryResult) -> Iterator[str]:
    if own.seconds is not None and other.seconds is not None and other.seconds >= own.seconds:
        yield f"It takes {other.seconds:.2f} s a scan, the training's geometry {own.seconds:.2f} s."


def _moved(package: Package, scratch: Path, folder: Path) -> Package:
    """The package of a scratch folder with its model in `folder`, where that of another geometry was."""
    for old in folder.glob("model.*"):
        old.unlink()
    for path in scratch.glob("model.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return Package.of(folder, package.manifest)
