"""Prepared arrays on disk: an .npy each, and beside them their checksums, which belong to one case and one plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import BadInputError, IntegrityError
from ..volumes.files import atomic_path, file_digest, make_folder, write_json
from ..volumes.json_files import read_json

# Type and number of axes of each part: the image [C, D, H, W], the affine of its grid [4, 4], the labels [D, H, W].
_FORMS = {"image": (np.float32, 4), "affine": (np.float64, 2), "labels": (np.uint8, 3)}


def array_file(folder: Path, stem: str, part: str) -> Path:
    return folder / f"{stem}.{part}.npy"


def _sums_file(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.sums.json"


def has_arrays(folder: Path, stem: str, parts: tuple[str, ...]) -> bool:
    """Whether all parts of a case are there with their sums, which earlier releases did not write."""
    return all(
        path.exists() for path in (*(array_file(folder, stem, part) for part in parts), _sums_file(folder, stem))
    )


def write_arrays(folder: Path, stem: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the parts of a case, their sums last: a case that was cut short by a kill is made anew. OutputError."""
    make_folder(folder)
    for part, array in arrays.items():
        with atomic_path(array_file(folder, stem, part)) as temporary, temporary.open("wb") as stream:
            _write_array(stream, np.ascontiguousarray(array))
    sums = {part: file_digest(array_file(folder, stem, part)) for part in arrays}
    write_json(_sums_file(folder, stem), {"case": _owner(folder, stem), "sha256": sums})


def _write_array(stream: IO[bytes], array: np.ndarray) -> None:
    """The bytes of np.save. That hands a real file over to C's buffers, whose last part a full disk swallows without an
    error; what Python writes itself ends in OSError.
    """
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    stream.write(array.data)


def read_arrays(folder: Path, stem: str, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Memory maps of the parts of a case. Raises IntegrityError for what is not as it was written."""
    path = _sums_file(folder, stem)
    try:
        sums = read_json(path)
        if sums["case"] != _owner(folder, stem):
            raise ValueError("another case's")
        expected = {part: sums["sha256"][part] for part in parts}
    except (BadInputError, ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from None
    arrays = {}
    for part, checksum in expected.items():
        path = array_file(folder, stem, part)
        try:
            if file_digest(path) != checksum:
                raise ValueError("it does not match its checksum")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            dtype, axes = _FORMS[part]
            if array.dtype != dtype or array.ndim != axes:
                raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        except (BadInputError, OSError, EOFError, ValueError, TypeError) as error:
            raise _damaged(path, error) from None
        arrays[part] = array
    if "labels" in arrays and arrays["labels"].shape != arrays["image"].shape[1:]:
        raise _damaged(path, "its grid is not that of the image")
    return arrays


def _owner(folder: Path, stem: str) -> str:
    return f"{folder.name}/{stem}"


def _damaged(path: Path, what: object) -> IntegrityError:
    return IntegrityError(f"{path}: this prepared case is damaged: {what}; delete the file, it is made anew")
