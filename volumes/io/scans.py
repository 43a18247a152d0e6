"""A scan on disk, whatever its format: which files hold it, how they are read, and how its mask is written.

One more format is one more branch in `_scans_in`, `read_source` and `write_mask`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...errors import BadInputError, UsageError
from ..alignment import onto
from ..files import visible_entries
from ..geometry import Geometry, Volume
from .dicom.files import is_dicom, read_header
from .dicom.seg import check_source, is_seg, write_seg
from .dicom.series import find_series, read_series
from .foreign_formats import is_foreign, is_named_like_a_file, passed_over, way_out
from .mask_codes import Code, decoded
from .nifti import memory_to_read, read_geometry, read_labels, read_scan, write_labels, write_scan
from .pictures import is_picture, read_picture_labels, read_pictures, write_picture_labels

_LOG = logging.getLogger("samkd")
_CHANNEL = re.compile(r"(.+)_\d{4}")  # nnU-Net: the channels of one scan are name_0000, name_0001, ...
MODALITIES = frozenset({"CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OCT", "OP", "SM", "ES", "XC"})
_MASKS_ARE = (
    "masks are written as .nii.gz or .nii, those of DICOM also as .dcm, those of single pictures also as .png; name "
    "one of these, or a folder"
)
FRAMES = "left_frames"  # the folder of a video's frames (EndoVis)


@dataclass(frozen=True)
class Source:
    """One scan: a NIfTI file or one per channel; a picture or, for a video, one per frame; or the files of a DICOM
    series, which is what all other files are taken for.
    """

    name: str
    files: tuple[Path, ...]

    @property
    def mask_name(self) -> str:
        """What its mask is called in a folder of masks: a single NIfTI file's own name; for a video, a folder."""
        first, single = self.files[0], len(self.files) == 1
        if is_picture(first):
            return f"{self.name}.png" if single else self.name
        return first.name if single and is_nifti(first) else f"{self.name}.nii.gz"

    @property
    def is_dicom(self) -> bool:
        return not (is_picture(self.files[0]) or is_nifti(self.files[0]))

    @property
    def place(self) -> Path:
        """Its file, or the folder in which its files lie."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def bare_name(path: Path) -> str:
    """The file name without .nii.gz, .nii or its one suffix."""
    name = path.name[:-3] if path.name.lower().endswith(".nii.gz") else path.name
    return Path(name).stem


def sources(path: str | Path, *, channels: int = 1) -> list[Source]:
    """The scans in a file or a folder, sorted by name: those of find_scans, grouped by group_channels.

    Raises BadInputError when there is none, or when two would have masks of one name.
    """
    scans = sorted(group_channels(find_scans([path]), channels=channels), key=lambda scan: scan.mask_name)
    for one, other in pairwise(scans):
        if one.mask_name == other.mask_name:
            names = f"{one.files[0].name} and {other.files[0].name}"
            raise BadInputError(f"{path}: the masks of {names} would have one name. Rename one of them.")
    return scans


def find_scans(paths: Sequence[str | Path]) -> list[Source]:
    """The scans in files and folders, one for each NIfTI file. A folder `left_frames` is one video.

    DICOM series are found in the folders below, too, and named as volumes.io.dicom.series.find_series does. Hidden
    files (.DS_Store, ._scan.nii.gz) are no scans. Files of formats that are not read (NRRD, MetaImage) are counted in
    a warning. Raises BadInputError, naming the path, when there is no scan in it.
    """
    return [scan for path in paths for scan in _scans_in(Path(path))]


def _scans_in(path: Path) -> list[Source]:
    if path.is_file():
        if is_foreign(path) and not is_dicom(path):
            raise BadInputError(way_out(path))
        return [Source(bare_name(path), (path,))]
    if path.name == FRAMES and path.is_dir():
        return [video(path)]
    scans = []
    for entry in visible_entries(path):
        if is_picture(entry) or is_nifti(entry):
            scans.append(Source(bare_name(entry), (entry,)))
        elif (entry / FRAMES).is_dir():
            scans.append(video(entry / FRAMES))
    series = find_series(path)
    scans += [Source(name, files) for name, files in series.items()]
    foreign = [] if series else [entry for entry in visible_entries(path) if is_foreign(entry)]
    if not scans:
        raise BadInputError(
            f"{path}: no scan here; expected NIfTI files (.nii, .nii.gz), pictures (PNG, JPEG, TIFF) or DICOM series"
            f"{'. ' + passed_over(path, foreign) if foreign else ''}"
        )
    if foreign:
        _LOG.warning(f"warning: {passed_over(path, foreign)}")
    return sorted(scans, key=lambda scan: scan.mask_name)


def group_channels(scans: Sequence[Source], *, channels: int) -> list[Source]:
    """The scans in their order; where several channels are expected, NIfTI files name_0000, name_0001, ... of one
    folder are one scan.
    """
    if channels == 1:
        return list(scans)
    grouped: dict[object, Source] = {}
    for number, scan in enumerate(scans):
        part = _CHANNEL.fullmatch(scan.name) if is_nifti(scan.files[0]) else None
        key = (scan.files[0].parent, part[1]) if part else number
        before = grouped[key].files if key in grouped else ()
        name = part[1] if part else scan.name
        grouped[key] = Source(name, tuple(sorted({*before, *scan.files})) if part else scan.files)
    return list(grouped.values())


def video(folder: Path, *, name: str | None = None) -> Source:
    """The frames in a folder, by name, as one scan. Raises BadInputError when there is none."""
    frames = tuple(entry for entry in visible_entries(folder) if is_picture(entry))
    if not frames:
        raise BadInputError(f"{folder}: no frame here; expected pictures (PNG, JPEG, TIFF)")
    return Source(name or folder.parent.name, frames)


def mask_paths(scans: Sequence[Source], out: str | Path, *, seg_type: str = "binary") -> list[Path]:
    """Where the masks of scans go: `out` itself if it is named like a mask, else in the folder `out`.

    Refuses, before any work, what cannot be written: raises BadInputError for one file and several DICOM series,
    UsageError for one file and several other scans, for a file of a kind that masks, or masks of such a scan, are not
    written as, and for a mask that would be written over a scan or over another mask; and what
    volumes.io.dicom.seg.check_source raises.
    """
    out = Path(out)
    if not (is_nifti(out) or is_picture(out) or is_seg(out)):
        if is_named_like_a_file(out):
            raise UsageError(f"-o {out}: {_MASKS_ARE}")
        masks = [out / source.mask_name for source in scans]
        _refuse_overwriting(scans, masks, out)
        return masks
    if len(scans) > 1:
        fault = BadInputError if any(source.is_dicom for source in scans) else UsageError
        names = ", ".join(source.name for source in scans[:5])
        raise fault(f"-o {out}: several scans ({len(scans)}: {names}) need a folder for their masks, not a file")
    if is_seg(out):
        check_source(scans[0].files, kind=seg_type)
    elif is_picture(out) and (Path(scans[0].mask_name).suffix != ".png" or out.suffix.lower() != ".png"):
        raise UsageError(f"-o {out}: {_MASKS_ARE}")
    _refuse_overwriting(scans, [out], out)
    return [out]


def _refuse_overwriting(scans: Sequence[Source], masks: Sequence[Path], out: Path) -> None:
    """UsageError where two masks are one file, or a mask is a file that is to be read, however its path is spelled."""
    written: set[object] = set()
    for scan, mask in zip(scans, masks, strict=True):
        frames = [mask / file.name for file in scan.files] if is_picture(scan.files[0]) else []
        written.update(*map(_spellings, [mask, *frames]))
    for file in (file for scan in scans for file in scan.files):
        if _spellings(file) & written:
            raise UsageError(f"-o {out}: the mask would overwrite the scan {file}; choose another place")
    mask_of: dict[str, Source] = {}
    for scan, mask in zip(scans, masks, strict=True):
        other = mask_of.setdefault(str(mask.resolve()).casefold(), scan)
        if other is not scan:
            raise UsageError(
                f"-o {out}: {other.place} and {scan.place} would have one mask, {mask.name}; rename one of them, or "
                "segment them into different folders"
            )


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, through links, spellings and letter case; it need not be there."""
    return bool(_spellings(one) & _spellings(other))


