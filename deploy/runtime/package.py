"""A package, open for work: its plan, its labels and its network."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadInputError, IntegrityError
from ...volumes.geometry import Volume
from ...volumes.pipeline import segment
from ...volumes.plan import Plan
from .engine_openvino import Engine
from .integrity import extract, verify

SAMPLE = "sample/scan.nii.gz"
EXPECTED = "sample/expected.nii.gz"


@dataclass(frozen=True, eq=False)
class Package:
    """`labels` are the class names by value, background 0 included; `engine` infers patches of `plan`."""

    folder: Path
    manifest: dict[str, Any]
    plan: Plan
    labels: dict[int, str]
    in_channels: int
    engine: Engine

    @classmethod
    def open(cls, path: str | Path, *, threads: int | None = None) -> Package:
        """Open a package, a folder or its zip, after checking every file of it.

        Raises BadInputError when there is none, IntegrityError when it is not what was packed, MissingExtraError
        without OpenVINO. A zip is unpacked into a temporary folder that goes with the object.
        """
        path = Path(path)
        if not path.is_file():
            return cls.of(path, verify(path), threads=threads)
        scratch = Path(tempfile.mkdtemp(prefix="samkd-"))
        try:
            extract(path, scratch)
            package = cls.of(scratch, verify(scratch), threads=threads)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        weakref.finalize(package, shutil.rmtree, scratch, ignore_errors=True)
        return package

    @classmethod
    def of(cls, folder: Path, manifest: dict[str, Any], *, threads: int | None = None) -> Package:
        """The package of a folder whose files are known to be right."""
        try:
            plan = Plan.from_dict(manifest["plan"])
            labels = {int(value): str(entry["name"]) for value, entry in manifest["labels"].items()}
            in_channels, model = int(manifest["in_channels"]), folder / manifest["model"]
            precision = str(manifest["inference_precision"])
        except (BadInputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"{folder}: its manifest does not describe a package ({error!r}).") from error
        return cls(folder, manifest, plan, labels, in_channels, Engine(model, precision=precision, threads=threads))

    def segment(self, volume: Volume) -> np.ndarray:
        """Labels [D, H, W] on the scan's own grid. Raises BadInputError as volumes.pipeline does."""
        if len(volume.array) != self.in_channels:
            raise BadInputError(f"the scan has {len(volume.array)} channels; this package expects {self.in_channels}.")
        return segment(volume, self.plan, self.engine, classes=len(self.labels))
