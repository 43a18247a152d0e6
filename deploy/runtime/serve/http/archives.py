"""Archives that are uploaded: unpacked into one flat folder, under limits that hold whatever they say of themselves."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from .....errors import translated
from .....volumes.files import is_hidden
from .limited import Room
from .names import OwnNames, judged
from .refusals import Refusal

_CHUNK = 1 << 20
_ENTRY = 512  # bytes of an archive's list of contents for each file that it may hold
_SIZE, _ENTRIES = 5, 4  # of the list, in what zipfile reads at the end of an archive


def is_archive(path: PurePosixPath) -> bool:
    return path.suffix.lower() == ".zip"


def unpack(archive: Path, folder: Path, *, name: str, names: OwnNames, room: Room) -> None:
    """Unpack the files of a zip into `folder`. Raises Refusal, BadInputError for one that cannot be read, OSError."""
    with translated(name, "is no zip archive that can be read. Pack it again"), archive.open("rb") as file:
        _refuse_long_list(file, name, room)
        with zipfile.ZipFile(file) as packed:
            for entry in packed.infolist():
                path = judged(entry.filename) if not entry.is_dir() else None
                if path is None or any(is_hidden(Path(part)) for part in path.parts):
                    continue
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise Refusal(400, f"{name}: {path} is a link. Pack the files themselves.")
                if entry.flag_bits & 1:
                    raise Refusal(400, f"{name}: is encrypted. Pack it without a password.")
                room.take_file()
                with packed.open(entry) as source, (folder / names.name(path)).open("wb") as target:
                    while chunk := source.read(_CHUNK):
                        room.take(len(chunk))
                        target.write(chunk)


def _refuse_long_list(file: IO[bytes], name: str, room: Room) -> None:
    """Refuse an archive whose list of contents alone would fill the memory: zipfile reads all of it at once."""
    end = zipfile._EndRecData(file)  # pyright: ignore[reportAttributeAccessIssue]
    if end is None:
        raise zipfile.BadZipFile("no end of an archive")
    if end[_ENTRIES] > 2 * room.files or end[_SIZE] > _ENTRY * 2 * room.files:
        raise Refusal(413, f"{name}: holds more than {room.files} files. Upload fewer at once.")
