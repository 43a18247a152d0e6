"""Prompts in place of a mask: read and checked before anything is trained, and what they say of the teachers' answer.

A class is nowhere outside its boxes, and nowhere at all without a prompt; a class with a point may be anywhere. In
numbers: its probability in a voxel is at most the part of the voxel that its boxes cover, and the rest goes to the
background. Where two classes overlap, the larger probability settles it.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import BadInputError, UsageError, about
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.geometry import Geometry, Volume, reorient
from ..volumes.io.scans import source_geometry
from ..volumes.plan import grid
from ..volumes.prompt_parsing import read_prompts
from ..volumes.prompts import GridPrompts, ScanPrompts
from ..volumes.resample import resample
from .ensemble import Ensemble, EnsembleMember


def prompted_cases(cases: Sequence[Case]) -> list[Case]:
    """Those that have prompts and no mask: a mask says more."""
    return [case for case in cases if case.label is None and case.prompts is not None]


def check_prompts(ensemble: Ensemble, cases: Sequence[Case], dataset: Dataset, *, online: bool) -> None:
    """Read every prompt file that stands for a mask and place it on its scan and on the teachers' grids.

    UsageError when no teacher takes prompts or with `online`, where no scan is shown as a whole. BadInputError, which
    names the file: damaged JSON, unknown classes, kinds that a teacher does not take, prompts outside the scan, more
    than one of a class on a slice where one is taken; and for cases with neither mask nor prompts where one is needed.
    """
    if ensemble.prompts_required:
        require_mask_or_prompts(cases)
    prompted = prompted_cases(cases)
    if not prompted:
        return
    takers = require_takers(ensemble, prompted)
    if online:
        raise UsageError(
            f"--online: {len(prompted)} case(s) have prompts in place of a mask, which lie in whole scans; leave "
            "--online out"
        )
    for case in prompted:
        prompts = case_prompts(case, dataset)
        assert prompts is not None
        scan = source_geometry(case.image, channels=len(dataset.channels))
        for member in takers:
            if unused := prompts.kinds - member.prompt_kinds:
                raise BadInputError(
                    f"{case.prompts}: holds a prompt of the kind {', '.join(sorted(unused))}; the teacher "
                    f"{member.name} takes {', '.join(sorted(member.prompt_kinds))}"
                )
            with about(case.prompts):
                placed = prompts.onto(grid(member.plan, scan), scan=scan, classes=len(dataset.labels))
                if member.prompts_required:
                    _require_one_a_slice(placed, dataset.labels)


def require_takers(ensemble: Ensemble, prompted: Sequence[Case]) -> list[EnsembleMember]:
    """The teachers that take prompts. Raises UsageError for cases with prompts alone and no such teacher."""
    takers = [member for member in ensemble.runs if member.prompt_kinds]
    if prompted and not takers:
        raise UsageError(
            f"{prompted[0].prompts}: {len(prompted)} case(s) have prompts in place of a mask, and no teacher takes "
            "prompts; take one that does (`samkd teach --teacher published`), or leave the prompts out"
        )
    return takers


def _require_one_a_slice(placed: GridPrompts, class_names: dict[int, str]) -> None:
    """BadInputError for a class with several points, or a point and a box, on one slice of a published model."""
    for index, (points, labels, boxes) in enumerate(zip(placed.points, placed.labels, placed.boxes, strict=True)):
        slices = np.floor(points[labels >= 0, 0] + 0.5).tolist()
        shared = {d for d in slices if slices.count(d) > 1 or any(low <= d <= high for low, high in boxes[:, [0, 3]])}
        if shared:
            raise BadInputError(
                f"class {class_names[index + 1]!r} has several prompts on one slice; a published model takes one point "
                "or one box of a class there"
            )


def require_mask_or_prompts(cases: Sequence[Case]) -> None:
    """Raises BadInputError for cases that a teacher cannot be asked about that finds nothing without prompts."""
    if without := [case.name for case in cases if case.label is None and case.prompts is None]:
        raise BadInputError(
            f"{', '.join(without)}: no mask to draw boxes from and no prompts, and a teacher finds nothing without; "
            "give prompts (--prompts FOLDER with CASE.json), leave these cases out, or take another teacher"
        )


def case_prompts(case: Case, dataset: Dataset) -> ScanPrompts | None:
    """The prompts of a case without a mask; None for any other. Raises BadInputError for a file that is none."""
    if case.label is not None or case.prompts is None:
        return None
    return read_prompts(case.prompts, dataset.labels)


def prompted_probabilities(
    ensemble: Ensemble, volume: Volume, student_grid: Geometry, prompts: ScanPrompts, *, case: str
) -> np.ndarray:
    """float32 [K, *student_grid.shape] for the case of this name: what the teachers find where the prompts allow it,
    background elsewhere.
    """
    taker = next(member for member in ensemble.runs if member.prompt_kinds)
    answers = [
        member.probabilities(volume, student_grid, prompts if member.prompt_kinds else None, case=case)
        for member in ensemble.teachers
    ]
    probabilities = ensemble.mean(answers)
    seen = grid(taker.plan, volume.geometry)
    placed = prompts.onto(seen, scan=volume.geometry, classes=len(probabilities))
    for value in range(1, len(probabilities)):
        if (placed.labels[value - 1] >= 0).any():
            continue
        allowed = _on_grid(_covered(placed.boxes[value - 1], seen.shape), seen, student_grid)
        kept = np.minimum(probabilities[value], allowed)
        probabilities[0] += probabilities[value] - kept
        probabilities[value] = kept
    return probabilities


def _covered(boxes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Whether the centre of each voxel of a grid [D, H, W] lies in one of the boxes [M, 6], NaN for none."""
    covered = np.zeros(shape, bool)
    for box in boxes[~np.isnan(boxes).any(axis=1)]:
        low, high = np.ceil(box[:3] - 0.5).astype(int), np.floor(box[3:] + 0.5).astype(int)
        covered[tuple(slice(max(a, 0), b + 1) for a, b in zip(low, high, strict=True))] = True
    return covered


def _on_grid(covered: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """Part of each voxel of `target` that is covered, float32 in [0, 1], by linear resampling."""
    along = source.aligned(target)
    return resample(reorient(covered.astype(np.float32), source, along), along, target, order=1)
