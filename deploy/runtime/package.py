"""A package, open for work: its plan, its labels and its network."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import BadInputError, IntegrityError
from ...volumes.geometry import Geometry, Volume
from ...volumes.pipeline import segment_prepared
from ...volumes.plan import Plan, prepare
from ...volumes.prompts import ScanPrompts
from .engine import Engine, open_engine
from .integrity import extract, verify
from .manifest import Manifest
from .promptable import Promptable, Session

SAMPLE = "sample/scan.nii.gz"
EXPECTED = "sample/expected.nii.gz"
FAST_OVERLAP = 0.25
AT_ONCE = 2  # patches in the engine: one computes, the other waits while its forerunner is stitched and resampled


@contextmanager
def unpacked(path: str | Path, *, trust: Path | None = None) -> Iterator[Path]:
    """The folder of a package, a folder or its zip, after checking every file; what a zip was unpacked into goes
    afterwards. Raises BadInputError, IntegrityError as Package.open.
    """
    path = Path(path)
    if not path.is_file():
        verify(path, trust=trust)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="samkd-") as scratch:
        extract(path, Path(scratch), trust=trust)
        verify(Path(scratch), trust=trust)
        yield Path(scratch)


@dataclass(frozen=True, eq=False)
class Package:
    """`labels` are the class names by value, background 0 included; `engine` infers patches of `plan`."""

    folder: Path
    manifest: Manifest
    plan: Plan
    labels: dict[int, str]
    in_channels: int
    engine: Engine | Promptable
    takes: frozenset[str] = frozenset()  # those of volumes.prompts.KINDS that the student was trained with

    @classmethod
    def open(cls, path: str | Path, *, threads: int | None = None, trust: Path | None = None) -> Package:
        """Open a package, a folder or its zip, after checking every file of it, and with `trust`, a public key (PEM),
        that its owner signed it.

        Raises BadInputError when there is none, IntegrityError when it is not what was packed, MissingExtraError
        without its engine. A zip is unpacked into a temporary folder that goes with the object.
        """
        path = Path(path)
        if not path.is_file():
            return cls.of(path, verify(path, trust=trust), threads=threads)
        scratch = Path(tempfile.mkdtemp(prefix="samkd-"))
        try:
            extract(path, scratch, trust=trust)
            package = cls.of(scratch, verify(scratch, trust=trust), threads=threads)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        weakref.finalize(package, shutil.rmtree, scratch, ignore_errors=True)
        return package

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, *, threads: int | None = None) -> Package:
        """The package of a folder whose files are known to be right."""
        model, precision, prompts = _model(folder, manifest.model), manifest.inference_precision, manifest.prompts
        decoder = _model(folder, prompts.decoder) if prompts else None
        engine = open_engine(manifest.target, model, precision=precision, threads=threads)
        if prompts is not None and decoder is not None:
            second = open_engine(manifest.target, decoder, precision="f32", threads=threads)
            engine = Promptable(engine, second, points=prompts.points)
        return cls(
            folder,
            manifest,
            manifest.plan,
            manifest.class_names,
            manifest.in_channels,
            engine,
            prompts.kinds if prompts else frozenset(),
        )

    def segment(self, volume: Volume, *, prompts: ScanPrompts | None = None) -> np.ndarray:
        """Labels [D, H, W] on the scan's own grid. Raises BadInputError as volumes.pipeline does."""
        return self.labels_of(self.prepare(volume), volume.geometry, prompts=prompts)

    def session(self, prepared: Volume, source: Geometry) -> Session:
        """For one prompt after another on a scan; only of a package that takes prompts."""
        assert isinstance(self.engine, Promptable)
        return Session(self.engine, self.plan, prepared, source, classes=len(self.labels))

    def prepare(self, volume: Volume) -> Volume:
        """The network's input. Raises BadInputError for another number of channels and as volumes.plan does."""
        if len(volume.array) != self.in_channels:
            raise BadInputError(f"the scan has {len(volume.array)} channels; this package expects {self.in_channels}.")
        return prepare(volume, self.plan)

    def labels_of(
        self, prepared: Volume, source: Geometry, *, at_once: int = AT_ONCE, prompts: ScanPrompts | None = None
    ) -> np.ndarray:
        """Labels [D, H, W] on `source`, the grid of the scan that `prepared` was made from."""
        return segment_prepared(
            prepared,
            source,
            self.plan,
            self.engine.begin,
            classes=len(self.labels),
            at_once=at_once,
            prompts=prompts,
        )

    def faster(self) -> Package:
        """The same package with patches that overlap by no more than a quarter: fewer of them, a little less exact."""
        return replace(self, plan=replace(self.plan, overlap=min(self.plan.overlap, FAST_OVERLAP)))


def _model(folder: Path, name: str) -> Path:
    """The file of a model in a package. Raises IntegrityError when there is none of that name in its folder."""
    file = folder / name
    try:
        if file.parent == folder and file.is_file():
            return file
    except (ValueError, OSError):  # a name that no file can have
        pass
    raise IntegrityError(f"{folder}: its manifest does not describe a package (no model {name!r} in it).")
