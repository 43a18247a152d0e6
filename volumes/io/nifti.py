"""NIfTI files, read strictly and written exactly. Everything that could be misread is refused.

A file holds (i, j, k) with i fastest, which in memory is [D, H, W] = (k, j, i) without moving a byte.
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadInputError, OutputError
from ..files import atomic_path
from ..geometry import Geometry, Volume
from ..hidden import hidden
from ..memory import available_memory
from .gzipped import DAMAGE, GzipReader

with hidden("pydicom"):  # half a second, for a header extension that is never read
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

_PLACE_FIELDS = (
    *("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
_CHUNK = 1 << 24
_WHOLE = 1e-3  # how far from a whole number a label may be stored
_LARGEST_STEP = 0.1  # between stored integers: above it, values between two labels could not be told from rounding
_Stream = GzipReader | BufferedReader
# Onto a rectangular grid in the patient's directions, with its lowest value (air) where the scan does not reach.
RESAMPLE = (
    "python -c \"import nibabel as n, nibabel.processing as p; i = n.load('IN.nii.gz'); "
    "n.save(p.resample_to_output(i, order=1, cval=i.get_fdata().min()), 'OUT.nii.gz')\""
)


def read_scan(path: str | Path, *, channels: int = 1) -> Volume:
    """Intensities float32 [channels, D, H, W], slope and intercept applied. Raises BadInputError."""
    path = Path(path)
    raw, header, geometry = _read(path, channels)
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32)
    slope, intercept = _scaling(header, path)
    if (slope, intercept) != (1, 0):
        values *= np.float32(slope)
        values += np.float32(intercept)
    _refuse_not_finite(values, path)
    return Volume(values, geometry)


def read_geometry(path: str | Path) -> Geometry:
    """The grid of a scan, from its header alone. Raises BadInputError."""
    path = Path(path)
    with _opened(path) as stream:
        header, _ = _read_header(stream, path)
    width, height, depth = (max(1, int(n)) for n in header["dim"][1:4])
    return _geometry(header, (depth, height, width), path)


def read_labels(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Labels [D, H, W], uint8 (uint16 when one exceeds 255), and their grid. Raises BadInputError.

    Labels are whole numbers from 0 to 65535, whatever the type they are stored in. A value within 1e-3 of a whole
    number is that number. So is one within half a step of the stored integers, where the header's slope makes such
    steps and they are no larger than 0.1: a program that saves a mask scaled leaves that rounding in it.
    """
    path = Path(path)
    raw, header, geometry = _read(path, 1)
    values = raw[0]
    slope, intercept = _scaling(header, path)
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
    header = _new_header(geometry) if like is None else _header_like(Path(like), geometry)
    _write(path, header, data)


def write_scan(path: str | Path, volume: Volume) -> None:
    """Write a scan as float32; 4-D when it has more than one channel. Raises OutputError."""
    data = volume.array.astype("<f4")
    _write(Path(path), _new_header(volume.geometry), data[0] if len(data) == 1 else data)


class _Layout(NamedTuple):
    shape: tuple[int, int, int, int]  # C, D, H, W
    dtype: np.dtype
    offset: int  # of the first voxel, in bytes from the start of the file
    length: int  # of the whole file, in bytes


def _read(path: Path, channels: int) -> tuple[np.ndarray, Any, Geometry]:
    with _opened(path) as stream:
        header, start = _read_header(stream, path)
        layout = _layout(header, channels, path)
        geometry = _geometry(header, layout.shape[1:], path)
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
    except MemoryError as error:
        raise BadInputError(f"{path}: does not fit into memory. Use a machine with more of it.") from error
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
    start = stream.read(4)
    for order in ("<", ">"):
        size = int.from_bytes(start, "little" if order == "<" else "big")
        if len(start) == 4 and size in (348, 540):
            kind = Nifti1Header if size == 348 else Nifti2Header
            header = kind(start + bytes(_take(stream, size - 4, path)), endianness=order, check=False)
            if bytes(header["magic"].item())[:3] == (b"n+1" if size == 348 else b"n+2"):
                return header, size
    raise BadInputError(
        f"{path}: is not a single-file NIfTI-1 or NIfTI-2 image. Convert it, for example with dcm2niix."
    )


def _layout(header: Any, channels: int, path: Path) -> _Layout:
    rank = int(header["dim"][0])
    dims = [int(n) for n in header["dim"][1 : rank + 1]] if 2 <= rank <= 7 else []
    if not dims or min(dims) < 1:
        raise BadInputError(
            f"{path}: its header gives the dimensions {header['dim'].tolist()}; expected positive ones."
        )
    extra = [n for n in dims[3:] if n > 1]
    if len(extra) > 1 or prod(extra) != channels:
        raise BadInputError(
            f"{path}: is {rank}-D, {tuple(dims)}, with {prod(extra)} value(s) per voxel; expected {channels}. "
            "Give the one scan that is meant, or all its channels (NAME_0000, NAME_0001, ...; a dataset names them in "
            "dataset.json)."
        )
    width, height, depth = [*dims, 1][:3]
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise BadInputError(f"{path}: has the unknown data type {int(header['datatype'])}.") from error
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        name = header.get_data_dtype().name
        raise BadInputError(f"{path}: holds {name} voxels; expected integers or floats of at most 64 bits.")
    offset = float(header["vox_offset"])
    first = int(header["sizeof_hdr"]) + 4
    if not offset >= first or offset != int(offset):
        raise BadInputError(f"{path}: its data start at byte {offset:g}; expected {first} or more.")
    shape = (channels, depth, height, width)
    return _Layout(shape, dtype, int(offset), int(offset) + prod(shape) * dtype.itemsize)


