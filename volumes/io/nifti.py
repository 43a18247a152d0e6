"""NIfTI files, read strictly and written exactly. Everything that could be misread is refused.

A file holds (i, j, k) with i fastest, which in memory is [D, H, W] = (k, j, i) without moving a byte.
"""

import functools
import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ...errors import BadInputError, OutputError, translated
from ..files import atomic_path
from ..geometry import Geometry, Volume
from ..memory import available_memory
from .gzipped import DAMAGE, GzipReader
from .nifti_header import (
    Layout,
    channel_count,
    geometry_of,
    header_like,
    layout_of,
    new_header,
    parse_header,
    scaling_of,
    spatial_shape,
)

_CHUNK = 1 << 24
_WHOLE = 1e-3  # how far from a whole number a label may be stored
_LARGEST_STEP = 0.1  # between stored integers: above it, values between two labels could not be told from rounding
_Stream = GzipReader | BufferedReader
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _boundary(read: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function whose first argument is a path, and out of which nothing but a SamkdError comes of a file."""

    @functools.wraps(read)
    def reading(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with translated(args[0], "cannot be read as NIfTI. Copy or export it again"):
            return read(*args, **kwargs)

    return reading


@_boundary
def read_scan(path: str | Path, *, channels: int = 1) -> Volume:
    """Intensities float32 [channels, D, H, W], slope and intercept applied. Raises BadInputError."""
    path = Path(path)
    raw, header, geometry = _read(path, channels)
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32)
    slope, intercept = scaling_of(header, path)
    if (slope, intercept) != (1, 0):
        values *= np.float32(slope)
        values += np.float32(intercept)
    _refuse_not_finite(values, path)
    return Volume(values, geometry)


@_boundary
def read_geometry(path: str | Path) -> Geometry:
    """The grid of a scan, from its header alone. Raises BadInputError."""
    path = Path(path)
    header = _header_of(path)
    return geometry_of(header, spatial_shape(header), path)


@_boundary
def read_channel_count(path: str | Path) -> int:
    """How many values a file holds for each voxel, from its header alone: 1 for a label map. Raises BadInputError."""
    return channel_count(_header_of(Path(path)))


@_boundary
def memory_to_read(path: str | Path, *, channels: int = 1) -> float:
    """Bytes that read_scan holds at most, from the header alone: the voxels as stored and as float32. Raises
    BadInputError.
    """
    path = Path(path)
    return _memory_to_read(layout_of(_header_of(path), channels, path))


@_boundary
def read_labels(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Labels [D, H, W], uint8 (uint16 when one exceeds 255), and their grid. Raises BadInputError.

    Labels are whole numbers from 0 to 65535, whatever the type they are stored in. A value within 1e-3 of a whole
    number is that number. So is one within half a step of the stored integers, where the header's slope makes such
    steps and they are no larger than 0.1: a program that saves a mask scaled leaves that rounding in it.
    """
    path = Path(path)
    raw, header, geometry = _read(path, 1)
    values = raw[0]
    slope, intercept = scaling_of(header, path)
    scaled = (slope, intercept) != (1, 0)
    if scaled:
        values = values.astype(np.float64) * slope + intercept
    if values.dtype.kind == "f":
        _refuse_not_finite(values, path)
        step = abs(slope) if scaled and raw.dtype.kind in "iu" else 0.0
        tolerance = max(_WHOLE, 0.501 * step if step <= _LARGEST_STEP else 0.0)
        whole = np.rint(values)
        broken = values[np.abs(values - whole) > tolerance]
        if broken.size:
            raise BadInputError(
                f"{path}: holds {broken.size} values that are not whole numbers, such as {broken[0]:.8g}"
                f"{f' (stored numbers times scl_slope {slope:.6g} plus scl_inter {intercept:.6g})' if scaled else ''}; "
                "expected labels. Check that this is a mask, that it was resampled with nearest neighbour, and save it "
                "as integers without a slope."
            )
        values = whole
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise BadInputError(f"{path}: holds labels from {low:g} to {high:g}; expected 0 to 65535.")
    return values.astype(_label_type(int(high))), geometry


def write_labels(path: str | Path, labels: np.ndarray, geometry: Geometry, *, like: str | Path | None) -> None:
    """Write labels [D, H, W] as uint8, or uint16 when one exceeds 255; the same labels give the same bytes.

    `like` is the scan they belong to: its sform, qform, their codes and its units are kept to the bit. Raises
    BadInputError when the labels are not on that grid, OutputError when the file cannot be written.
    """
    path = Path(path)
    if labels.shape != geometry.shape:
        raise BadInputError(f"{path}: labels of shape {labels.shape} do not fit the scan's {geometry.shape}.")
    if labels.dtype.kind not in "biu" or labels.min() < 0 or labels.max() > 65535:
        raise BadInputError(
            f"{path}: labels from {labels.min()} to {labels.max()} of type {labels.dtype}; expected integers "
            "from 0 to 65535."
        )
    data = labels.astype(_label_type(int(labels.max())))
    header = new_header(geometry) if like is None else header_like(_header_of(Path(like)), geometry, Path(like))
    _write(path, header, data)


def write_scan(path: str | Path, volume: Volume) -> None:
    """Write a scan as float32; 4-D when it has more than one channel. Raises OutputError."""
    data = volume.array.astype("<f4")
    _write(Path(path), new_header(volume.geometry), data[0] if len(data) == 1 else data)


def write_for_display(path: str | Path, volume: Volume) -> None:
    """Write a scan for a viewer, packed fast: int16 where that holds its values, else float32. Raises OutputError."""
    with np.errstate(invalid="ignore"):
        whole = volume.array.astype("<i2")
    data = whole if np.array_equal(whole, volume.array) else volume.array.astype("<f4")
    _write(Path(path), new_header(volume.geometry), data[0] if len(data) == 1 else data, level=1)


def _read(path: Path, channels: int) -> tuple[np.ndarray, Any, Geometry]:
    with _opened(path) as stream:
        header, start = _read_header(stream, path)
        layout = layout_of(header, channels, path)
        geometry = geometry_of(header, layout.shape[1:], path)
        _refuse_larger_than_memory(layout, path)
        rest = _take(stream, layout.length - start, path)
        # Asking for more also makes gzip compare the checksum and the length at the end of the stream.
        if stream.read(1):
            raise BadInputError(
                f"{path}: goes on after the {layout.length} bytes its header announces. The file is damaged, "
                "or its header belongs to other data: copy or export the scan again."
            )
    values = np.frombuffer(rest, layout.dtype, prod(layout.shape), layout.offset - start)
    return values.reshape(layout.shape), header, geometry


@contextmanager
def _opened(path: Path) -> Iterator[_Stream]:
    try:
        with path.open("rb") as file:
            yield GzipReader(fileobj=file, mode="rb") if _is_compressed(path, BadInputError) else file
    except DAMAGE as error:
        raise BadInputError(
            f"{path}: the compressed data are damaged or cut off ({error}). Copy or export the scan again."
        ) from error
    except OSError as error:
        raise BadInputError(
            f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        ) from error


def _is_compressed(path: Path, fault: type[BadInputError]) -> bool:
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise fault(f"{path}: expected a NIfTI file, named *.nii or *.nii.gz.")
    return name.endswith(".gz")


def _take(stream: _Stream, count: int, path: Path) -> bytearray:
    # Grows with what is really there: a header that announces too much costs no memory.
    data = bytearray()
    while len(data) < count:
        chunk = stream.read(min(_CHUNK, count - len(data)))
        if not chunk:
            raise BadInputError(
                f"{path}: ends {count - len(data)} bytes before what its header announces. The file is cut off: "
                "copy or export the scan again."
            )
        data += chunk
    return data


def _read_header(stream: _Stream, path: Path) -> tuple[Any, int]:
    return parse_header(stream.read(4), lambda count: _take(stream, count, path), path)


def _header_of(path: Path) -> Any:
    with _opened(path) as stream:
        return _read_header(stream, path)[0]


def _refuse_not_finite(values: np.ndarray, path: Path) -> None:
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        count = values.size - int(np.isfinite(values).sum())
        raise BadInputError(
            f"{path}: holds {count} voxels that are NaN, infinite or too large; expected finite numbers. "
            "Replace them, in a scan for example with the value of air."
        )


def _refuse_larger_than_memory(layout: Layout, path: Path) -> None:
    needed = _memory_to_read(layout)
    available = available_memory()
    if needed > available:
        raise BadInputError(
            f"{path}: announces {layout.shape} voxels, {needed / 1e9:.1f} GB to read; {available / 1e9:.1f} GB of "
            "memory are free. Check the header, or use a machine with more memory."
        )


def _memory_to_read(layout: Layout) -> float:
    return layout.length + 4.0 * prod(layout.shape)


def _label_type(largest: int) -> str:
    return "<u1" if largest <= 255 else "<u2"


def _write(path: Path, header: Any, data: np.ndarray, *, level: int = 6) -> None:
    compressed = _is_compressed(path, OutputError)
    spacing = header["pixdim"][:4].copy()
    header.set_data_shape(data.shape[-3:][::-1] + data.shape[:-3])
    header["pixdim"][:4] = spacing
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    header["descrip"] = b"samkd"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # No name and no time in the gzip header: equal content gives equal bytes.
        packed = gzip.GzipFile("", "wb", level, file, mtime=0) if compressed else nullcontext(file)
        with packed as stream:
            stream.write(header.binaryblock + bytes(4))
            stream.write(np.ascontiguousarray(data).data.cast("B"))
