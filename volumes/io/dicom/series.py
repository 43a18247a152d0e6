"""DICOM series as scans: found in folders, and assembled strictly from the positions of their slices.

What could be misread is refused. samkd is no de-identification tool: nothing of a header is kept but the geometry and
the values, but what you name your folders and files is shown and used as it is.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import BadInputError
from ...files import visible_files
from ...geometry import Geometry, Volume
from .files import is_dicom, read_header, sound
from .pixels import read_pixels
from .planes import Plane, left_out, planes, series_key

_OTHER = (".nii", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".json")  # never opened to look for DICOM
_LOG = logging.getLogger("samkd")
_APART = 0.05  # of the gap: how far a slice may lie from its place in the even row of slices
_PARALLEL = 1e-3  # largest sine of an angle that counts as none
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def find_series(root: str | Path) -> dict[str, tuple[Path, ...]]:
    """The files of every series in a folder and the folders in it, by a name that comes from no header: that of the
    folder its first file lies in, numbered where several share it.

    Files that are no DICOM are passed over; so are, by their own declaration, DICOM files that are no slices (reports,
    masks, localizers, projections, a DICOMDIR). A warning (logger "samkd") says how many. Raises BadInputError, also
    for one scan in several series; MissingExtraError without pydicom.
    """
    root = Path(root)
    candidates = _candidates(root)
    unread = [path for path in candidates if not is_dicom(path)]
    groups: dict[tuple[str, ...], dict[Path, Any]] = defaultdict(dict)
    others: dict[Path, str] = {}
    for path in sorted(set(candidates) - set(unread)):
        header = read_header(path)
        kind = left_out(header, path)
        if kind is None:
            groups[series_key(header, path)][path] = header
        else:
            others[path] = kind
    _warn_of_passed_over(root, unread, others, {path.parent for headers in groups.values() for path in headers})
    _refuse_scan_in_several_series(list(groups.values()))
    file_lists = sorted(list(headers) for headers in groups.values())
    folders = [_name_of(files[0].parent) for files in file_lists]
    numbers = Counter()
    series = {}
    for folder, files in zip(folders, file_lists, strict=True):
        numbers[folder] += 1
        name = folder if folders.count(folder) == 1 else f"{folder}-{numbers[folder]}"
        series[name] = tuple(files)
    return series


def _name_of(folder: Path) -> str:
    """The name by which a folder was reached, a link's its own; that of the folder itself for "." and ".."."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _candidates(root: Path) -> list[Path]:
    """The files, in a folder and the folders in it, that may be DICOM: not hidden, and of no other known format."""
    if root.is_file():
        return [root]
    return [path for path in visible_files(root) if path.suffix.lower() not in _OTHER]


def _warn_of_passed_over(root: Path, unread: Sequence[Path], others: Mapping[Path, str], scans: set[Path]) -> None:
    """Say how many files beside slices are not read; `scans` are the folders with slices.

    Where there are none, all count, unless the folder holds other formats: then it is no DICOM folder.
    """
    if not scans and root.is_dir() and any(path.suffix.lower() in _OTHER for path in visible_files(root)):
        return
    lost = [path for path in unread if not scans or path.parent in scans]
    for paths, what in ((lost, "no DICOM that can be read"), (list(others), "DICOM but no slices of a scan")):
        if paths:
            kinds = f" ({', '.join(sorted({others[path] for path in paths}))})" if paths[0] in others else ""
            _LOG.warning(
                f"warning: {root}: passed over {len(paths)} file(s) that are {what}{kinds}, for example "
                f"{paths[0].relative_to(root) if paths[0] != root else root.name}"
            )


def _refuse_scan_in_several_series(series: Sequence[Mapping[Path, Any]]) -> None:
    """Refuse series that together are one scan, because every slice, or some, has a SeriesInstanceUID of its own."""
    alike: dict[tuple, list[Mapping[Path, Any]]] = defaultdict(list)
    for headers in series:
        path, header = next(iter(headers.items()))
        with sound(path):
            traits = tuple(str(header.get(name) or "") for name in ("Modality", "SeriesNumber", "Rows", "Columns"))
            frame = str(header.get("FrameOfReferenceUID") or "")
        alike[("folder", str(path.parent), *traits)].append(headers)
        if frame:
            alike[("frame of reference", frame, *traits)].append(headers)
    for (shared, *_), members in alike.items():
        if len(members) > 1 and _are_one_scan(members, same_frame=shared != "folder"):
            paths = [path for headers in members for path in headers]
            raise BadInputError(
                f"{paths[0].parent}: {len(paths)} files, for example {paths[0].name} and {paths[-1].name}, are slices "
                f"in a row with one series number and size, but in {len(members)} series (SeriesInstanceUID): one scan "
                "taken apart by its scanner or an anonymiser. Export it as one series, or give its slices one "
                "SeriesInstanceUID."
            )


def _are_one_scan(members: Sequence[Mapping[Path, Any]], *, same_frame: bool) -> bool:
    """Whether all slices of these series lie in one even row, or are single slices of one patient at several places."""
    try:
        rows = [[plane for path, header in headers.items() for plane in planes(header, path)] for headers in members]
        ordered = [plane for row in rows for plane in row]
        normal = np.cross(*_refuse_odd(ordered).axes)
        ordered.sort(key=lambda plane: float(plane.position @ normal))
        span = float((ordered[-1].position - ordered[0].position) @ normal)
        if same_frame and span > 1e-3 and all(len(row) == 1 for row in rows):
            return True
        return len(ordered) > 2 and bool(np.any(_step(ordered, normal)))
    except BadInputError:
        return False