def _spellings(path: Path) -> set[object]:
    """What two paths of one file share: the path without links and case, and, for a file that is there, its inode."""
    spellings: set[object] = {str(path.resolve()).casefold()}
    with suppress(OSError):
        status = path.stat()
        spellings |= {(status.st_dev, status.st_ino)} if status.st_ino else set()
    return spellings


def modality(scan: Source) -> str | None:
    """The modality that the first file of a DICOM series names, one of MODALITIES; None for any other scan."""
    if not scan.is_dicom:
        return None
    # Nothing but DICOM's own words is repeated from a header: any other text could be the patient's name.
    name = read_header(scan.files[0]).get("Modality")
    return name if name in MODALITIES else None


def read_source(source: Source, *, channels: int = 1) -> Volume:
    """Intensities float32 [channels, D, H, W]. Raises BadInputError, naming the file."""
    if is_picture(source.files[0]):
        return read_pictures(source.files, channels=channels)
    if source.is_dicom:
        return read_series(source.files)
    if _holds_all(source, channels):
        return read_scan(source.files[0], channels=channels)
    if len(source.files) != channels:
        names = ", ".join(file.name for file in source.files)
        raise BadInputError(
            f"{source.files[0]}: {len(source.files)} file(s), {names}; expected {channels}, one a channel: NAME_0000, "
            "NAME_0001, and so on, in one folder. Give the folder, or all the files."
        )
    parts = [read_scan(file) for file in source.files]
    first = parts[0].geometry
    arrays = []
    for file, part in zip(source.files, parts, strict=True):
        array = onto(part.array, part.geometry, first)
        if array is not None:
            arrays.append(array)
        else:
            raise BadInputError(
                f"{file}: is not on the grid of the first channel, {source.files[0].name}. Resample all channels of a "
                "scan onto one grid."
            )
    return Volume(np.concatenate(arrays), first)


