"""A dataset: its classes, its channels and its cases, and how one case is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import BadInputError
from ..alignment import onto
from ..files import file_digest
from ..geometry import Geometry, Volume
from ..io.mask_codes import Code
from ..io.scans import Source, read_mask, read_source


@dataclass(frozen=True)
class Case:
    """One scan with its mask, if that is known, or with a file of prompts (volumes.prompt_parsing) in place of one.

    Where there are both, the mask counts.
    """

    image: Source
    label: Source | None
    prompts: Path | None = None

    @property
    def name(self) -> str:
        return self.image.name


@dataclass(frozen=True)
class Dataset:
    name: str
    root: Path
    layout: str  # how it lies on disk, by name
    labels: dict[int, str]  # every class from 0, the background, without gaps
    channels: tuple[str, ...]  # what each channel of a scan is, e.g. ("CT",)
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    validation: tuple[Case, ...] = ()  # chosen already; empty: a run draws them from training
    codes: tuple[Code, ...] | None = None  # what stands for each class in the masks; None: its number
    merged: tuple[int, ...] | None = None  # the class that each class of the masks counts as; None: itself


def with_classes(dataset: Dataset, classes: Mapping[str, Sequence[str]]) -> Dataset:
    """The dataset with the classes named, each made of classes of the dataset by name; all others are background.

    Raises BadInputError for names the dataset does not have and for a class used twice.
    """
    numbers = {name: value for value, name in dataset.labels.items() if value}
    used = [part for parts in classes.values() for part in parts]
    unknown, twice = sorted(set(used) - set(numbers)), sorted({part for part in used if used.count(part) > 1})
    if unknown or twice:
        faults = [f"has no class {', '.join(unknown)}"] * bool(unknown) + [f"twice: {', '.join(twice)}"] * bool(twice)
        raise BadInputError(f"{dataset.root}: {'; '.join(faults)}. Its classes are {', '.join(numbers)}.")
    merged = [0] * len(dataset.labels)
    for value, parts in enumerate(classes.values(), start=1):
        for part in parts:
            merged[numbers[part]] = value
    return replace(dataset, labels=dict(enumerate((dataset.labels[0], *classes))), merged=tuple(merged))


def scan_digest(case: Case) -> str:
    """The same for cases whose scans are the same, byte by byte, whatever their names."""
    return "".join(file_digest(path) for path in case.image.files)


def read_case(case: Case, dataset: Dataset, *, fix_affine: bool = False) -> tuple[Volume, np.ndarray | None]:
    """Scan [C, D, H, W] and mask [D, H, W] (None without one), which share one grid and hold declared classes only.

    A mask that lies on its scan in another voxel order is read in the order of the scan. With `fix_affine` a mask of
    its scan's shape and axis directions is taken to lie on its scan, wherever its header puts it. Raises BadInputError.
    """
    volume = read_source(case.image, channels=len(dataset.channels))
    if case.label is None:
        return volume, None
    return volume, read_case_mask(case, dataset, volume.geometry, fix_affine=fix_affine)


def read_labelled_case(case: Case, dataset: Dataset) -> tuple[Volume, np.ndarray]:
    """Scan and mask of a case that must have one. Raises BadInputError."""
    volume, mask = read_case(case, dataset)
    if mask is None:
        raise BadInputError(f"{case.image.files[0]}: this case has no mask; give it one, or leave the case out.")
    return volume, mask


def read_case_mask(case: Case, dataset: Dataset, scan: Geometry | None, *, fix_affine: bool = False) -> np.ndarray:
    """The mask [D, H, W] of a labelled case, on the grid `scan` of its scan if that is known; `fix_affine` as in
    read_case. Raises BadInputError."""
    assert case.label is not None
    path, image = case.label.files[0], case.image.files[0]
    mask, geometry = read_mask(case.label, codes=dataset.codes)
    faults = []
    if scan is not None:
        placed = onto(mask, geometry, scan)
        fixable = geometry.shape == scan.shape and geometry.axis_codes == scan.axis_codes
        if placed is not None:
            mask = placed
        elif not (fix_affine and fixable):
            faults.append(_misplaced(geometry, scan, image.name, fixable=fixable))
    declared = len(dataset.merged or dataset.labels)  # classes count from 0 without gaps
    unknown = [value for value in np.unique(mask).tolist() if value >= declared]
    if unknown:
        faults.append(f"holds the labels {unknown}; the dataset declares {list(range(declared))}")
    if faults:
        raise BadInputError(f"{path}: {' and '.join(faults)}. Correct the mask, or declare its classes.")
    return mask if dataset.merged is None else np.array(dataset.merged, mask.dtype)[mask]


def _misplaced(mask: Geometry, scan: Geometry, name: str, *, fixable: bool) -> str:
    """What is wrong with where a mask lies, and whether --fix-affine could mend it."""
    if sorted(mask.shape) != sorted(scan.shape):
        return f"has the shape {mask.shape}, its scan {name} has {scan.shape}"
    distance = np.linalg.norm(mask.corners() - scan.corners(), axis=1).max()
    away = f"lies up to {distance:.3g} mm away from its scan {name}"
    if fixable:
        return f"{away} (if its header is wrong: samkd convert --fix-affine)"
    shapes = "" if mask.shape == scan.shape else f"has the shape {mask.shape}, its scan {name} has {scan.shape}, and "
    turned = "would mirror or turn it" if mask.axis_codes != scan.axis_codes else "cannot mend it"
    return (
        f"{shapes}{away}: its axes run towards {mask.axis_codes}, those of the scan towards {scan.axis_codes}, so "
        f"--fix-affine {turned}"
    )
