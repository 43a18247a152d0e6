"""Writing files so that a crash, a full disk or `kill -9` never leaves half of one under its final name."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import BadInputError, OutputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends, remove it when the block fails.

    The block creates and closes the temporary file. Raises OutputError, naming `path`, for any OSError on the way.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). "
            f"Check that the folder {path.parent} exists, is writable and has free space."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; it gets that name when the block ends and is removed when the block fails.

    Raises OutputError, naming `path`, when something is there already, and for any OSError on the way.
    """
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path}: is there already and not empty. Name another folder, or remove this one.")
    temporary = make_folder(path.with_name(f"{path.name}.tmp-{os.getpid()}"))
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: this folder cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_digest(path: str | Path) -> str:
    """sha256 of a file, in hex. Raises BadInputError."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}).") from error


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
    """The files and folders in a folder, links followed, by name, without the hidden ones; [] where it is no folder."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path)) if folder.is_dir() else []
