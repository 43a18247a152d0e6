"""What a NIfTI header says: layout of the voxels, place in the patient, scaling. What could be misread is refused."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadInputError, translated
from ..geometry import Geometry
from ..hidden import hidden

with hidden("pydicom"):  # half a second, for a header extension that is never read
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

_PLACE_FIELDS = (
    *("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
# Onto a rectangular grid in the patient's directions, with its lowest value (air) where the scan does not reach.
RESAMPLE = (
    "python -c \"import nibabel as n, nibabel.processing as p; i = n.load('IN.nii.gz'); "
    "n.save(p.resample_to_output(i, order=1, cval=i.get_fdata().min()), 'OUT.nii.gz')\""
)


class Layout(NamedTuple):
    """How the voxels lie in the file."""

    shape: tuple[int, int, int, int]  # C, D, H, W
    dtype: np.dtype
    offset: int  # of the first voxel, in bytes from the start of the file
    length: int  # of the whole file, in bytes


def parse_header(start: bytes, take: Callable[[int], bytes | bytearray], path: Path) -> tuple[Any, int]:
    """The header that begins with the four bytes `start`, and its size; `take` gives that many bytes that follow.

    Raises BadInputError for what is no single-file NIfTI-1 or NIfTI-2 image.
    """
    for order in ("<", ">"):
        size = int.from_bytes(start, "little" if order == "<" else "big")
        if len(start) == 4 and size in (348, 540):
            kind = Nifti1Header if size == 348 else Nifti2Header
            header = kind(start + bytes(take(size - 4)), endianness=order, check=False)
            if bytes(header["magic"].item())[:3] == (b"n+1" if size == 348 else b"n+2"):
                return header, size
    raise BadInputError(
        f"{path}: is not a single-file NIfTI-1 or NIfTI-2 image. Convert it, for example with dcm2niix."
    )


def layout_of(header: Any, channels: int, path: Path) -> Layout:
    """How the voxels of `channels` channels lie in the file. Raises BadInputError."""
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
    with translated(path, f"has the unknown data type {int(header['datatype'])}"):
        dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        name = header.get_data_dtype().name
        raise BadInputError(f"{path}: holds {name} voxels; expected integers or floats of at most 64 bits.")
    offset = float(header["vox_offset"])
    first = int(header["sizeof_hdr"]) + 4
    if not offset >= first or offset != int(offset):
        raise BadInputError(f"{path}: its data start at byte {offset:g}; expected {first} or more.")
    shape = (channels, depth, height, width)
    return Layout(shape, dtype, int(offset), int(offset) + prod(shape) * dtype.itemsize)


def geometry_of(header: Any, shape: tuple[int, int, int], path: Path) -> Geometry:
    """Where voxels of a `shape` (D, H, W) lie in the patient. Raises BadInputError where the header leaves doubt."""
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
    with translated(path, "its qform is no rotation. Export the scan again"):
        return header.get_qform()


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


def scaling_of(header: Any, path: Path) -> tuple[float, float]:
    """Slope and intercept of stored values; 1 and 0 where there are none. Raises BadInputError."""
    with translated(path, "its slope and intercept are not numbers"):
        slope, intercept = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))


def new_header(geometry: Geometry) -> Any:
    """A NIfTI-1 header for a grid: sform and qform of code 1, in mm."""
    header = Nifti1Header(endianness="<")
    affine = geometry.affine[:, [2, 1, 0, 3]]
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    return header


def header_like(source: Any, geometry: Geometry, like: Path) -> Any:
    """A header that says where its voxels lie in the very words of `source`, the header of the file `like`.

    Raises BadInputError when that is another grid than `geometry`.
    """
    if not geometry.same_grid(geometry_of(source, spatial_shape(source), like)):
        raise BadInputError(f"{like}: is not on the grid of the labels that are to be written like it.")
    header = type(source)(endianness="<")
    header["pixdim"][:4] = source["pixdim"][:4]
    for field in _PLACE_FIELDS:
        header[field] = source[field]
    return header


def channel_count(header: Any) -> int:
    """The product of the dimensions after the three of space."""
    return prod(max(1, int(n)) for n in header["dim"][4 : 1 + max(0, min(int(header["dim"][0]), 7))])


def spatial_shape(header: Any) -> tuple[int, int, int]:
    """(D, H, W); an axis that the header leaves out has one voxel."""
    width, height, depth = (max(1, int(n)) for n in header["dim"][1:4])
    return depth, height, width
