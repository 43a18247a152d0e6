"""A package, open for work: its plan, its class names and its network."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import IntegrityError
from ...volumes.files import temporary_folder
from ...volumes.geometry import Geometry, Volume
from ...volumes.pipeline import FAST_OVERLAP, Model
from .compiled_cache import CompiledCache
from .cpu_flags import adds_in_16_bits
from .engine import Engine, open_engine
from .fit import check_graphs, check_sample
from .manifest import Manifest
from .private_copy import copy_verified
from .promptable import Promptable, Session

SHOWN = 16  # digits of a key that a warning shows
AT_ONCE = 2  # patches in the engine: one computes, the other waits while the one before is averaged and resampled


@dataclass(frozen=True, eq=False, kw_only=True)
class Package(Model):
    """The model of a package folder; `engine` is what infers its patches."""

    folder: Path  # where the files lie that were checked
    manifest: Manifest
    engine: Engine | Promptable
    trusted: bool = False  # whether it was checked that the owner of a key signed it
    opener: Callable[..., Engine] = open_engine  # of its graphs

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        trust: Path | None = None,
        cache: CompiledCache | None = None,
    ) -> Package:
        """Open a package, a folder or its zip, after checking every file of it, and with `trust`, a public key (PEM),
        that its owner signed it. A graph that was compiled before is taken from `cache`.

        Raises BadInputError when there is none, IntegrityError when it is not what was packed, MissingExtraError
        without its engine. What is used are the bytes that were checked: a copy among the system's temporary files,
        which goes with the object.
        """
        path = Path(path)
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            manifest = copy_verified(path, folder, trust=trust)
            check_sample(folder, manifest, source=path)
            package = cls.of(folder, manifest, threads=threads, path=path, trusted=trust is not None, cache=cache)
            # The engine, unlike the package, is shared by the copy that `faster` makes.
            weakref.finalize(package.engine, stack.pop_all().close)
        return package

    @classmethod
    def of(
        cls,
        folder: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        path: Path | None = None,
        trusted: bool = False,
        cache: CompiledCache | None = None,
        opener: Callable[..., Engine] | None = None,
    ) -> Package:
        """The package of a folder whose files are known to be right; `path` is what the user calls it, `trusted`
        whether its signature was checked. `opener` opens its graphs in the place of open_engine.
        """
        prompts = manifest.prompts
        named = path or folder

        opener = opener or functools.partial(open_engine, cache=cache, trusted=trusted)

        def open_graph(name: str, *, precision: str) -> Engine:
            model = _model(folder, name)
            return opener(manifest.target, model, name=named / name, precision=precision, threads=threads)

        engine = open_graph(manifest.model, precision=manifest.inference_precision)
        decoder = open_graph(prompts.decoder, precision="f32") if prompts else None
        check_graphs(manifest, engine, decoder, source=named)
        if prompts and decoder:
            engine = Promptable(engine, decoder, points=prompts.points, required=prompts.required)
        return cls(
            path=named,
            plan=manifest.plan,
            class_names=manifest.class_names,
            in_channels=manifest.in_channels,
            infer=engine.begin,
            at_once=AT_ONCE,
            channel_names=manifest.description.channels,
            prompt_kinds=prompts.kinds if prompts else frozenset(),
            prompts_required=prompts.required if prompts else False,
            intensities=[dict(each) for each in manifest.intensities],
            temperature=manifest.temperature,
            folder=folder,
            manifest=manifest,
            engine=engine,
            trusted=trusted,
            opener=opener,
        )

    @functools.cached_property
    def small(self) -> Package | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The package with its small graph alone, opened when it is first asked for. Raises IntegrityError."""
        graph = self.manifest.small
        if graph is None:
            return None
        plan = replace(self.plan, patch=graph.patch, overlap=graph.overlap, blending="gaussian", crop="none")
        manifest = replace(self.manifest, model=graph.model, plan=plan, small=None)
        engine = self.opener(
            manifest.target,
            _model(self.folder, graph.model),
            name=self.path / graph.model,
            precision=manifest.inference_precision,
            threads=self.engine.threads or None,
        )
        check_graphs(manifest, engine, None, source=self.path)
        return replace(self, plan=plan, manifest=manifest, infer=engine.begin, engine=engine)

    def faster(self) -> Package:
        """As Model.faster, the small graph included."""
        small = self.manifest.small
        if small is not None and FAST_OVERLAP < small.overlap < 1:
            manifest = replace(self.manifest, small=replace(small, overlap=FAST_OVERLAP))
            return replace(self, plan=super().faster().plan, manifest=manifest)
        return replace(self, plan=super().faster().plan)

    def facts(self) -> dict[str, Any]:
        """What a run report says of the package, as plain JSON values."""
        return {
            "package": self.manifest.name,
            "digest": self.manifest.digest,
            "signed_by": self.manifest.signer,
            "trusted": self.trusted,
            "engine": self.engine.version,
            "threads": self.engine.threads,
            "precision": self.manifest.precision,
            "inference_precision": self.engine.precision,
            "layer_precisions": self.engine.layer_precisions(),
            "overlap": self.plan.overlap,
        }

    def session(
        self, preprocessed: Volume, source: Geometry, *, watch: Callable[[float], None] | None = None
    ) -> Session:
        """For one prompt after another on a scan; only of a package that takes prompts."""
        assert isinstance(self.engine, Promptable)
        return Session(self.engine, self.plan, preprocessed, source, num_classes=len(self.class_names), watch=watch)


def warn_before_use(model: Model) -> None:
    """Say on stderr that nobody checked whose package this is, and that int8 may overflow here; nothing of a run.

    Each verb that uses a package calls this once. One line for each.
    """
    if not isinstance(model, Package):
        return
    full_range = model.manifest.precision == "int8" and "half range" not in (model.manifest.quantization or "")
    if full_range and model.manifest.target != "tensorrt" and adds_in_16_bits():
        print(
            f"warning: {model.path}: this processor has no VNNI, where int8 of the full range can overflow; run verify "
            "here before you use it, or ask for a package made with --cpu avx2",
            file=sys.stderr,
            flush=True,
        )
    if model.trusted:
        return
    signer = model.manifest.signer
    if signer is None:
        warning = "is not signed: anyone could have changed it"
    else:
        warning = f"is signed by {signer[:SHOWN]}, which was not checked; give --trust PUBKEY"
    print(f"warning: {model.path} {warning}", file=sys.stderr, flush=True)


def _model(folder: Path, name: str) -> Path:
    """The file of a model in a package. Raises IntegrityError when there is none of that name in its folder."""
    file = folder / name
    try:
        if file.parent == folder and file.is_file():
            return file
    except (ValueError, OSError):  # a name that no file can have
        pass
    raise IntegrityError(f"{folder}: its manifest does not describe a package (no model {name!r} in it).")
