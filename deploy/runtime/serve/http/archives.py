"""Archives that are uploaded: unpacked into one flat folder, under limits that hold whatever they say of themselves."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
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
    with archive.open("rb") as file:
        for entry, packed in _entries(file, name, room):
            path = judged(entry.filename)
            if any(is_hidden(Path(part)) for part in path.parts):
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise Refusal(400, f"{name}: {path} is a link. Pack the files themselves.")
            if entry.flag_bits & 1:
                raise Refusal(400, f"{name}: is encrypted. Pack it without a password.")
            room.take_file()
            with (folder / names.name(path)).open("wb") as target:
                for chunk in _chunks(packed, entry, name):
                    room.take(len(chunk))
                    target.write(chunk)


def _entries(file: IO[bytes], name: str, room: Room) -> list[tuple[zipfile.ZipInfo, zipfile.ZipFile]]:
    """The files of an archive. Raises BadInputError; Refusal for one whose list of contents would fill the memory."""
    with _reading(name):
        end = zipfile._EndRecData(file)  # pyright: ignore[reportAttributeAccessIssue]
        if end is None:
            raise zipfile.BadZipFile("no end of an archive")
    if end[_ENTRIES] > 2 * room.files or end[_SIZE] > _ENTRY * room.files:  # zipfile reads all of it at once
        raise Refusal(413, f"{name}: holds more than {room.files} files. Upload fewer at once.")
    with _reading(name):
        packed = zipfile.ZipFile(file)
        return [(entry, packed) for entry in packed.infolist() if not entry.is_dir()]


def _chunks(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """The content of a file in an archive, bit by bit. Raises BadInputError."""
    with _reading(name):
        source = packed.open(entry)
    with source:
        while True:
            with _reading(name):
                chunk = source.read(_CHUNK)
            if not chunk:
                return
            yield chunk


def _reading(name: str) -> AbstractContextManager[None]:
    return translated(name, "is no zip archive that can be read. Pack it again")
