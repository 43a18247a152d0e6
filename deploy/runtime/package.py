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

from ...errors import BadInputError, IntegrityError
from ...volumes.geometry import Geometry, Volume
from ...volumes.pipeline import Model
from ...volumes.plan import Plan
from .engine import Engine, open_engine
from .integrity import extract, verify
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
    manifest: dict[str, Any]
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
    def of(
        cls, folder: Path, manifest: dict[str, Any], *, threads: int | None = None, path: Path | None = None
    ) -> Package:
        """The package of a folder whose files are known to be right; `path` is what the user calls it."""
        try:
            plan = Plan.from_dict(manifest["plan"])
            class_names = {int(value): str(entry["name"]) for value, entry in manifest["labels"].items()}
            in_channels, model = int(manifest["in_channels"]), folder / manifest["model"]
            target, precision = str(manifest["target"]), str(manifest["inference_precision"])
            prompts = manifest.get("prompts")
            decoder = folder / prompts["decoder"] if prompts else None
            kinds, points = (frozenset(map(str, prompts["kinds"])), int(prompts["points"])) if prompts else ((), 0)
            channel_names = tuple(map(str, manifest.get("description", {}).get("channels", ())))
            intensities = list(manifest.get("intensities", ()))
            for file in filter(None, (model, decoder)):
                if file.parent != folder or not file.is_file():
                    raise ValueError(f"no model {file.name!r} in it")
        except (BadInputError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise IntegrityError(f"{folder}: its manifest does not describe a package ({error!r}).") from error
        engine = open_engine(target, model, precision=precision, threads=threads)
        if decoder is not None:
            engine = Promptable(engine, open_engine(target, decoder, precision="f32", threads=threads), points=points)
        return cls(
            path=path or folder,
            plan=plan,
            class_names=class_names,
            in_channels=in_channels,
            infer=engine.begin,
            at_once=AT_ONCE,
            channel_names=channel_names,
            prompt_kinds=frozenset(kinds),
            intensities=intensities,
            folder=folder,
            manifest=manifest,
            engine=engine,
        )

    def facts(self) -> dict[str, Any]:
        """What a run report says of the package, as plain JSON values."""
        return {
            "package": self.manifest["name"],
            "digest": self.manifest["digest"],
            "engine": self.engine.version,
            "threads": self.engine.threads,
            "precision": self.manifest["precision"],
            "inference_precision": self.engine.precision,
            "layer_precisions": self.engine.layer_precisions(),
            "overlap": self.plan.overlap,
        }

    def session(self, preprocessed: Volume, source: Geometry) -> Session:
        """For one prompt after another on a scan; only of a package that takes prompts."""
        assert isinstance(self.engine, Promptable)
        return Session(self.engine, self.plan, preprocessed, source, num_classes=len(self.class_names))
