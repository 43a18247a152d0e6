"""Teacher targets: the teacher's class probabilities for whole scans, on the student's grid, cached on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..training.cases import fingerprint, save_array
from ..training.inference import patch_function
from ..training.progress import Bar
from ..volumes.dataset import Case, Dataset, read_case
from ..volumes.files import make_folder
from ..volumes.geometry import Geometry, Volume, reorient
from ..volumes.plan import Plan, grid, prepare
from ..volumes.resample import resample
from ..volumes.tiles import stitched


def teacher_probabilities(
    network: torch.nn.Module, volume: Volume, *, plan: Plan, student_grid: Geometry
) -> np.ndarray:
    """Sliding window with the teacher's own plan, then linear resampling onto the student's grid.

    Returns uint8 ``[K, D, H, W]``, 255 standing for probability 1; a fifth of a percent is the largest rounding.
    """
    prepared = prepare(volume, plan)
    classes = int(network.num_classes)  # type: ignore[arg-type]
    found = stitched(prepared.array, plan.patch, plan.overlap, patch_function(network), classes=classes)
    along = prepared.geometry.aligned(student_grid)
    targets = np.empty((classes, *student_grid.shape), np.uint8)
    for index in range(classes):
        turned = reorient(found[index], prepared.geometry, along)
        targets[index] = np.rint(resample(turned, along, student_grid, order=1) * 255)
    return targets


def cached_targets(
    network: torch.nn.Module,
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    weights: Path,
    teacher_plan: Plan,
    student_plan: Plan,
    cache: Path,
) -> list[np.ndarray]:
    """Targets of all cases as memory maps, keyed by the teacher's weights, both plans and the cases' bytes."""
    teacher = hashlib.sha256(weights.read_bytes() + teacher_plan.digest().encode()).hexdigest()
    folder = cache / "targets" / f"{teacher[:16]}-{student_plan.digest()[:16]}"
    make_folder(folder)
    targets = []
    with Bar("teacher targets", len(cases)) as bar:
        for case in cases:
            path = folder / f"{fingerprint(case)[:32]}.npy"
            if not path.exists():
                volume, _ = read_case(case, dataset)
                onto = grid(student_plan, volume.geometry)
                save_array(path, teacher_probabilities(network, volume, plan=teacher_plan, student_grid=onto))
            targets.append(np.load(path, mmap_mode="r"))
            bar.advance(case.name)
    return targets
