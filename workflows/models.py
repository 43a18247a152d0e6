"""Any model that segments scans, a package or a run folder, behind one door.

PyTorch is imported for runs alone: a package is segmented without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deploy.runtime.manifest import Manifest
from ..errors import UsageError
from ..volumes.pipeline import Model


def is_package(path: Path) -> bool:
    return path.suffix == ".zip" or (path / "manifest.json").exists()


def load_model(
    path: str | Path,
    *,
    pretrained_path: str | Path | None = None,
    trust: str | Path | None = None,
    threads: int | None = None,
    cache: Path | None = None,
) -> Model:
    """A package (folder or zip) or a run folder, ready to segment.

    `pretrained_path` is the published file that a run adapts, where it has moved; `trust` the public key (PEM) whose
    owner must have signed a package; `threads` those of the network (default: all cores); `cache` a folder in which a
    package's compiled graphs are kept.

    Raises UsageError for a `pretrained_path` that the model does not adapt, for `trust` and `cache` with a run folder,
    which nobody signs and nothing compiles; BadInputError, IntegrityError and MissingExtraError for what cannot be
    opened.
    """
    path = Path(path)
    if is_package(path):
        if pretrained_path is not None:
            raise UsageError(f"{path}: a package holds all its weights; leave --weights out")
        from ..deploy.runtime.compiled_cache import CompiledCache
        from ..deploy.runtime.package import Package

        kept = None if cache is None else CompiledCache(cache)
        return Package.open(path, trust=None if trust is None else Path(trust), threads=threads, cache=kept)
    if cache is not None:
        raise UsageError(f"{path}: only packages are compiled; leave --cache out")
    if trust is not None:
        raise UsageError(f"{path}: only packages are signed; leave --trust out")
    return load_run(path, pretrained_path=None if pretrained_path is None else Path(pretrained_path), threads=threads)


def checked_manifest(package: Path, *, trust: Path | None = None, threads: int | None = None) -> Manifest:
    """The manifest of a package that opens, for a verb that runs it elsewhere; says on stderr what nobody checked.

    Raises what deploy.runtime.package.Package.open raises.
    """
    from ..deploy.runtime.package import Package, warn_unchecked

    opened = Package.open(package, trust=trust, threads=threads)
    warn_unchecked(opened)
    return opened.manifest


@dataclass(frozen=True, eq=False, kw_only=True)
class RunModel(Model):
    """The model of a run folder: its network in PyTorch, float32."""

    version: str  # of PyTorch
    threads: int

    def facts(self) -> dict[str, Any]:
        """What a run report says of the run, as plain JSON values."""
        return {
            "run": self.path.name,
            "engine": f"torch {self.version}",
            "threads": self.threads,
            "precision": "fp32",
            "inference_precision": "f32",
            "overlap": self.plan.overlap,
        }


def load_run(path: Path, *, pretrained_path: Path | None = None, threads: int | None = None) -> RunModel:
    """The network of a run folder. Raises what Run.read and load_network raise, and UsageError for a `pretrained_path`
    that the run does not adapt.
    """
    import torch

    from ..distill.networks import load_network
    from ..training.predictor import make_predictor
    from ..training.run import Run

    run = Run.read(path)
    if pretrained_path is not None and run.config.adapted_file is None:
        raise UsageError(f"{path}: this run adapts no published weights; leave --weights out")
    if threads is not None:
        torch.set_num_threads(threads)
    network = load_network(run, pretrained_path=pretrained_path)
    return RunModel(
        path=path,
        plan=run.plan,
        class_names=run.class_names,
        in_channels=len(run.config.channels),
        infer=make_predictor(network),
        channel_names=tuple(run.config.channels),
        prompt_kinds=network.prompt_kinds,
        prompts_required=getattr(network, "prompts_required", False),
        intensities=run.intensities(),
        frees_memory=True,
        version=torch.__version__,
        threads=torch.get_num_threads(),
    )
