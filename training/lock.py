"""One training at a time in a run folder."""

import functools
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

from ..errors import BadInputError
from ..volumes.files import lock_file
from .ranks import is_main
from .run import LOCK, Run

P = ParamSpec("P")


def one_at_a_time(train: Callable[P, Run]) -> Callable[P, Run]:
    """`train`, which gets its `run` by name, under the lock of that run's folder; of several devices one holds it.

    A finished run is only read, and needs no lock.
    """

    @functools.wraps(train)
    def locked(*args: P.args, **kwargs: P.kwargs) -> Run:
        run: Run = kwargs["run"]  # type: ignore[assignment]
        if run.finished or not is_main():
            return train(*args, **kwargs)
        with locked_folder(run.path):
            return train(*args, **kwargs)

    return locked


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder's lock while the block runs. It ends with its process, however that ends: a file that a killed
    one left is taken over. Where a file system knows no locks nobody is kept out.

    Raises BadInputError, naming process and host, when another one holds it.
    """
    path = folder / LOCK
    descriptor = _taken(path)
    if descriptor is None:
        yield
        return
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(path: Path) -> int | None:
    while True:
        if path.is_symlink():
            raise BadInputError(f"{path}: is a link; remove it")
        path.touch()
        try:
            descriptor = lock_file(path)
        except FileNotFoundError:  # its holder has just ended
            continue
        except BlockingIOError:
            raise BadInputError(
                f"{path.parent}: is being trained by {_holder(path)}; wait for it, or give another --run folder"
            ) from None
        if descriptor is None:
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # its holder removed it between our opening and our locking it
        os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
