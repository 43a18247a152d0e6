"""Writing files so that a crash, a full disk or `kill -9` never leaves half of one under its final name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError


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


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents; one that exists is fine. Raises OutputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: this folder cannot be made ({error.strerror or error}).") from error
    return path
