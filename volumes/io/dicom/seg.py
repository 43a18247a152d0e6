"""Masks as DICOM-SEG, which refer to the very slices they were made from. Written by highdicom.

A DICOM-SEG carries the patient and the study of its source by definition, so it is written on request only.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .... import __version__
from ....errors import BadInputError, MissingExtraError, UsageError, translated
from ...files import atomic_path
from ...geometry import Geometry
from .files import is_dicom, load_pydicom, read_dicom, sound
from .organ_codes import organ
from .planes import Plane
from .series import assemble

_INSTALL = "pip install 'samkd[dicom]'; on a device without samkd: pip install highdicom"
KINDS = ("binary", "labelmap")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_MAY_BE_BLANK = (  # but must be there, by the standard, which not every exporter follows
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


def is_seg(path: Path) -> bool:
    """Whether an output of that name is to be DICOM-SEG."""
    return path.suffix.lower() == ".dcm"


def check_source(files: Sequence[Path], *, kind: str = "binary") -> None:
    """Refuse, before any work, what write_seg would refuse. Raises BadInputError, UsageError, MissingExtraError."""
    if kind not in KINDS:
        raise UsageError(f"--seg-type {kind!r}: choose {' or '.join(KINDS)}")
    if not is_dicom(files[0]):
        raise UsageError(f"{files[0]}: is no DICOM, and DICOM-SEG refers to DICOM slices. Write NIfTI (.nii.gz).")
    load_highdicom()
    _sources(files)


def write_seg(
    path: str | Path,
    labels: np.ndarray,
    geometry: Geometry,
    files: Sequence[Path],
    *,
    names: Mapping[int, str],
    kind: str = "binary",
    identity: str | None = None,
) -> None:
    """Write labels [D, H, W], as volumes.io.dicom.series.read_series reads the series `files`, as DICOM-SEG.

    `names` are the classes, 0 (the background) to K; class k is segment k with its SNOMED CT code, found or not.
    `kind` is "binary" (a frame per class and slice) or "labelmap" (one per slice, for readers of DICOM 2024d on).
    The UIDs of one `identity` are the same whenever it is written; without one they are new.
    Raises BadInputError when labels and series do not fit, or the series lacks the UIDs to refer to.
    """
    path = Path(path)
    ordered, grid = assemble(files)
    if labels.shape != grid.shape or not geometry.same_grid(grid):
        raise BadInputError(f"{path}: labels {labels.shape} are not on the grid {grid.shape} of their series.")
    if labels.max() >= len(names) or labels.min() < 0:
        raise BadInputError(f"{path}: labels from {labels.min()} to {labels.max()}; the classes are {dict(names)}.")
    sources = _sources(files)
    if len({plane.file for plane in ordered}) == len(ordered):
        used, frames = [sources[plane.file] for plane in ordered], labels
    else:
        used, frames = _multiframe(sources, ordered, labels)
    with sound(files[0]):
        made = _segmentation(used, frames, names, kind, identity)
        with atomic_path(path) as temporary:
            made.save_as(temporary)


def _multiframe(sources: Mapping[Path, Any], ordered: Sequence[Plane], labels: np.ndarray) -> tuple[list[Any], Any]:
    if len(sources) > 1:
        raise BadInputError(
            f"{ordered[0].file}: is one of {len(sources)} multi-frame files of a series, and DICOM-SEG refers to one. "
            "Write NIfTI (.nii.gz)."
        )
    frames = np.empty_like(labels)
    frames[[plane.frame for plane in ordered]] = labels
    return list(sources.values()), frames


def load_highdicom() -> Any:
    """The module `highdicom`. Raises MissingExtraError."""
    load_pydicom()
    with translated("DICOM-SEG", f"is written by highdicom, which is not here; {_INSTALL}", MissingExtraError):
        import highdicom
        import highdicom.seg
    return highdicom


def _sources(files: Sequence[Path]) -> dict[Path, Any]:
    """The headers, whole, of the files that a DICOM-SEG would refer to."""
    headers = {}
    for path in files:
        with sound(path):
            headers[path] = header = read_dicom(path, stop_before_pixels=True)
            for name in _MAY_BE_BLANK:
                if name not in header:
                    setattr(header, name, None)
            if missing := [name for name in _NEEDED if not header.get(name)]:
                raise BadInputError(
                    f"{path}: its {', '.join(missing)} are blank, and DICOM-SEG refers to slices by them. Write NIfTI "
                    "(.nii.gz), or take the series as it came from the scanner."
                )
    if len({str(header.SOPInstanceUID) for header in headers.values()}) < len(headers):
        raise BadInputError(f"{files[0].parent}: two of its files have one SOPInstanceUID. Write NIfTI (.nii.gz).")
    return headers


def _segmentation(
    sources: Sequence[Any], frames: np.ndarray, names: Mapping[int, str], kind: str, identity: str | None
) -> Any:
    highdicom = load_highdicom()
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="samkd", family=codes.cid7162.ArtificialIntelligence, version=__version__
    )
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=kind.upper(),
        segment_descriptions=[_description(number, name, algorithm) for number, name in names.items() if number],
        series_instance_uid=_uid(identity, "series"),
        series_number=1,
        sop_instance_uid=_uid(identity, "instance"),
        instance_number=1,
        manufacturer="samkd",
        manufacturer_model_name="samkd",
        software_versions=__version__,
        device_serial_number="none",
    )


def _uid(identity: str | None, part: str) -> Any:
    """A new UID, or the one of a part of an identity: 2.25 and a number of 128 bits."""
    uid = load_highdicom().UID
    if identity is None:
        return uid()
    return uid(f"2.25.{int.from_bytes(hashlib.sha256(f'{part} of {identity}'.encode()).digest()[:16], 'big')}")


def _description(number: int, name: str, algorithm: Any) -> Any:
    highdicom = load_highdicom()
    code = organ(name)
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=code.category,
        segmented_property_type=code.type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    if code.side is not None:
        side = highdicom.sr.CodedConcept.from_code(code.side)
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
