"""The run folder: what teach and distill leave, and what every later stage reads."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from ..configs.yaml_files import read_yaml
from ..errors import BadInputError, OutputError
from ..volumes.files import atomic_path, is_leftover, make_folder, regular_file
from ..volumes.intensity_profile import is_profile
from ..volumes.json_files import parse_json, read_json
from ..volumes.plan import Plan
from .metrics import RunMetrics
from .run_config import RunConfig

INTENSITIES = "intensities.json"
LOCK = ".training.lock"  # while somebody trains there
CACHE = "cache"  # in the run root: preprocessed cases and soft targets, which all of its runs share


@dataclass(frozen=True)
class Run:
    """``config.yaml``, ``weights.safetensors`` (best on validation), ``state/``, ``log.jsonl``, ``metrics.json``."""

    path: Path
    config: RunConfig

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> "Run":
        """Start a run, or continue the one that lies there with the same configuration.

        Raises BadInputError when the folder belongs to another config or holds something else.
        """
        _refuse_links(path)
        if (path / "config.yaml").exists():
            earlier = cls.read(path)
            if earlier.config.digest() != config.digest():
                changed = _differences(earlier.config.hashed(), config.hashed())
                raise BadInputError(
                    f"{path}: this run folder is from another config (different: {', '.join(changed)}); "
                    f"give another --run folder or the config it was started with"
                )
            make_folder(earlier.state.parent)
            return earlier
        if path.exists() and not all(_own_leftover(entry) for entry in path.iterdir()):
            if (path / "config.yaml").exists():  # another process has just begun it
                return cls.create(path, config)
            raise BadInputError(f"{path}: not a run folder and not empty; give a new --run folder")
        run = cls(make_folder(path), config)
        run.write_text("config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))
        make_folder(run.state.parent)
        return run

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run folder. Raises BadInputError when it is none."""
        try:
            values = read_yaml(path / "config.yaml")
        except BadInputError as error:
            raise BadInputError(f"{path}: not a run folder ({error}); give one made by samkd") from None
        try:
            return cls(path, RunConfig.from_dict(values))
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from None

    @property
    def plan(self) -> Plan:
        return self.config.plan

    @property
    def class_names(self) -> dict[int, str]:
        return self.config.class_names

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "state" / "last.safetensors"

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").exists() and self.weights.exists()

    @property
    def stage(self) -> str:
        return self.config.stage

    def metrics(self) -> RunMetrics:
        """The content of metrics.json. Raises BadInputError."""
        path = self.path / "metrics.json"
        try:
            return RunMetrics.from_json(read_json(path))
        except BadInputError as error:
            fault = str(error)
        except (KeyError, TypeError, AttributeError) as error:
            fault = f"holds no scores ({type(error).__name__} {error})."
        raise BadInputError(f"{path}: {fault} Remove it, and the same command scores anew.")

    def intensities(self) -> list[dict[str, Any]]:
        """What the training data look like (volumes.intensity_profile); empty for a run of an earlier release.

        Raises BadInputError for a file that holds anything else.
        """
        path = self.path / INTENSITIES
        if not path.exists():
            return []
        if not is_profile(profile := read_json(path)):
            raise BadInputError(
                f"{path}: holds no percentiles of intensities; remove it, and scans are not compared with the training "
                "data"
            )
        return profile

    def write_json(self, name: str, values: Any) -> None:
        self.write_text(name, json.dumps(values, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        path = self.path / name
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to log.jsonl. Raises OutputError, also where that is a link."""
        path = self.path / "log.jsonl"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
            with os.fdopen(descriptor, "ab+") as stream:
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    torn = stream.read(1) != b"\n"  # what a power cut leaves is ended first
                    stream.write(b"\n" * torn)
                stream.write(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error

    def history(self) -> Iterator[dict[str, Any]]:
        """Entries of log.jsonl; lines that are none, such as one cut short by a kill, are left out."""
        path = self.path / "log.jsonl"
        if not path.exists():
            return
        for line in regular_file(path).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = parse_json(line)
            except (ValueError, RecursionError):
                continue
            if _is_entry(entry):
                yield entry

    def forget_after(self, step: int) -> None:
        """Drop log entries later than the state that training continues from, 0 where there is none."""
        if not (self.path / "log.jsonl").exists():
            return
        kept = [json.dumps(entry) + "\n" for entry in self.history() if entry["step"] <= step]
        self.write_text("log.jsonl", "".join(kept))


def _own_leftover(entry: Path) -> bool:
    """Whether `entry` is what a run leaves that ended before its config.yaml was there."""
    return is_leftover(entry) or (entry.name == "state" and entry.is_dir() and not any(entry.iterdir()))


def _is_entry(entry: Any) -> bool:
    """Whether a line of log.jsonl is what the loop writes: a step, and numbers where the report's curves need some."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return False
    return all(type(entry.get(key, 0.0)) in (int, float) for key in ("loss", "dice", "learning_rate", "seconds"))


def _refuse_links(folder: Path) -> None:
    """Raises BadInputError for a link, a pipe or a device where a run writes in place."""
    for name in ("state", "log.jsonl", LOCK):
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
            raise BadInputError(f"{path}: is a link, a pipe or a device, and a run writes there; remove it")


def finished_runs(root: Path, stage: str, *, config: str | None = None) -> list[Run]:
    """The finished runs of a stage (and config) in a run root, the one that ended last at the end."""
    runs = [Run.read(path.parent) for path in root.glob("*/config.yaml")]
    wanted = [
        run for run in runs if run.stage == stage and run.finished and config in (None, run.config.user_config["name"])
    ]
    return sorted(wanted, key=lambda run: (run.path / "metrics.json").stat().st_mtime_ns)


def newest_run(root: Path, stage: str, *, config: str | None = None) -> Run:
    """The last of finished_runs. Raises BadInputError when there is none."""
    finished = finished_runs(root, stage, config=config)
    if not finished:
        of = f" of config {config!r}" if config else ""
        raise BadInputError(f"{root}: no finished {stage} run{of} here; run that stage first or name a run")
    return finished[-1]


def control_of(student: Run, root: Path) -> Run | None:
    """The finished lambda = 1 run with the student's network, plan, cases, seed, budget and start, if there is one."""
    decisive = attrgetter("network", "plan", "cases", "seed", "training", "class_names", "objective.pretrained")
    for run in finished_runs(root, "control"):
        if decisive(run.config) == decisive(student.config):
            return run
    return None


def sweep_of(student: Run, root: Path) -> dict[float, Run]:
    """The finished runs that differ from a distilled student in lambda alone, and itself, by lambda, ascending."""
    config = student.config
    runs = {
        run.config.objective.lambda_: run
        for run in finished_runs(root, student.stage)
        if _at_lambda(run.config, config.objective.lambda_).digest() == config.digest()
    }
    return dict(sorted(runs.items()))


def _at_lambda(config: RunConfig, lambda_: float) -> RunConfig:
    return replace(config, objective=replace(config.objective, lambda_=lambda_))


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    names = []
    for key in sorted(old.keys() | new.keys(), key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
