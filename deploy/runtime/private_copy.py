"""A package, a folder or its zip, copied to where nobody else writes, and checked on the way: what is read from there
afterwards are the very bytes whose sums were right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import IO, Any, Protocol

from ...errors import BadInputError, IntegrityError, OutputError, SamkdError
from .integrity import MAX_FILES, MAX_MANIFEST, check_names, read_manifest
from .manifest import MANIFEST, Manifest
from .signature import LENGTH, SIGNATURE

_CHUNK = 1 << 20
_ZIP_END, _ZIP_END_MARK = struct.Struct("<4s4H2LH"), b"PK\5\6"  # end of central directory (APPNOTE.TXT 4.3.16)
_ZIP64_LOCATOR, _ZIP64_MARK = struct.Struct("<4sLQL"), b"PK\6\7"  # says that an entry or the list is larger than 4 GB
_MOST_COMMENT = 1 << 16
_MOST_DIRECTORY = 1 << 20  # bytes; that of a package with the most files takes a fifth of it
_LISTED = 5  # names of files that are no part of a package
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def copy_verified(path: Path, folder: Path, *, trust: Path | None = None) -> Manifest:
    """Copy the files of a package into an empty folder, and return its manifest once they are what was packed.

    Files that the manifest does not name are left alone; a zip holds none. With `trust`, a public key (PEM), its owner
    must have signed the package. A file is hashed as it is written, chunk by chunk, and never more of it than the
    manifest announces. Raises BadInputError when there is no package or no room, IntegrityError when it is not what was
    packed, and what signature.require_signature raises.
    """
    with _opened(path) as files:
        values = _sealed_values(files, path, trust=trust)
        declared: dict[str, dict[str, Any]] = values["files"]
        files.require(declared)
        needed, free = sum(entry["bytes"] for entry in declared.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise BadInputError(
                f"{path}: needs {needed} bytes in {folder.parent}, which has {free}. Make room there, or name another "
                "folder in the environment variable TMPDIR."
            )
        for name, entry in declared.items():
            with files.open(name) as stream:
                if _copy(stream, folder / name, most=entry["bytes"]) != (entry["bytes"], entry["sha256"]):
                    raise IntegrityError(f"{path / name}: is not the file that was packed. Copy the package again.")
    return Manifest.from_json(values, source=path)


def read_sealed(path: Path) -> Manifest:
    """The manifest of a package, a folder or its zip, as it was written; of its files none is checked.

    Raises BadInputError when there is no package, IntegrityError for a manifest that was changed.
    """
    with _opened(path) as files:
        values = _sealed_values(files, path)
    return Manifest.from_json(values, source=path)


def altered(path: Path) -> list[str]:
    """The files of a package, a folder or its zip, that are missing or not what was packed, by name.

    Raises BadInputError when there is no package, IntegrityError for a manifest that was changed or a broken zip.
    """
    with _opened(path) as files:
        declared: dict[str, dict[str, Any]] = _sealed_values(files, path)["files"]
        return [name for name, entry in declared.items() if not _is_as_packed(files, name, entry)]


def _is_as_packed(files: _Files, name: str, entry: Mapping[str, Any]) -> bool:
    if not files.has(name):
        return False
    with files.open(name) as stream:
        return _written(stream, None, most=entry["bytes"]) == (entry["bytes"], entry["sha256"])


def _sealed_values(files: _Files, path: Path, *, trust: Path | None = None) -> dict[str, Any]:
    raw = _whole(files, MANIFEST, MAX_MANIFEST)
    signature = _whole(files, SIGNATURE, LENGTH) if files.has(SIGNATURE) else None
    return read_manifest(raw, path, signature=signature, trust=trust)


def unnamed(folder: Path, manifest: Manifest) -> list[str]:
    """What lies in a package's folder, and in those of its folders that the manifest names, and is no part of it.

    Names relative to `folder`, what cannot be printed escaped; none for a zip.
    """
    if not folder.is_dir():
        return []
    parents = {parent.as_posix() for name in manifest.files for parent in Path(name).parents}
    own = {MANIFEST, SIGNATURE, *manifest.files, *parents}
    names = [path.relative_to(folder).as_posix() for parent in parents for path in folder.glob(f"{parent}/*")]
    return sorted(name if name.isprintable() else ascii(name) for name in names if name not in own)


def listed(names: Sequence[str]) -> str:
    """The first of these names, and how many there are beside them."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


class _Files(Protocol):
    """The files of a package by name, each to be read once."""

    def has(self, name: str) -> bool: ...

    def require(self, names: Mapping[str, Any]) -> None:
        """Refuse a package without one of these files. Raises IntegrityError."""

    def open(self, name: str) -> IO[bytes]: ...


@contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    """The files of a package; faults of its folder or zip as BadInputError or IntegrityError."""
    try:
        if not path.is_file():
            yield _Folder(path)
        elif not zipfile.is_zipfile(path):
            raise BadInputError(f"{path}: is no package. Name the folder or the zip of one.")
        else:
            _require_short_directory(path)
            with zipfile.ZipFile(path) as packed:
                yield _Zip(packed, path)
    except SamkdError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        raise IntegrityError(f"{path}: the zip is damaged ({error}). Copy it again.") from error
    except OSError as error:
        raise IntegrityError(f"{error.filename or path}: cannot be read ({error.strerror or error}).") from error