def read_series(source: str | Path | Sequence[Path]) -> Volume:
    """One series, a folder, a file or several, as float32 [1, D, H, W]: HU for CT, else the rescaled values.

    d follows the normal of the slices, h their rows, w their columns; the geometry is RAS+. MONOCHROME1 is inverted
    (refused for CT). Raises BadInputError, naming the file: for several series or none, slices of another size,
    spacing or orientation than most, two at one place, uneven gaps, a tilted gantry, colours, damage; and
    MissingExtraError without pydicom or the decoder of a compressed file.
    """
    if isinstance(source, str | Path) and Path(source).is_file():
        source = [Path(source)]
    elif isinstance(source, str | Path):
        series = find_series(source)
        if len(series) != 1:
            listed = "; ".join(f"{name}, {len(files)} files" for name, files in series.items()) or "none"
            raise BadInputError(f"{source}: expected one DICOM series, found {len(series)} ({listed}).")
        (source,) = series.values()
    ordered, geometry = assemble(source)
    return Volume(read_pixels(ordered)[None], geometry)


def assemble(files: Sequence[Path]) -> tuple[list[Plane], Geometry]:
    """The slices of the files, which must be one series, in the order of d, and their grid. Raises BadInputError."""
    headers = [(path, read_header(path)) for path in files]
    keys = {series_key(header, path): path for path, header in headers}
    if len(keys) != 1:
        listed = ", ".join(str(path) for path in keys.values())
        raise BadInputError(f"{files[0].parent}: holds {len(keys)} series, for example {listed}; expected one.")
    stack = [plane for path, header in headers for plane in planes(header, path)]
    first = _refuse_odd(stack)
    normal = np.cross(*first.axes)
    stack.sort(key=lambda plane: float(plane.position @ normal))
    step = _step(stack, normal)
    columns = [step, first.axes[1] * first.spacing[0], first.axes[0] * first.spacing[1], stack[0].position]
    affine = np.vstack([np.stack(columns, axis=1), [0, 0, 0, 1]])
    return stack, Geometry(_TO_RAS @ affine, (len(stack), *first.size))


def _refuse_odd(stack: Sequence[Plane]) -> Plane:
    """A plane like most others; all must have its size, spacing and orientation."""

    def traits(plane: Plane) -> tuple:
        return plane.size, tuple(np.round(plane.spacing, 3)), tuple(np.round(plane.axes, 2).ravel() + 0.0)

    usual, _ = Counter(map(traits, stack)).most_common(1)[0]
    first = next(plane for plane in stack if traits(plane) == usual)
    for plane in stack:
        where = f"{plane.file}: this slice"
        if plane.size != first.size:
            raise BadInputError(
                f"{where} has {plane.size[0]} x {plane.size[1]} pixels, the others of its series {first.size[0]} x "
                f"{first.size[1]}. Leave it out or export the series again."
            )
        if np.abs(np.array(plane.spacing) / first.spacing - 1).max() > _PARALLEL:
            raise BadInputError(
                f"{where} has pixels of {plane.spacing[0]:g} x {plane.spacing[1]:g} mm, the others of its series "
                f"{first.spacing[0]:g} x {first.spacing[1]:g} mm. Leave it out or export the series again."
            )
        if np.abs(plane.axes - first.axes).max() > _PARALLEL:
            angle = np.degrees(np.arccos(np.clip((plane.axes * first.axes).sum(axis=1), -1, 1))).max()
            raise BadInputError(
                f"{where} has another orientation than the others of its series, {angle:.1f} degrees apart. Leave it "
                "out (a localizer?) or export the series again."
            )
        if plane.rescaled != first.rescaled:
            raise BadInputError(
                f"{where} {'has' if plane.rescaled else 'lacks'} a RescaleSlope or RescaleIntercept, unlike the others "
                "of its series, so its values cannot be compared with theirs. Export the series again."
            )
    return first


def _step(ordered: Sequence[Plane], normal: np.ndarray) -> np.ndarray:
    """From one slice to the next in mm, if they lie in one even row along the normal."""
    if len(ordered) == 1:
        depth = ordered[0].depth
        if depth is None or not 1e-6 < depth < 1e6:
            raise BadInputError(f"{ordered[0].file}: is a single slice without a thickness; expected SliceThickness.")
        return normal * depth
    positions = np.stack([plane.position for plane in ordered])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    at = int(gaps.argmin())
    if gaps[at] < 1e-3:
        raise BadInputError(
            f"{_name(ordered[at])} and {_name(ordered[at + 1])}: two slices at one place. One is a copy, or the series "
            "holds several phases or echoes: keep one of each."
        )
    at = int(np.abs(gaps - usual).argmax())
    total = positions[-1] - positions[0]
    aside = float(np.linalg.norm(total - normal * (total @ normal)))
    if aside > _PARALLEL * np.linalg.norm(total):
        angle = np.degrees(np.arctan2(aside, total @ normal))
        raise BadInputError(
            f"{ordered[0].file.parent}: its slices follow each other {angle:.1f} degrees off their normal (a tilted "
            "gantry?). Convert it with dcm2niix, which also writes a rectangular one: take its file named *_Tilt*."
        )
    step = total / (len(ordered) - 1)
    distances = np.linalg.norm(positions - positions[0] - np.arange(len(ordered))[:, None] * step, axis=1)
    if abs(gaps[at] - usual) > 2 * _APART * usual or distances.max() > _APART * usual:
        raise BadInputError(
            f"{_name(ordered[at])} and {_name(ordered[at + 1])}: lie {gaps[at]:.4g} mm apart, most slices of their "
            f"series {usual:.4g} mm, and one is {distances.max():.3g} mm from its place in an even row: slices are "
            "missing, or their spacing changes. Export the whole series with one spacing."
        )
    return step


def _name(plane: Plane) -> str:
    return f"{plane.file}{f', frame {plane.frame + 1}' if plane.frame else ''}"