def source_geometry(source: Source, *, channels: int = 1) -> Geometry:
    """The grid of a scan, for NIfTI from the header alone. Raises BadInputError."""
    if is_nifti(source.files[0]):
        return read_geometry(source.files[0])
    return read_source(source, channels=channels).geometry


def _holds_all(source: Source, channels: int) -> bool:
    """Whether a single NIfTI file holds all channels of the scan, and is not named like one of several."""
    return len(source.files) == 1 and not (channels > 1 and _CHANNEL.fullmatch(bare_name(source.files[0])))


def memory_to_read_files(source: Source, *, channels: int = 1) -> float:
    """Bytes that read_source holds at most while it reads NIfTI files, from their headers. Raises BadInputError."""
    if _holds_all(source, channels):
        return memory_to_read(source.files[0], channels=channels)
    each = max(memory_to_read(file) for file in source.files)
    return 2 * len(source.files) * each  # all channels, and once more where they are joined


def read_mask(source: Source, *, codes: Sequence[Code] | None = None) -> tuple[np.ndarray, Geometry]:
    """Labels [D, H, W], uint8 or uint16, and their grid. Raises BadInputError.

    `codes` gives, class by class, the number or (pictures only) the colour that stands for it in the files; without
    it the numbers are the classes.
    """
    if is_picture(source.files[0]):
        return read_picture_labels(source.files, codes=codes)
    labels, geometry = read_labels(source.files[0])
    return (labels if codes is None else decoded(labels, codes, source.files[0])), geometry


def write_mask(
    path: str | Path,
    labels: np.ndarray,
    geometry: Geometry,
    *,
    source: Source,
    names: Mapping[int, str] | None = None,
    seg_type: str = "binary",
    seg_identity: str | None = None,
) -> None:
    """Write the labels [D, H, W] of a scan: NIfTI, or for pictures also PNG (a folder of them for a video), or for
    DICOM also DICOM-SEG (*.dcm), which needs the `names` of the classes and takes its type and identity, as
    volumes.io.dicom.seg.write_seg does.

    Raises BadInputError for labels that do not fit the scan, OutputError when the file cannot be written.
    """
    path, scan = Path(path), source.files[0]
    if is_seg(path):
        assert names is not None
        write_seg(path, labels, geometry, source.files, names=names, kind=seg_type, identity=seg_identity)
    elif is_picture(scan) and not is_nifti(path):
        write_picture_labels(path, labels, source.files)
    else:
        write_labels(path, labels, geometry, like=scan if is_nifti(scan) and len(source.files) == 1 else None)


def mask_in(folder: Path, scan: Source) -> Source:
    """The mask of a scan in a folder of masks, where write_mask put it under the scan's mask_name."""
    path = folder / scan.mask_name
    return video(path, name=scan.name) if path.is_dir() else Source(scan.name, (path,))


def as_nifti(source: Source, folder: Path, *, channels: int = 1) -> Path:
    """The scan as one NIfTI file: its own, or one written into `folder`. Raises BadInputError, OutputError."""
    if len(source.files) == 1 and is_nifti(source.files[0]):
        return source.files[0]
    path = folder / f"{source.name}.nii.gz"
    write_scan(path, read_source(source, channels=channels))
    return path
