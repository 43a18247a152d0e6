"""Class probabilities that another tool wrote: a 4-D NIfTI file, or the array of nnU-Net's --save_probabilities."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ...errors import BadInputError, translated
from ..files import regular_file
from ..geometry import Geometry
from .nifti import read_scan

_ARRAY = "probabilities"  # what nnU-Net v2 calls it in its .npz
_ROUNDING = 1e-3  # how far outside [0, 1] a stored probability may lie
_SUM = 0.02  # how far from 1 the sum over classes may lie; more where 8 bits hold each of many classes
_NNUNET = "cannot be read as the probabilities of nnU-Net v2. Predict again with --save_probabilities"


def read_probabilities(path: Path, *, classes: int) -> tuple[np.ndarray, Geometry]:
    """float32 [K, D, H, W] from a 4-D NIfTI file of `classes` values a voxel, and their grid. Raises BadInputError."""
    volume = read_scan(path, channels=classes)
    return _checked(volume.array, path), volume.geometry


def read_nnunet_probabilities(path: Path, *, check_shape: Callable[[tuple[int, ...]], None]) -> np.ndarray:
    """float32 [K, D, H, W] from the .npz that nnU-Net v2 writes beside a label map; no pickled object is ever read.

    `check_shape` raises for a shape that is not expected; it is called before any voxel is unpacked, so that a file
    cannot announce more than its label map has. Raises BadInputError.
    """
    with translated(path, _NNUNET), zipfile.ZipFile(regular_file(path)) as archive:
        member = f"{_ARRAY}.npy"
        if member not in archive.namelist():
            names = ", ".join(archive.namelist()[:5]) or "nothing"
            raise BadInputError(f"{path}: holds {names}; expected the array {_ARRAY!r} that nnU-Net v2 writes.")
        with archive.open(member) as stream:
            shape, dtype = _npy_header(stream)
        if dtype.kind != "f":
            what = "pickled objects, which could run code and are never read" if dtype.hasobject else f"{dtype} values"
            raise BadInputError(f"{path}: {_ARRAY!r} holds {what}; expected floats.")
        check_shape(shape)
        with archive.open(member) as stream:
            array = npy.read_array(stream, allow_pickle=False)
    return _checked(array.astype(np.float32), path)


def _npy_header(stream) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _checked(values: np.ndarray, path: Path) -> np.ndarray:
    """The probabilities [K, ...], scaled to sum to exactly 1 over classes. Raises BadInputError for what are none."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        count = values.size - int(np.isfinite(values).sum())
        raise BadInputError(f"{path}: holds {count} probabilities that are NaN or infinite; predict this case again.")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise BadInputError(
            f"{path}: holds values from {low:.4g} to {high:.4g}; expected probabilities from 0 to 1. If these are "
            "logits, save their softmax."
        )
    np.clip(values, 0, 1, out=values)
    total = values.sum(axis=0)
    worst = float(np.abs(total - 1).max())
    if worst > max(_SUM, len(values) / 510):
        raise BadInputError(
            f"{path}: the probabilities of a voxel sum to {total.flat[np.abs(total - 1).argmax()]:.4g}; expected 1 "
            f"over all {len(values)} classes, the background first. Regions that overlap, or a sigmoid for each class, "
            "are not read: give label maps."
        )
    values /= total
    return values
