"""Predictions that another tool left in a folder: which files are those of which case, and how one case is read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadInputError
from ..volumes.files import visible_entries
from ..volumes.geometry import Geometry, reorient
from ..volumes.io.foreign_formats import is_foreign, passed_over
from ..volumes.io.nifti import read_channel_count
from ..volumes.io.pictures import is_picture
from ..volumes.io.probabilities import read_nnunet_probabilities, read_probabilities
from ..volumes.io.scans import Source, bare_name, is_nifti, read_mask
from .teacher_classes import TeacherClasses

_CHANNEL = re.compile(r"(.+)_\d{4}")  # nnU-Net predicts CASE from the scan CASE_0000
_KINDS = (
    "CASE.nii.gz (a label map, or 4-D with a probability for each class), CASE.npz beside it (nnU-Net v2's "
    "--save_probabilities), or a folder CASE with a mask for each organ (TotalSegmentator)"
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a file says of a scan: a label map, integers [D, H, W], or probabilities, float32 [K, D, H, W]; its grid.

    Its numbers and channels are the dataset's classes.
    """

    array: np.ndarray
    geometry: Geometry

    def probability_of(self, value: int) -> np.ndarray:
        """float32 [D, H, W] of one class; 0 and 1 for a label map."""
        return self.array[value] if self.array.ndim == 4 else (self.array == value).astype(np.float32)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: a NIfTI file or a picture, nnU-Net's array beside it, or a mask for each organ."""

    image: Path | None = None
    array: Path | None = None
    organs: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that decide what is read."""
        return tuple(path for path in (self.image, self.array, *self.organs) if path)

    def read(self, classes: TeacherClasses) -> Prediction:
        """The prediction in the dataset's classes. Raises BadInputError for files that cannot be used."""
        if self.organs:
            return _read_organs(self.organs, classes)
        if self.image is None:
            raise BadInputError(
                f"{self.array}: no label map beside it, so it is not known where its voxels lie (the .pkl could run "
                "code and is never read); copy the .nii.gz that nnU-Net wrote with it into the folder"
            )
        if self.array is not None:
            return _read_nnunet(self.array, self.image, classes)
        if is_nifti(self.image) and (channels := read_channel_count(self.image)) > 1:
            _check_channels(channels, classes, self.image)
            probabilities, geometry = read_probabilities(self.image, classes=channels)
            return Prediction(_merged(probabilities, classes, self.image), geometry)
        labels, geometry = read_mask(Source(bare_name(self.image), (self.image,)))
        return Prediction(_relabelled(labels, classes, self.image), geometry)


def find_predictions(folder: Path) -> dict[str, CaseFiles]:
    """The files of each case in a folder, by the case's name.

    Raises BadInputError when there is none, or two that could each be a case's prediction.
    """
    cases: dict[str, CaseFiles] = {}
    entries = visible_entries(folder)
    for name, path in ((bare_name(path), path) for path in entries if is_nifti(path) or is_picture(path)):
        _refuse_second(cases, name, path)
        cases[name] = CaseFiles(image=path)
    for path in entries:
        if path.is_dir() and (organs := tuple(entry for entry in visible_entries(path) if is_nifti(entry))):
            _refuse_second(cases, path.name, path)
            cases[path.name] = CaseFiles(organs=organs)
        elif path.suffix.lower() == ".npz":
            if (files := cases.get(path.stem)) and (files.organs or files.array):
                _refuse_second(cases, path.stem, path)
            cases[path.stem] = CaseFiles(image=files.image if files else None, array=path)
    if not cases:
        foreign = [path for path in entries if is_foreign(path)]
        more = f". {passed_over(folder, foreign)}" if foreign else ""
        raise BadInputError(
            f"{folder}: neither a run folder (no config.yaml) nor a folder of predictions; expected {_KINDS}{more}"
        )
    return cases


def files_of(name: str, cases: Mapping[str, CaseFiles]) -> CaseFiles | None:
    """The files of a case, also where its scan is CASE_0000 and its prediction CASE; None where there are none."""
    channel = _CHANNEL.fullmatch(name)
    return cases.get(name) or (cases.get(channel[1]) if channel else None)


def _refuse_second(cases: Mapping[str, CaseFiles], name: str, path: Path) -> None:
    if name in cases:
        first = cases[name].paths[0]
        first = first.parent if cases[name].organs else first
        raise BadInputError(
            f"{path.parent}: both {first.name} and {path.name} are predictions of {name}; leave one of the two"
        )


