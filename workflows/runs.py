"""samkd runs: what lies in a run root, in which state, made from what; and what of it can go."""

import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..deploy.runtime.manifest import Manifest
from ..errors import BadInputError, OutputError, SamkdError
from ..training.run import CACHE, LOCK, Run
from ..volumes.files import is_leftover, lock_file, size_of


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run folder: its `state` is "finished", "training" (a process holds its lock), "stopped" or "broken".

    `step` of `steps` are done; `validation_dice` is the best pooled Dice so far, `test_dice` the mean over the classes
    on whole test scans. `teachers` and `packages` are folder names: who taught it, and what was packed from it.
    """

    name: str
    state: str
    bytes: int
    stage: str = ""
    network: str = ""
    config: str = ""
    step: int = 0
    steps: int | None = None
    validation_dice: float | None = None
    test_dice: float | None = None
    teachers: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    fault: str | None = None  # of a broken one


def list_runs(root: Path) -> list[RunSummary]:
    """The runs in a run root, the one that was started first at the top. Raises BadInputError for no folder."""
    if not root.is_dir():
        raise BadInputError(f"{root}: is no folder. Name the folder that holds the runs: --runs FOLDER")
    packages = _packages(root)
    folders = [path.parent for path in root.glob("*/config.yaml") if not is_leftover(path.parent)]
    folders.sort(key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns)
    return [_summary(folder, packages[folder.name]) for folder in folders]


@dataclass(frozen=True)
class Spare:
    """What can go without a loss: a folder, its bytes, and why nobody needs it."""

    path: Path
    bytes: int
    reason: str


def spare(root: Path, *, caches: bool = False) -> list[Spare]:
    """What `samkd runs clean` would remove: runs that were stopped, and what a finished one kept to be resumed.

    A run that is being trained, and one that cannot be read, is left alone. With `caches` also the preprocessed cases
    and soft targets that all runs share, which are made again where they are missing. Raises BadInputError for caches
    that a run which is being trained reads.
    """
    spared = []
    rows = list_runs(root)
    if caches and (cache := root / CACHE).is_dir() and size_of(cache):
        if training := [run.name for run in rows if run.state == "training"]:
            raise BadInputError(f"{cache}: is in use, for {', '.join(training)} is being trained; wait for its end")
        spared.append(Spare(cache, size_of(cache), "preprocessed cases and soft targets; made again when needed"))
    for run in rows:
        folder, state = root / run.name, root / run.name / "state"
        if run.state == "stopped":
            reason = f"stopped after {run.step} of {run.steps or '?'} steps; the same command would go on from there"
            spared.append(Spare(folder, run.bytes, reason))
        elif run.state == "finished" and state.is_dir() and size_of(state):
            spared.append(Spare(state, size_of(state), "finished; nothing is left to resume"))
    return spared


def remove(spared: list[Spare]) -> None:
    """Remove what `spare` named. Raises OutputError for what cannot be removed, and for a run that trains by now."""
    for each in spared:
        users = each.path.parent.iterdir() if each.path.name == CACHE else (each.path, each.path.parent)
        if any(_is_locked(folder) for folder in users):
            raise OutputError(f"{each.path}: is being trained by now, so it stays; nothing after it was removed")
        try:
            shutil.rmtree(each.path)
        except OSError as error:
            raise OutputError(f"{each.path}: cannot be removed ({error.strerror or error})") from error


def _summary(folder: Path, packages: list[str]) -> RunSummary:
    size = size_of(folder)
    try:
        run = Run.read(folder)
        entries = list(run.history())
        metrics = run.metrics() if run.finished else None
    except SamkdError as error:
        return RunSummary(name=folder.name, state="broken", bytes=size, fault=str(error))
    config, steps = run.config, run.config.training.get("steps")
    return RunSummary(
        name=folder.name,
        state="finished" if metrics else "training" if _is_locked(folder) else "stopped",
        bytes=size,
        stage=run.stage,
        network=config.network.name,
        config=str(config.user_config["name"]),
        step=metrics.steps if metrics else max((entry["step"] for entry in entries), default=0),
        steps=steps if type(steps) is int else None,
        validation_dice=max((entry["dice"] for entry in entries if "dice" in entry), default=None),
        test_dice=metrics.test.summary.mean.dice if metrics and metrics.test else None,
        teachers=tuple(teacher.run for teacher in config.objective.teachers),
        packages=tuple(packages),
    )


def _packages(root: Path) -> defaultdict[str, list[str]]:
    """The names of the packages in a run root by the run that they were made from."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "packages").glob("*/manifest.json")):
        try:
            names[str(Manifest.read(path.parent).provenance.get("run"))].append(path.parent.name)
        except SamkdError:
            continue  # `samkd verify` says what is wrong with it
    return names


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder (training.lock)."""
    path = folder / LOCK
    if not path.is_file() or path.is_symlink():
        return False
    try:
        descriptor = lock_file(path)
    except FileNotFoundError:  # its holder has just ended
        return False
    except BlockingIOError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False
