"""The series of a study that was received over the network, by their UIDs; those that are no scan, too."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import visible_files
from .files import read_header
from .planes import left_out
from .series import find_series

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


@dataclass(frozen=True)
class StudySeries:
    """A series by its UID. `files` are its slices; where it is no scan there are none, and `kind` says what it is."""

    uid: str
    files: tuple[Path, ...]
    kind: str = ""


def study_series(folder: Path) -> list[StudySeries]:
    """The series in a folder of DICOM files. Raises BadInputError, as find_series does; MissingExtraError.

    One series is listed twice when only some of its files are slices.
    """
    scans = [StudySeries(_uid(read_header(files[0])), files) for files in find_series(folder).values()]
    slices = {file for series in scans for file in series.files}
    others = set()
    for path in visible_files(folder):
        if path not in slices:
            header = read_header(path)
            others.add(StudySeries(_uid(header), (), left_out(header, path) or "no scan"))
    return [*scans, *sorted(others, key=lambda series: (series.uid, series.kind))]


def _uid(header: Any) -> str:
    """The UID of a series; any other text in its place could be a name, and is not repeated."""
    uid = str(header.get("SeriesInstanceUID") or "")
    return uid if _UID.fullmatch(uid) else "without a proper UID"