def _geometry(header: Any, shape: tuple[int, int, int], path: Path) -> Geometry:
    spacing = np.asarray(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise BadInputError(f"{path}: has the voxel spacing {spacing.tolist()}; expected positive millimetres.")
    if int(header["xyzt_units"]) % 8 not in (0, 2):
        raise BadInputError(f"{path}: gives lengths in {header.get_xyzt_units()[0]}; expected mm.")
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        raise BadInputError(
            f"{path}: does not say where it lies (sform and qform codes are {sform_code} and {qform_code}), so left "
            "and right are unknown. Export it again from the DICOM series, or set its affine if you know it."
        )
    if sform_code <= 0:
        return _checked(_qform(header, path), shape, path)
    geometry = _checked(header.get_sform(), shape, path)
    if sform_code == qform_code:
        other = _checked(_qform(header, path), shape, path)
        if not geometry.same_grid(other, tolerance_mm=min(geometry.spacing) / 2):
            distance = np.linalg.norm(geometry.corners() - other.corners(), axis=1).max()
            raise BadInputError(
                f"{path}: its sform and its qform, both of code {sform_code}, place a corner {distance:.2f} mm apart. "
                "One of them is wrong: export the scan again, or set the code of the wrong one to 0."
            )
    return geometry


def _qform(header: Any, path: Path) -> np.ndarray:
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # the NIfTI-1 standard's reading of a missing qfac
    try:
        return header.get_qform()
    except (HeaderDataError, ValueError) as error:
        raise BadInputError(f"{path}: its qform is no rotation ({error}). Export the scan again.") from error


def _checked(affine: np.ndarray, shape: tuple[int, int, int], path: Path) -> Geometry:
    geometry = Geometry(np.asarray(affine, np.float64)[:, [2, 1, 0, 3]], shape)
    columns = geometry.affine[:3, :3]
    if not np.isfinite(geometry.affine).all() or min(geometry.spacing) < 1e-6:
        raise BadInputError(
            f"{path}: its affine {np.asarray(affine).tolist()} is singular; expected three axes of positive length."
        )
    cosines = columns.T @ columns / np.outer(geometry.spacing, geometry.spacing)
    worst = np.abs(cosines - np.eye(3)).max()
    if worst > 1e-3:
        raise BadInputError(
            f"{path}: its axes are sheared, two of them {np.degrees(np.arccos(min(worst, 1.0))):.1f} degrees apart "
            "instead of 90 (a tilted gantry?). From the DICOM series dcm2niix makes a rectangular one: take its file "
            "named *_Tilt*. Without the series, resample this file (a mask with order=0): "
            f"{RESAMPLE}"
        )
    return geometry


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise BadInputError(f"{path}: its slope and intercept are not numbers ({error}).") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))


def _refuse_not_finite(values: np.ndarray, path: Path) -> None:
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        count = values.size - int(np.isfinite(values).sum())
        raise BadInputError(
            f"{path}: holds {count} voxels that are NaN, infinite or too large; expected finite numbers. "
            "Replace them, for example with the value of air."
        )


def _refuse_larger_than_memory(layout: _Layout, path: Path) -> None:
    needed = layout.length + 4 * prod(layout.shape)  # as stored, and as float32
    available = available_memory()
    if needed > available:
        raise BadInputError(
            f"{path}: announces {layout.shape} voxels, {needed / 1e9:.1f} GB to read; {available / 1e9:.1f} GB of "
            "memory are free. Check the header, or use a machine with more memory."
        )


def _label_type(largest: int) -> str:
    return "<u1" if largest <= 255 else "<u2"


def _new_header(geometry: Geometry) -> Any:
    header = Nifti1Header(endianness="<")
    affine = geometry.affine[:, [2, 1, 0, 3]]
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    return header


def _header_like(like: Path, geometry: Geometry) -> Any:
    with _opened(like) as stream:
        source, _ = _read_header(stream, like)
    width, height, depth = (max(1, int(n)) for n in source["dim"][1:4])
    if not geometry.same_grid(_geometry(source, (depth, height, width), like)):
        raise BadInputError(f"{like}: is not on the grid of the labels that are to be written like it.")
    header = type(source)(endianness="<")
    header["pixdim"][:4] = source["pixdim"][:4]
    for field in _PLACE_FIELDS:
        header[field] = source[field]
    return header


def _write(path: Path, header: Any, data: np.ndarray) -> None:
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
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if compressed else nullcontext(file)
        with packed as stream:
            stream.write(header.binaryblock + bytes(4))
            stream.write(np.ascontiguousarray(data).data.cast("B"))
