"""Is this still the package that was written? Everything is checked before any parser opens a model or a scan."""

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import BadInputError, IntegrityError
from .manifest import MANIFEST, Manifest
from .manifest_rules import FORMAT
from .signature import LENGTH, SIGNATURE, require_own_signature, require_signature

MAX_MANIFEST = 1 << 20  # bytes
MAX_PACKAGE = 4 << 30  # bytes, unpacked
MAX_FILES = 64
_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def render(manifest: dict[str, Any]) -> bytes:
    """The one way to write a manifest: any other bytes are refused, so that none can change unnoticed."""
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def digest(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest without its own "digest"."""
    return hashlib.sha256(render({key: value for key, value in manifest.items() if key != "digest"})).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, *, trust: Path | None = None) -> Manifest:
    """The manifest of a package, once every file in the folder is what the manifest says and nothing else is there.

    With `trust` the owner of that public key must have signed it. Raises BadInputError when the folder holds no
    package or one of another format, IntegrityError otherwise, and what signature.require_signature raises.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise BadInputError(f"{folder}: is no package, it holds no {MANIFEST}. Name the folder or the zip of one.")
    try:
        sizes = dict(_regular_files(folder))
        signature = _limited(folder / SIGNATURE, LENGTH) if SIGNATURE in sizes else None
        values = read_manifest(_limited(path, MAX_MANIFEST), folder, signature=signature, trust=trust)
        declared: dict[str, dict[str, Any]] = values["files"]
        _compare_names(sizes.keys() - {MANIFEST, SIGNATURE}, declared.keys(), folder)
        for name, entry in declared.items():
            if sizes[name] != entry["bytes"] or sha256(folder / name) != entry["sha256"]:
                raise IntegrityError(f"{folder / name}: is not the file that was packed. Copy the package again.")
    except OSError as error:
        raise IntegrityError(f"{error.filename or folder}: cannot be read ({error.strerror or error}).") from error
    return Manifest.from_json(values, source=folder)


def read_manifest(
    raw: bytes, source: Path, *, signature: bytes | None = None, trust: Path | None = None
) -> dict[str, Any]:
    """The values of a manifest whose format, digest and list of files hold, signed by `trust` where that is given.

    Raises BadInputError, IntegrityError, and what signature.require_signature raises.
    """
    if trust is not None:
        require_signature(raw, signature, trust=trust, source=source)
    try:
        manifest = json.loads(raw)
        if isinstance(manifest, dict) and manifest["format"] != FORMAT:
            raise BadInputError(
                f"{source}: is a package of format {manifest['format']}; this runtime reads {FORMAT}. "
                "Use the runtime.pyz that came with it."
            )
        intact = render(manifest) == raw and digest(manifest) == manifest["digest"]
        names = list(manifest["files"])
        sizes = [entry["bytes"] for entry in manifest["files"].values()]
        checksums = [entry["sha256"] for entry in manifest["files"].values()]
        sound = all(type(size) is int and size >= 0 for size in sizes) and all(type(s) is str for s in checksums)
    except BadInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{source}: its {MANIFEST} is damaged ({error}). Copy the package again.") from error
    if not (intact and sound):
        raise IntegrityError(f"{source}: its {MANIFEST} was changed after it was written. Copy the package again.")
    if ("signer" in manifest) != (signature is not None):
        which = "lost its signature" if signature is None else "holds a signature that is not its own"
        raise IntegrityError(f"{source}: {which} ({SIGNATURE}). Copy the package again.")
    if signature is not None:
        require_own_signature(raw, signature, signer=manifest["signer"], source=source)
    check_names(names, source)
    if len(names) > MAX_FILES or sum(sizes) > MAX_PACKAGE:
        raise IntegrityError(
            f"{source}: announces {len(names)} files of {sum(sizes)} bytes; a package holds at most {MAX_FILES} files "
            f"and {MAX_PACKAGE} bytes."
        )
    return manifest


def check_names(names: list[str], source: Path) -> None:
    """Refuse names that leave the package or mean different things on different systems. Raises IntegrityError."""
    for name in names:
        if not all(_NAME.fullmatch(part) for part in name.split("/")):
            raise IntegrityError(f"{source}: holds the file name {name!r}; expected plain relative names.")
    if len({name.casefold() for name in names}) != len(names):
        raise IntegrityError(f"{source}: holds a file name twice, or two that differ only in upper and lower case.")


def extract(archive: Path, folder: Path, *, trust: Path | None = None) -> None:
    """Unpack a package's zip into an empty folder; `verify` has the last word on what came out.

    Refuses names outside the folder, links, names that clash, encrypted entries and anything larger than the manifest
    announces, all before or while it is written. Raises BadInputError for no zip at all, IntegrityError otherwise.
    """
    if not zipfile.is_zipfile(archive):
        raise BadInputError(f"{archive}: is no package. Name the folder or the zip of one.")
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = _checked_entries(packed, archive)
            limits = {MANIFEST: MAX_MANIFEST, SIGNATURE: LENGTH}
            own = {name: _unpacked(packed, entries[name], limits[name], archive) for name in limits if name in entries}
            manifest = read_manifest(own[MANIFEST], archive, signature=own.get(SIGNATURE), trust=trust)
            declared = manifest["files"]
            _compare_names(entries.keys() - limits.keys(), declared.keys(), archive)
            needed = sum(entry["bytes"] for entry in declared.values())
            if needed > shutil.disk_usage(folder).free:
                raise BadInputError(f"{archive}: needs {needed} bytes in {folder}, which has less. Make room there.")
            for name, entry in entries.items():
                size = limits[name] if name in limits else declared[name]["bytes"]
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_unpacked(packed, entry, size, archive))
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OverflowError) as error:
        raise IntegrityError(f"{archive}: the zip is damaged ({error}). Copy it again.") from error
    except OSError as error:
        raise BadInputError(f"{archive}: cannot be unpacked ({error.strerror or error}).") from error


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
    named = {entry.filename: entry for entry in entries}
    if MANIFEST not in named:
        raise BadInputError(f"{archive}: is no package, it holds no {MANIFEST}.")
    return named


def _unpacked(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int, archive: Path) -> bytes:
    # Never more than was announced, whatever the zip's own directory says.
    with packed.open(entry) as stream:
        data = stream.read(limit + 1) if entry.file_size <= limit else None
    if data is None or len(data) > limit:
        raise IntegrityError(f"{archive}: {entry.filename} is larger than the {limit} bytes it may have.")
    return data


def _compare_names(names: set[str], declared: Iterable[str], source: Path) -> None:
    """Refuse a package that holds a file more or less than its manifest says. Raises IntegrityError."""
    if extra := names - set(declared):
        raise IntegrityError(f"{source}: holds the file {min(extra)}, which is no part of the package.")
    if missing := set(declared) - names:
        raise IntegrityError(f"{source}: the file {min(missing)} is missing. Copy the package again.")


def _regular_files(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _regular_files(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False).st_size
        else:
            raise IntegrityError(f"{entry.path}: is no plain file (a link or a device).")


def _limited(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise IntegrityError(f"{path}: is larger than the {limit} bytes it may have.")
    return raw
