"""A package, open for work: its plan, its class names and its network."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import IntegrityError
from ...volumes.geometry import Geometry, Volume
from ...volumes.pipeline import Model
from .engine import Engine, open_engine
from .integrity import extract, verify
from .manifest import Manifest
from .promptable import Promptable, Session

SAMPLE = "sample/scan.nii.gz"
EXPECTED = "sample/expected.nii.gz"
AT_ONCE = 2  # patches in the engine: one computes, the other waits while the one before is averaged and resampled


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Package(Model):
    """The model of a package folder; `engine` is what infers its patches."""

    folder: Path  # where its files lie: for a zip, where it was unpacked
    manifest: Manifest
    engine: Engine | Promptable

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
            package = cls.of(scratch, verify(scratch, trust=trust), threads=threads, path=path)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        # The engine, unlike the package, is shared by the copy that `faster` makes.
        weakref.finalize(package.engine, shutil.rmtree, scratch, ignore_errors=True)
        return package

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, *, threads: int | None = None, path: Path | None = None) -> Package:
        """The package of a folder whose files are known to be right; `path` is what the user calls it."""
        model, precision, prompts = _model(folder, manifest.model), manifest.inference_precision, manifest.prompts
        decoder = _model(folder, prompts.decoder) if prompts else None
        engine = open_engine(manifest.target, model, precision=precision, threads=threads)
        if prompts is not None and decoder is not None:
            second = open_engine(manifest.target, decoder, precision="f32", threads=threads)
            engine = Promptable(engine, second, points=prompts.points, required=prompts.required)
        return cls(
            path=path or folder,
            plan=manifest.plan,
            class_names=manifest.class_names,
            in_channels=manifest.in_channels,
            infer=engine.begin,
            at_once=AT_ONCE,
            channel_names=manifest.description.channels,
            prompt_kinds=prompts.kinds if prompts else frozenset(),
            prompts_required=prompts.required if prompts else False,
            intensities=[dict(each) for each in manifest.intensities],
            folder=folder,
            manifest=manifest,
            engine=engine,
        )

    def facts(self) -> dict[str, Any]:
        """What a run report says of the package, as plain JSON values."""
        return {
            "package": self.manifest.name,
            "digest": self.manifest.digest,
            "engine": self.engine.version,
            "threads": self.engine.threads,
            "precision": self.manifest.precision,
            "inference_precision": self.engine.precision,
            "layer_precisions": self.engine.layer_precisions(),
            "overlap": self.plan.overlap,
        }

    def session(self, preprocessed: Volume, source: Geometry) -> Session:
        """For one prompt after another on a scan; only of a package that takes prompts."""
        assert isinstance(self.engine, Promptable)
        return Session(self.engine, self.plan, preprocessed, source, num_classes=len(self.class_names))


def _model(folder: Path, name: str) -> Path:
    """The file of a model in a package. Raises IntegrityError when there is none of that name in its folder."""
    file = folder / name
    try:
        if file.parent == folder and file.is_file():
            return file
    except (ValueError, OSError):  # a name that no file can have
        pass
    raise IntegrityError(f"{folder}: its manifest does not describe a package (no model {name!r} in it).")
