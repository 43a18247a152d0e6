"""Scalars as TensorBoard's event files, in the run folder: `tensorboard --logdir runs` shows all runs of a root."""

import shutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..errors import BadInputError, MissingExtraError, OutputError, translated
from .run import Run

FOLDER = "tensorboard"


def check_installed() -> None:
    """Raises MissingExtraError without the library that writes event files."""
    _library()


def _library() -> Any:
    with translated("--tensorboard", "needs a library that is not here; pip install tensorboardX", MissingExtraError):
        return import_module("tensorboardX")


class EventFile:
    """A run's scalars in a new event file. Those of earlier starts go: all of them are written anew from the log.

    So every step is there once, and only steps that the run still knows of. Raises BadInputError where the folder is a
    link, OutputError for what cannot be written.
    """

    def __init__(self, run: Run) -> None:
        self._path = run.path / FOLDER
        if self._path.is_symlink():
            raise BadInputError(f"{self._path}: is a link, and event files are written there; remove it")
        try:
            if self._path.exists():
                shutil.rmtree(self._path)
            self._writer = _library().SummaryWriter(str(self._path), flush_secs=30)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror or error})") from error

    def write(self, step: int, scalars: Mapping[str, float], *, moment: float) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step, walltime=moment)

    def close(self) -> None:
        self._writer.close()
