"""Writing files so that a crash, a full disk or `kill -9` never leaves half of one under its final name."""

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import BadInputError, OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMPORARY = re.compile(r"\.samkd-[0-9a-f]{16}\.tmp")
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_cleared: set[Path] = set()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; move it there when the block ends, remove it when the block fails.

    It is empty, alone in a folder of a random name, and gets the rights of the user's umask. Raises OutputError,
    naming `path`, for any OSError on the way.
    """
    path = Path(path)
    try:
        with _scratch(path.parent) as scratch:
            temporary = scratch / path.name
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)  # safetensors puts a file of its own there, which nobody else may read
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). "
            f"Check that the folder {path.parent} exists, is writable and has free space."
        ) from error


def write_json(path: str | Path, values: Any) -> None:
    """Write plain values as indented JSON, whole or not at all. Raises OutputError."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path`; it gets that name when the block ends and is removed when the block fails.

    With `replace` it takes the place of a folder that is there, in one step where the file system can do that.
    Raises OutputError, naming `path`, when something else is there already, and for any OSError on the way.
    """
    path = Path(path).absolute()
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path}: is there already and not empty. Name another folder, or remove this one.")
    make_folder(path.parent)
    try:
        with _scratch(path.parent) as scratch:
            draft = scratch / path.name
            draft.mkdir()
            yield draft
            if replace and path.exists():
                _exchange(draft, path)
            else:
                draft.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: this folder cannot be written ({error.strerror or error}).") from error


def sync_folder(path: Path) -> None:
    """Let the names in a folder outlast a power cut; nothing on Windows, which opens no folders. Raises OSError."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder in the system's temporary folder that nobody else can read; it is gone when the block ends.

    What killed processes left there is cleared, what living ones use is not. Raises OutputError when none can be made.
    """
    parent = Path(tempfile.tempdir or "TMPDIR")
    with ExitStack() as stack:
        try:
            parent = Path(tempfile.gettempdir()).absolute()
            folder = stack.enter_context(_scratch(parent, mode=0o700))
        except OSError as error:
            raise OutputError(
                f"{parent}: no folder for temporary files can be made here ({error.strerror or error}). Name one that "
                "can be written in the environment variable TMPDIR."
            ) from error
        yield folder


def is_leftover(path: Path) -> bool:
    """Whether a killed samkd, this or an earlier release, left this file or folder half-written."""
    return bool(_TEMPORARY.fullmatch(path.name) or re.fullmatch(r".+\.(tmp|old)-\d+", path.name))


@contextmanager
def _scratch(parent: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """A new folder of a random name in `parent`, locked as long as the block runs, then gone.

    One that a killed process left is removed when the next is made beside it. Raises OSError.
    """
    _clear_leftovers(parent)
    path = parent / f".samkd-{secrets.token_hex(8)}.tmp"
    path.mkdir(mode=mode)
    lock = lock_file(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def lock_file(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed or its process ends, however it ends;
    None where the system or the file system knows no locks. Raises BlockingIOError when another one holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_leftovers(parent: Path) -> None:
    """Remove what killed processes left in a folder, looking once per process; what is being written is locked."""
    if parent.absolute() in _cleared:
        return
    _cleared.add(parent.absolute())
    with suppress(OSError):
        for path in parent.iterdir():
            if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            with suppress(OSError):  # somebody else's, or in use
                if time.time() - path.stat().st_mtime < 2:
                    continue  # between its making and its locking a folder is a moment without its lock
                lock = lock_file(path)
                if lock is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(lock)


def _exchange(draft: Path, path: Path) -> None:
    """Put `draft` under the name `path`, and what is there under the draft's name, in one step on Linux. Elsewhere in
    two; who is killed between them still has the old one, as NAME.replaced-....
    """
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.renameat2(_HERE, os.fsencode(draft), _HERE, os.fsencode(path), _RENAME_EXCHANGE) == 0:
            return
    except (AttributeError, TypeError, OSError):
        pass  # another system than Linux
    old = path.with_name(f"{path.name}.replaced-{secrets.token_hex(4)}")
    path.replace(old)
    try:
        draft.replace(path)
    except OSError:
        old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def file_digest(path: str | Path) -> str:
    """sha256 of a file, in hex. Raises BadInputError."""
    try:
        with regular_file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}).") from error


def regular_file(path: str | Path) -> Path:
    """`path`, if it is a file or a link to one: a pipe or a device could be read for ever. Raises BadInputError."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise BadInputError(f"{path}: is {kind}; expected a file.")
    return path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents; one that exists is fine. Raises OutputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: this folder cannot be made ({error.strerror or error}).") from error
    return path


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is no data by its name: `._scan.nii.gz` and `.DS_Store` of macOS, `Thumbs.db` and
    `desktop.ini` of Windows, and whatever else begins with a dot.
    """
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")


def visible_entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, links followed, by name, without the hidden ones; [] where it is no folder.

    Raises BadInputError for a link that leads nowhere: what it stood for would be missing without a word.
    """
    entries = sorted(path for path in folder.iterdir() if not is_hidden(path)) if folder.is_dir() else []
    for path in entries:
        if path.is_symlink() and not path.exists():
            raise BadInputError(f"{path}: is a link that leads nowhere. Restore what it points to, or remove the link.")
    return entries


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder and in all folders below it, links followed, by path, without the hidden ones.

    A folder to which several paths lead, or one that holds a link to itself, is entered once; pipes and devices are
    no files. Raises what visible_entries raises.
    """
    files, waiting, entered = [], [folder], set()
    while waiting:
        below = waiting.pop(0)
        if below.resolve() in entered:
            continue
        entered.add(below.resolve())
        for path in visible_entries(below):
            if path.is_dir():
                waiting.append(path)
            elif path.is_file():
                files.append(path)
    return sorted(files)
