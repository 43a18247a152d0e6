"""One DICOM file: whether it is one, which planes it holds and where they lie.

Messages never repeat text from a header, nor what pydicom says about it: that may be the patient's name. Only numbers
and DICOM's own registered names are shown. pydicom is loaded by the first call. samkd is no de-identification tool.
"""

import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ....errors import BadInputError, MissingExtraError, SamkdError

_TAGS = [
    *("SOPClassUID", "ImageType", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesTime", "SeriesDescription"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_VALUES = "PixelValueTransformationSequence"
_COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
INSTALL = (
    "pip install 'samkd[dicom]'; on a device without samkd: pip install pydicom pylibjpeg pylibjpeg-openjpeg "
    "python-gdcm"
)


@functools.cache
def load_pydicom() -> ModuleType:
    """The module `pydicom`, its warnings and its log off: both repeat header values. Raises MissingExtraError."""
    try:
        import pydicom
        import pydicom.config
        import pydicom.pixels
    except ImportError as error:
        raise MissingExtraError(f"DICOM is read by pydicom, which is not here; {INSTALL}") from error
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "highdicom", "pylibjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom|highdicom|samkd\.volumes\.dicom")
    return pydicom


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice: a file, or a frame of one. Lengths in mm, directions and position in DICOM's LPS+ frame."""

    file: Path
    frame: int
    size: tuple[int, int]  # rows, columns
    position: np.ndarray  # [3], of the first pixel's centre
    axes: np.ndarray  # [2, 3], unit vectors in which columns (the first) and rows (the second) increase
    spacing: tuple[float, float]  # between rows, between columns
    depth: float | None  # between slices, or their thickness, as far as the header says
    slope: float
    intercept: float
    inverted: bool  # MONOCHROME1: 0 is white


def is_dicom(path: Path) -> bool:
    """Whether it is a file with DICOM's mark "DICM" behind the preamble. Raises BadInputError."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from error


def read_header(path: Path) -> Any:
    """The pydicom Dataset of a file, with what this module needs of it and no pixels. Raises BadInputError."""
    if not is_dicom(path):
        raise BadInputError(f"{path}: is no DICOM file; expected DICOM, NIfTI (.nii, .nii.gz) or a picture.")
    with sound(path):
        return load_pydicom().dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)


def left_out(header: Any, path: Path) -> str | None:
    """What the file is when it is not a slice of a scan: a report, a localizer, a screenshot, a DICOMDIR; else None."""
    with sound(path):
        uid = load_pydicom().uid.UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
        registered = uid.name != str(uid)
        if registered and "Image Storage" not in uid.name:
            return uid.name
        if not registered and "Rows" not in header:
            return "an object without an image"
        if "Secondary Capture" in uid.name and "ImagePositionPatient" not in header and "NumberOfFrames" not in header:
            return uid.name
        return "a localizer" if "LOCALIZER" in (header.get("ImageType") or ()) else None


def series_key(header: Any, path: Path) -> tuple[str, ...]:
    """Equal for the files of one series: its UID; where that is blank the folder and what else tells series apart."""
    with sound(path):
        if uid := str(header.get("SeriesInstanceUID") or ""):
            return (uid,)
        told = (header.get(name) for name in ("Modality", "SeriesNumber", "SeriesTime", "SeriesDescription"))
        return ("", str(path.parent), *map(str, told))


def planes(header: Any, path: Path) -> list[Plane]:
    """The slices of a file: one, or those of a multi-frame object. Raises BadInputError."""
    with sound(path):
        if kind := left_out(header, path):
            raise BadInputError(f"{path}: is no slice of a scan but {kind}. Leave it out.")
        samples, colour = header.get("SamplesPerPixel", 1), header.get("PhotometricInterpretation")
        if samples != 1 or colour not in ("MONOCHROME1", "MONOCHROME2"):
            shown = colour if colour in _COLOURS else f"{samples} values per pixel of an unknown kind"
            raise BadInputError(f"{path}: holds {shown}; expected grey values (MONOCHROME1 or 2). Leave it out.")
        if colour == "MONOCHROME1" and header.get("Modality") == "CT":
            raise BadInputError(
                f"{path}: is a CT in MONOCHROME1, so its values are Hounsfield units or their negative. Export it "
                "as MONOCHROME2."
            )
        if header.get("ModalityLUTSequence"):
            raise BadInputError(f"{path}: maps its values by a table (Modality LUT). Export it with a rescale slope.")
        count = int(header.get("NumberOfFrames") or 1)
        shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), {})
        each = list(header.get("PerFrameFunctionalGroupsSequence") or ([{}] if count == 1 else ()))
        if len(each) != count:
            raise BadInputError(f"{path}: says where {len(each)} of its {count} frames lie. Export the series again.")
        return [_plane(header, (frame, shared), path, number) for number, frame in enumerate(each)]


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Whatever pydicom and the decoders stumble over becomes a BadInputError that names the file and no value."""
    try:
        yield
    except SamkdError:
        raise
    except MemoryError as error:
        raise BadInputError(f"{path}: does not fit into memory. Use a machine with more of it.") from error
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    except Exception as error:
        raise BadInputError(
            f"{path}: is damaged or no sound DICOM file ({type(error).__name__}). Copy or export it again."
        ) from error


def _plane(header: Any, groups: Sequence[Any], path: Path, frame: int) -> Plane:
    def look(keyword: str, macro: str) -> Any:
        for group in groups:
            if (item := group.get(macro)) and keyword in item[0]:
                return item[0].get(keyword)
        return header.get(keyword)

    def numbers(keyword: str, macro: str, count: int) -> np.ndarray:
        value = look(keyword, macro)
        found = np.asarray([] if value is None or value == "" else value, np.float64).ravel()
        if len(found) != count or not np.isfinite(found).all():
            raise BadInputError(f"{path}: has {len(found)} numbers as {keyword}; expected {count}. Export it again.")
        return found

    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise BadInputError(f"{path}: has {rows} rows and {columns} columns: it is cut off or holds no image.")
    axes = numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6).reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(axes[0] @ axes[1]) > 1e-3:
        raise BadInputError(f"{path}: its rows and columns (ImageOrientationPatient) are not two right-angled axes.")
    between_rows, between_columns = numbers("PixelSpacing", "PixelMeasuresSequence", 2).tolist()
    depths = [look(name, "PixelMeasuresSequence") for name in ("SpacingBetweenSlices", "SliceThickness")]
    slope = float(numbers("RescaleSlope", _VALUES, 1)[0]) if look("RescaleSlope", _VALUES) is not None else 1.0
    shift = float(numbers("RescaleIntercept", _VALUES, 1)[0]) if look("RescaleIntercept", _VALUES) is not None else 0.0
    if min(between_rows, between_columns) < 1e-6 or slope == 0:
        raise BadInputError(
            f"{path}: has the pixel spacing {between_rows:g} x {between_columns:g} mm and the rescale slope {slope:g}; "
            "expected a positive spacing and a slope other than 0."
        )
    return Plane(
        file=path,
        frame=frame,
        size=(rows, columns),
        position=numbers("ImagePositionPatient", "PlanePositionSequence", 3),
        axes=axes / lengths[:, None],
        spacing=(between_rows, between_columns),
        depth=next((abs(float(depth)) for depth in depths if depth), None),
        slope=slope,
        intercept=shift,
        inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
    )
