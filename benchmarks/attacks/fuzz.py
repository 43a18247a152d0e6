"""Damaged files of every format that is read: refused in one line, or read; never a crash, a hang, or other values than
were written where the format carries a checksum.
"""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samkd.errors import SamkdError

from .attempts import SECONDS, Tally
from .damage import mutated
from .material import Material


@dataclass(frozen=True)
class Format:
    """A file, how it is read, and whether it carries a checksum over all that is read."""

    name: str
    path: Path
    read: Callable[[Path], Any]
    summed: bool = False


def formats(material: Material) -> list[Format]:
    """Every format, each with its sound file."""
    from samkd.configs.load import load_config
    from samkd.training.run import Run
    from samkd.volumes.datasets.registry import read_dataset
    from samkd.volumes.io.dicom.series import read_series
    from samkd.volumes.io.nifti import read_labels, read_scan
    from samkd.volumes.io.pictures import read_picture_labels, read_pictures
    from samkd.volumes.prompt_parsing import Request
    from samkd.volumes.prompts import KINDS

    def scan(path: Path) -> Any:
        volume = read_scan(path)
        return volume.array, volume.geometry.affine

    def prompts(path: Path) -> None:
        Request(file=path).prompts_for(path, class_names={0: "background", 1: "liver"}, prompt_kinds=KINDS)

    folder = material.formats
    dicom = [
        Format(f"DICOM {path.stem}", path, lambda path: read_series(path).array)
        for path in sorted((folder / "dicom").glob("*.dcm"))
    ]
    return [
        Format("NIfTI scan", folder / "scan.nii", scan),
        Format("NIfTI mask", folder / "mask.nii", lambda path: read_labels(path)[0]),
        Format("gzipped NIfTI scan", folder / "scan.nii.gz", scan, summed=True),
        Format("gzipped NIfTI mask", folder / "mask.nii.gz", lambda path: read_labels(path)[0], summed=True),
        *dicom,
        Format("PNG", folder / "picture.png", lambda path: read_pictures([path], channels=3).array, summed=True),
        Format("PNG mask", folder / "picture-mask.png", lambda path: read_picture_labels([path])[0], summed=True),
        Format("JPEG", folder / "picture.jpg", lambda path: read_pictures([path], channels=3).array),
        Format("TIFF", folder / "picture.tiff", lambda path: read_pictures([path], channels=3).array),
        Format("dataset.json", material.nnunet / "dataset.json", lambda path: read_dataset(path.parent)),
        Format("labels.json", folder / "labels.json", _read_label_table),
        Format("prompts.json", folder / "prompts.json", prompts),
        Format("config YAML", _a_config(folder), lambda path: load_config(str(path), [])),
        Format("a run's config.yaml", material.student / "config.yaml", lambda path: Run.read(path.parent)),
        Format("a run's metrics.json", material.student / "metrics.json", lambda path: Run.read(path.parent).metrics()),
        Format("a run's log.jsonl", material.student / "log.jsonl", lambda path: list(Run.read(path.parent).history())),
    ]


def _a_config(folder: Path) -> Path:
    import samkd.configs

    path = folder / "config.yaml"
    path.write_bytes((Path(samkd.configs.__file__).parent / "phantom.yaml").read_bytes())
    return path


def _read_label_table(path: Path) -> Any:
    from samkd.volumes.datasets.layouts.listing import read_classes

    return read_classes(path)


class _Hang(BaseException):
    pass


def _alarmed(*_args: object) -> None:
    raise _Hang


def fuzz(each: Format, *, count: int, seed: int) -> Tally:
    """Read `count` damaged versions of a file, which is put back afterwards."""
    tally, rng = Tally(f"fuzz: {each.name}"), random.Random(f"{seed} {each.name}")
    whole = each.path.read_bytes()
    expected = _values(each.read(each.path))
    before = signal.signal(signal.SIGALRM, _alarmed)
    try:
        for number in range(count):
            damaged = mutated(whole, rng)
            each.path.write_bytes(damaged)
            signal.alarm(int(SECONDS))
            try:
                values = _values(each.read(each.path))
            except SamkdError:
                tally.add("refused")
            except _Hang:
                tally.add("hang", f"mutation {number}")
            except Exception as error:
                tally.add("traceback", f"mutation {number}: {type(error).__name__}: {error}")
            else:
                silent = each.summed and damaged != whole and not _equal(values, expected)
                tally.add("silent" if silent else "accepted", f"mutation {number}: other values than were written")
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
        each.path.write_bytes(whole)
    return tally


def _values(read: Any) -> tuple[np.ndarray, ...]:
    """The arrays among what was read, to compare with those that were written."""
    parts = read if isinstance(read, tuple) else (read,)
    return tuple(part for part in parts if isinstance(part, np.ndarray))


def _equal(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
