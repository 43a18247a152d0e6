"""Any model that segments scans, a package or a run folder, behind one door."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..volumes.prompts import require_kinds


@dataclass(frozen=True)
class Model:
    """`segment` turns a scan, and prompts of the kinds that the model takes (volumes.prompts.KINDS), into its mask."""

    path: Path
    segment: Callable[..., Any]
    channels: int
    labels: dict[int, str]
    takes: frozenset[str] = frozenset()

    def accept(self, kinds: frozenset[str] = frozenset()) -> None:
        """Raises UsageError for a network without prompts, and for prompts of kinds that it would ignore."""
        require_kinds(self.path, takes=self.takes, kinds=kinds)


def is_package(path: Path) -> bool:
    return path.suffix == ".zip" or (path / "manifest.json").exists()


def load_model(path: Path, *, base: Path | None = None, trust: Path | None = None) -> Model:
    """A package (folder or zip) or a run folder, ready to segment; `base` as in distill.networks.load_network, `trust`
    as in Package.open.

    Raises what Package.open and load_network raise, and UsageError for a `base` that the model does not adapt, and for
    `trust` with a run folder, which nobody signs.
    """
    if is_package(path):
        if base is not None:
            raise UsageError(f"{path}: a package holds all its weights; leave --weights out")
        from ..deploy.runtime.package import Package

        package = Package.open(path, trust=trust)
        return Model(path, package.segment, package.in_channels, package.labels, takes=package.takes)
    if trust is not None:
        raise UsageError(f"{path}: only packages are signed; leave --trust out")
    from ..distill.networks import load_network
    from ..training.predictor import make_predictor
    from ..training.run import Run
    from ..volumes.pipeline import segment

    run = Run.read(path)
    if base is not None and run.config.adapted_file is None:
        raise UsageError(f"{path}: this run adapts no published weights; leave --weights out")
    network = load_network(run, base=base)
    infer = make_predictor(network)
    return Model(
        path,
        lambda volume, prompts=None: segment(volume, run.plan, infer, classes=len(run.labels), prompts=prompts),
        len(run.config.channels),
        run.labels,
        takes=network.prompt_kinds,
    )
