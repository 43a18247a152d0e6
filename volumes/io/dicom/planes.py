"""The slices of one DICOM file: which it holds, where they lie, and why it holds none.

Messages never repeat text from a header, which may be the patient's name: only numbers and DICOM's own names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import BadInputError
from .files import MOSAIC, load_pydicom, sound

_VALUES = "PixelValueTransformationSequence"
_COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_SCOUTS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SCANOGRAM", "SCANOSCOPE"}
_PROJECTIONS = {"MIP", "MAXIP", "MAXIMUM", "MINIP", "MINIMUM", "VRT", "SSD", "VOLUMERENDER", "VOLUMERENDERING"}
_CALCULATED = ("MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR")
_HOUNSFIELD = ("HU", "HU_MOD", "US")  # the RescaleType of a CT: Hounsfield units, modified ones, unspecified
_ACTIVITY = ("BQML", "GML", "CM2ML")  # the Units of a PET that mean the same in every scan: Bq/ml and two kinds of SUV
_MUST_RESCALE = {"CT": "a CT", "PT": "a PET"}


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
    rescaled: bool  # whether the header has a slope or an intercept; 1 and 0 are taken where it has none
    inverted: bool  # MONOCHROME1: 0 is white


def left_out(header: Any, path: Path) -> str | None:
    """What the file is when it is not a slice of a scan; else None.

    It may be a report, a localizer, a screenshot, a DICOMDIR, or a projection through many slices.
    """
    with sound(path):
        uid = _sop_class(header)
        registered = uid.name != str(uid)
        if registered and "Image Storage" not in uid.name:
            return uid.name
        if not registered and "Rows" not in header:
            return "an object without an image"
        if "Secondary Capture" in uid.name and "ImagePositionPatient" not in header and "NumberOfFrames" not in header:
            return uid.name
        words = _image_type(header)
        if words & _SCOUTS:
            return "a localizer"
        if words & _PROJECTIONS or header.get("VolumeBasedCalculationTechnique") in _CALCULATED:
            return "a projection or rendering of many slices (such as a MIP)"
        return None


def _sop_class(header: Any) -> Any:
    uid = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
    return load_pydicom().uid.UID(uid)


def _image_type(header: Any) -> set[str]:
    """The words of ImageType: its values' parts, and each value as one word ("MIN IP" gives MIN, IP and MINIP)."""
    value = header.get("ImageType") or ()
    values = [str(part).upper() for part in ([value] if isinstance(value, str) else value)]
    parts = {word for part in values for word in re.findall("[A-Z]+", part)}
    return parts | {"".join(re.findall("[A-Z]+", part)) for part in values}


def _modality(header: Any) -> str:
    """ "CT" or "PT" where the class of the object or its modality says so; else what Modality says."""
    name = _sop_class(header).name
    if "CT Image Storage" in name:
        return "CT"
    return "PT" if "Positron" in name or "PET" in name else str(header.get("Modality") or "")


def _tiles(header: Any) -> bool:
    """Whether one image holds several slices side by side, as Siemens stores functional and diffusion MR."""
    if "MOSAIC" in _image_type(header):
        return True
    element = header.get(MOSAIC)
    value = element.value if element is not None and "SIEMENS" in str(header.get((0x0019, 0x0010), "")) else None
    return int.from_bytes(value, "little") > 1 if isinstance(value, bytes) else bool(value and int(value) > 1)


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
        _refuse_other_units(header, path)
        if header.get("ModalityLUTSequence"):
            raise BadInputError(f"{path}: maps its values by a table (Modality LUT). Export it with a rescale slope.")
        count = int(header.get("NumberOfFrames") or 1)
        if count == 1 and _tiles(header):
            raise BadInputError(
                f"{path}: holds several slices tiled into one image (a Siemens MOSAIC). Convert it with dcm2niix."
            )
        shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), {})
        each = list(header.get("PerFrameFunctionalGroupsSequence") or ([{}] if count == 1 else ()))
        if len(each) != count:
            raise BadInputError(f"{path}: says where {len(each)} of its {count} frames lie. Export the series again.")
        return [_plane(header, (frame, shared), path, number) for number, frame in enumerate(each)]


def _refuse_other_units(header: Any, path: Path) -> None:
    """Refuse a CT that is not in Hounsfield units and a PET in a unit that means something else in every scan."""
    modality = _modality(header)
    if modality == "CT" and header.get("PhotometricInterpretation") == "MONOCHROME1":
        raise BadInputError(
            f"{path}: is a CT in MONOCHROME1, so its values are Hounsfield units or their negative. Export it "
            "as MONOCHROME2."
        )
    if modality == "CT" and int(header.get("BitsStored") or 16) <= 8:
        raise BadInputError(
            f"{path}: is a CT of {int(header.BitsStored)} bits, a picture of some grey-value window and not Hounsfield "
            "units. Export the original series."
        )
    if modality == "PT" and (header.get("Units") or "BQML") not in _ACTIVITY:
        raise BadInputError(
            f"{path}: is a PET whose Units are not {', '.join(_ACTIVITY[:-1])} or {_ACTIVITY[-1]}, so its values mean "
            "something else in every scan. Export it in Bq/ml (BQML)."
        )


def _plane(header: Any, groups: Sequence[Any], path: Path, frame: int) -> Plane:
    def look(keyword: str, macro: str) -> Any:
        for group in groups:
            if (item := group.get(macro)) and keyword in item[0]:
                return item[0].get(keyword)
        return header.get(keyword)

    def numbers(keyword: str, macro: str, count: int) -> np.ndarray:
        value = look(keyword, macro)
        numbers = np.asarray([] if value is None or value == "" else value, np.float64).ravel()
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise BadInputError(f"{path}: has {len(numbers)} numbers as {keyword}; expected {count}. Export it again.")
        return numbers

    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise BadInputError(f"{path}: has {rows} rows and {columns} columns: it is cut off or holds no image.")
    axes = numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6).reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(axes[0] @ axes[1]) > 1e-3:
        raise BadInputError(f"{path}: its rows and columns (ImageOrientationPatient) are not two right-angled axes.")
    between_rows, between_columns = numbers("PixelSpacing", "PixelMeasuresSequence", 2).tolist()
    depths = [look(name, "PixelMeasuresSequence") for name in ("SpacingBetweenSlices", "SliceThickness")]
    rescale = [name for name in ("RescaleSlope", "RescaleIntercept") if look(name, _VALUES) is not None]
    if len(rescale) < 2 and (what := _MUST_RESCALE.get(_modality(header))):
        raise BadInputError(
            f"{path}: expected RescaleSlope and RescaleIntercept, which {what} must have, but it has "
            f"{f'only {rescale[0]}' if rescale else 'neither'}: its values could be anything. Export the original "
            "series again, with both."
        )
    if _modality(header) == "CT" and (look("RescaleType", _VALUES) or "HU") not in _HOUNSFIELD:
        raise BadInputError(
            f"{path}: is a CT whose RescaleType is not HU, so its values are not Hounsfield units (a map of iodine, "
            "density or atomic numbers?). Export the series in Hounsfield units."
        )
    slope = float(numbers("RescaleSlope", _VALUES, 1)[0]) if "RescaleSlope" in rescale else 1.0
    shift = float(numbers("RescaleIntercept", _VALUES, 1)[0]) if "RescaleIntercept" in rescale else 0.0
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
        rescaled=bool(rescale),
        inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
    )
