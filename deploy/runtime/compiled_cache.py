"""Compiled models that are kept between starts, in a folder that nobody but the user writes.

What an engine imports is as good as a program, so it is taken from nowhere else, and only as it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import BadInputError, UsageError

KEPT = 8  # entries; one of SwinUNETR-tiny takes 45 MB
_MOST = 1 << 31  # bytes of an entry
_MARK = b"samkd compiled model 1\n"
_SUFFIX = ".compiled"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def entry_name(facts: Mapping[str, Any]) -> str:
    """The name of the entry for what decided on a compiled model: plain JSON values by their names."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class CompiledCache:
    """A folder of compiled models. Made if it is not there yet, for its user alone.

    Raises UsageError for a folder that belongs to somebody else or that others may write to, and on a system that does
    not say whose a file is; BadInputError for what is no folder or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not hasattr(os, "geteuid"):
            raise UsageError(f"--cache {folder}: this system does not say who may write there; leave it out")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"--cache {folder}: cannot be made ({error.strerror or error}).") from error
        with self._opened():
            pass

    def read(self, name: str) -> bytes | None:
        """The compiled model of an entry; None where there is none, where others could have written it, and where it
        is not what was written under that name."""
        with self._opened() as folder, suppress(OSError):
            descriptor = os.open(name + _SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                facts = os.fstat(descriptor)
                if not stat.S_ISREG(facts.st_mode) or not _is_private(facts) or facts.st_size > _MOST:
                    return None
                head, digest = file.read(len(_head(name))), file.read(32)
                compiled = file.read()
            if head == _head(name) and hashlib.sha256(compiled).digest() == digest:
                return compiled
        return None

    def write(self, name: str, compiled: bytes) -> None:
        """Keep a compiled model, and of all of them the latest KEPT. One that cannot be kept is told of on stderr: the
        next start compiles again."""
        draft = f".{secrets.token_hex(8)}"
        try:
            with self._opened() as folder:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                try:
                    with os.fdopen(os.open(draft, flags, 0o600, dir_fd=folder), "wb") as file:
                        file.write(_head(name) + hashlib.sha256(compiled).digest())
                        file.write(compiled)
                    os.replace(draft, name + _SUFFIX, src_dir_fd=folder, dst_dir_fd=folder)
                except OSError:
                    with suppress(OSError):
                        os.unlink(draft, dir_fd=folder)
                    raise
                _forget_old(folder)
        except OSError as error:
            print(f"warning: --cache {self.folder}: nothing is kept ({error.strerror or error})", file=sys.stderr)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the folder: what is checked and what is used is one folder, whatever its path comes to name.

        Raises UsageError, BadInputError.
        """
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BadInputError(
                f"--cache {self.folder}: is no folder that can be read ({error.strerror or error})."
            ) from error
        try:
            if not _is_private(os.fstat(descriptor)):
                raise UsageError(
                    f"--cache {self.folder}: others could write there, and compiled models are run as programs are; "
                    f"name a folder of your own, or run: chmod 700 {self.folder}"
                )
            yield descriptor
        finally:
            os.close(descriptor)


def _is_private(facts: os.stat_result) -> bool:
    """Whether a file or folder is the user's, and nobody else may write to it."""
    return facts.st_uid == os.geteuid() and not facts.st_mode & _OTHERS_WRITE


def _head(name: str) -> bytes:
    return _MARK + name.encode() + b"\n"


def _forget_old(folder: int) -> None:
    """Remove all entries of a folder but the KEPT that were written last. Raises OSError."""
    written = {
        name: os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns
        for name in os.listdir(folder)
        if name.endswith(_SUFFIX)
    }
    for name in sorted(written, key=written.__getitem__)[:-KEPT]:
        os.unlink(name, dir_fd=folder)