def _require_short_directory(archive: Path) -> None:
    """Refuse a zip whose list of entries is longer than a package's can be, before zipfile reads it into memory.

    The end of a zip says how long the list is, and zipfile believes it. Raises IntegrityError.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _ZIP_END.size - _ZIP64_LOCATOR.size - _MOST_COMMENT))
        tail = file.read()
    at = tail.rfind(_ZIP_END_MARK)
    if at < 0 or len(tail) < at + _ZIP_END.size:
        raise IntegrityError(f"{archive}: the zip is damaged (no end of its list). Copy it again.")
    length = _ZIP_END.unpack_from(tail, at)[5]
    is_zip64 = tail[:at].rfind(_ZIP64_MARK, max(0, at - _ZIP64_LOCATOR.size)) >= 0
    if is_zip64 or length > _MOST_DIRECTORY:
        raise IntegrityError(f"{archive}: its list of entries is longer than that of any package. Copy it again.")


class _Folder:
    def __init__(self, folder: Path):
        self._folder = folder
        if not self.has(MANIFEST):
            raise BadInputError(f"{folder}: is no package, it holds no {MANIFEST}. Name the folder or the zip of one.")

    def has(self, name: str) -> bool:
        return os.path.lexists(self._folder / name)

    def require(self, names: Mapping[str, Any]) -> None:
        if missing := [name for name in names if not self.has(name)]:
            raise IntegrityError(f"{self._folder}: the file {min(missing)} is missing. Copy the package again.")

    def open(self, name: str) -> IO[bytes]:
        """Neither a link nor, through one, something elsewhere; and no pipe or device, which might never end."""
        path = self._folder / name
        linked = any((self._folder / parent).is_symlink() for parent in list(Path(name).parents)[:-1])
        if linked or not stat.S_ISREG(path.lstat().st_mode):
            raise IntegrityError(f"{path}: is no plain file (a link or a device).")
        return os.fdopen(os.open(path, os.O_RDONLY | _NOT_FOLLOWED), "rb")


class _Zip:
    def __init__(self, packed: zipfile.ZipFile, archive: Path):
        self._packed, self._archive = packed, archive
        self._entries = _checked_entries(packed, archive)

    def has(self, name: str) -> bool:
        return name in self._entries

    def require(self, names: Mapping[str, Any]) -> None:
        """Nor may it hold more: nobody works in a zip."""
        own = self._entries.keys() - {MANIFEST, SIGNATURE}
        if missing := names.keys() - own:
            raise IntegrityError(f"{self._archive}: the file {min(missing)} is missing. Copy the package again.")
        if extra := own - names.keys():
            raise IntegrityError(f"{self._archive}: holds the file {min(extra)}, which is no part of the package.")

    def open(self, name: str) -> IO[bytes]:
        return self._packed.open(self._entries[name])


def _checked_entries(packed: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    entries = packed.infolist()
    if len(entries) > MAX_FILES + 2:
        raise IntegrityError(f"{archive}: holds {len(entries)} entries; a package holds at most {MAX_FILES} files.")
    # orig_filename: zipfile itself cuts names at a NUL and turns backslashes round.
    check_names([entry.orig_filename for entry in entries], archive)
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.is_dir():
            raise IntegrityError(f"{archive}: {entry.filename} is no plain file (a link or a device).")
        if entry.flag_bits & 1:
            raise IntegrityError(f"{archive}: {entry.filename} is encrypted; a package never is.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others ask for memory at will
            raise IntegrityError(f"{archive}: {entry.filename} is compressed by another method than deflate.")
    named = {entry.filename: entry for entry in entries}
    if MANIFEST not in named:
        raise BadInputError(f"{archive}: is no package, it holds no {MANIFEST}.")
    return named


def _whole(files: _Files, name: str, limit: int) -> bytes:
    with files.open(name) as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise IntegrityError(f"{name}: is larger than the {limit} bytes it may have.")
    return raw


def _copy(stream: IO[bytes], target: Path, *, most: int) -> tuple[int, str]:
    """Write what a stream gives to a new file, and return what `_written` does. Raises OutputError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except OSError as error:
        raise _no_room(target, error) from error
    with file:
        return _written(stream, file, most=most)


def _written(stream: IO[bytes], file: BufferedWriter | None, *, most: int) -> tuple[int, str]:
    """How many bytes a stream gives, at most `most` and one, and their sha256; they are written to `file`, if any.

    Raises OutputError.
    """
    checksum, size = hashlib.sha256(), 0
    while chunk := stream.read(min(_CHUNK, most + 1 - size)):
        checksum.update(chunk)
        size += len(chunk)
        if file is not None:
            try:
                file.write(chunk)
            except OSError as error:
                raise _no_room(Path(file.name), error) from error
    return size, checksum.hexdigest()


def _no_room(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{target}: a copy of the package cannot be written ({error.strerror or error}). Make room there, or name "
        "another folder in the environment variable TMPDIR."
    )