def _read_nnunet(path: Path, label_map: Path, classes: TeacherClasses) -> Prediction:
    """nnU-Net's array in the order of its label map, which alone says where the voxels lie."""
    labels, geometry = read_mask(Source(bare_name(label_map), (label_map,)))
    orders = list(_orders(geometry))

    def check_shape(shape: Sequence[int]) -> None:
        if tuple(shape[1:]) not in {order.shape for order in orders}:
            raise BadInputError(
                f"{path}: holds probabilities of the shape {tuple(shape)}; expected (classes, "
                f"{', '.join(map(str, geometry.shape))}), as its label map {label_map.name} has. Copy both from one "
                "prediction."
            )
        _check_channels(shape[0], classes, path)

    probabilities = read_nnunet_probabilities(path, check_shape=check_shape)
    for order in orders:
        if order.shape != probabilities.shape[1:]:
            continue
        turned = reorient(probabilities, order, geometry)
        likeliest = turned.argmax(0)
        differing = np.count_nonzero(likeliest != labels)
        # Half precision leaves ties, which the two settle differently.
        if differing <= 8 + 0.01 * np.count_nonzero((likeliest > 0) | (labels > 0)):
            return Prediction(_merged(turned, classes, path), geometry)
    raise BadInputError(
        f"{path}: its likeliest classes are not those of its label map {label_map.name}; expected the two files of one "
        "prediction, before any postprocessing. Copy both again, or leave the .npz out."
    )


def _orders(geometry: Geometry) -> Iterator[Geometry]:
    """The voxel orders in which nnU-Net writes its array: that of the file, and for its reorienting reader RAS."""
    yield geometry
    yield geometry.oriented("SAR")


def _read_organs(paths: Sequence[Path], classes: TeacherClasses) -> Prediction:
    """One label map of a folder of masks, each of one organ."""
    values = {path: classes.of_name(bare_name(path), path) for path in paths}
    classes.check_all_taught(set(values.values()), paths[0].parent)
    labels, geometry = np.zeros(0, np.uint8), None
    for path, value in values.items():
        if not value:
            continue
        mask, own = read_mask(Source(bare_name(path), (path,)))
        if geometry is None:
            labels, geometry = np.zeros(own.shape, np.uint16), own
        if not own.same_grid(geometry):
            raise BadInputError(f"{path}: is not on the grid of the other masks in its folder; expected one for all.")
        if len(np.unique(mask[mask > 0])) > 1:
            raise BadInputError(f"{path}: holds several numbers; expected the mask of one organ, 0 and 1.")
        inside = mask > 0
        if shared := np.count_nonzero((labels[inside] != 0) & (labels[inside] != value)):
            raise BadInputError(
                f"{path}: {shared} of its voxels belong to another organ's mask, too; expected masks that do not "
                "overlap. Write one label map instead."
            )
        labels[inside] = value
    assert geometry is not None, "check_all_taught lets no folder pass without a class"
    return Prediction(labels, geometry)


def _check_channels(count: int, classes: TeacherClasses, path: Path) -> None:
    """Raises BadInputError where `count` channels are not those of the classes, the background first."""
    if count <= max(classes.by_number):
        raise BadInputError(
            f"{path}: holds {count} probabilities for each voxel; expected {max(classes.by_number) + 1}, one a class, "
            "the background first"
        )
    for number in range(count):
        classes.of_number(number, path)


def _merged(probabilities: np.ndarray, classes: TeacherClasses, path: Path) -> np.ndarray:
    """Probabilities [K, D, H, W] of the dataset's classes: those of several classes that are one are added."""
    values = [classes.of_number(number, path) for number in range(len(probabilities))]
    classes.check_all_taught(set(values), path)
    if values == list(classes.class_names):
        return probabilities
    merged = np.zeros((len(classes.class_names), *probabilities.shape[1:]), np.float32)
    for value, channel in zip(values, probabilities, strict=True):
        merged[value] += channel
    return merged


def _relabelled(labels: np.ndarray, classes: TeacherClasses, path: Path) -> np.ndarray:
    """A label map [D, H, W] in the dataset's classes."""
    numbers = np.unique(labels)
    values = np.array([classes.of_number(int(number), path) for number in numbers], np.uint16)
    classes.check_all_taught({*classes.by_number.values(), classes.others or 0}, path)
    return values[np.searchsorted(numbers, labels)]
