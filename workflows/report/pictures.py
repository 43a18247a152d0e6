"""The report's pictures: the worst scans of every model side by side, and each organ's worst case in three planes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...distill.networks import load_network
from ...evaluation.overlay import comparison_png
from ...evaluation.records import ClassScore
from ...evaluation.score_tables import number_text
from ...evaluation.scores import frame_of, video_of
from ...evaluation.three_planes import three_planes
from ...training.predictor import make_predictor
from ...training.prompt_sampling import prompts_from_truth
from ...training.run import Run
from ...volumes.datasets.registry import Case, Dataset, read_labelled_case
from ...volumes.geometry import reorient
from ...volumes.pipeline import segment
from ...volumes.plan import slice_axis
from ...volumes.prompts import ScanPrompts
from .packages import PackageRun


def organ_pictures(
    worst: Sequence[tuple[str, ClassScore]], cases: Mapping[str, Case], dataset: Dataset, *, package: PackageRun
) -> dict[str, dict[str, bytes]]:
    """By caption a PNG for each of three planes of each class in one case, or frame of a video: truth and package.

    `worst` has the name of the case, as the scores have it, and the scores of the class there.
    """
    return {
        f"{name}: {_in_words(row)}": _organ_picture(name, row.number, cases[video_of(name)], dataset, package=package)
        for name, row in worst
    }


def _organ_picture(name: str, number: int, case: Case, dataset: Dataset, *, package: PackageRun) -> dict[str, bytes]:
    volume, truth = read_labelled_case(case, dataset)
    grid, frame = volume.geometry, frame_of(name)
    upright = grid.oriented("SPL")
    flat = grid.frames or min(grid.shape) == 1
    image, true, predicted = (
        reorient(array, grid, upright) for array in (volume.array[0], truth == number, package.mask(case) == number)
    )
    if frame is not None:
        image, true, predicted = (array[frame : frame + 1] for array in (image, true, predicted))
    return three_planes(image, true, predicted, spacing=upright.spacing, flat=flat)


def _in_words(row: ClassScore) -> str:
    if row.missed:
        return f"{row.name}, missed"
    if row.invented:
        return f"{row.name}, invented: the truth has none"
    distance = "" if row.hd95_mm is None else f", HD95 {number_text(row.hd95_mm, 'hd95_mm')} mm"
    return f"{row.name}, Dice {number_text(row.dice, 'dice')}{distance}"


def comparison_pictures(
    stages: Mapping[str, Run],
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    packages: Mapping[str, PackageRun],
    pretrained_path: Path | None,
) -> dict[str, bytes]:
    """A PNG per case: the truth beside the masks of every run and of the packages.

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
        masks |= {title: package.mask(case) for title, package in packages.items()}
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
