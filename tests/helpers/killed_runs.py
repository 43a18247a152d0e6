"""Small runs of teach and distill that are killed at any moment, or run out of disk, and are begun again."""

import hashlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samkd.configs.load import load_config
from samkd.distill.study import StudentOptions
from samkd.training.ranks import world_size
from samkd.training.run import Run
from samkd.volumes.files import size_of
from samkd.workflows.data import open_dataset
from samkd.workflows.distill import distill
from samkd.workflows.teach import teach

from .processes import Processes

SETTINGS = [
    *("phantom.training=4", "phantom.test=2", "validation=0.5"),
    *("teacher.plan.size=[null,32,32]", "teacher.plan.patch=[5,32,32]", "teacher.plan.overlap=0"),
    *("teacher.training.steps=8", "teacher.training.validate_every=2", "teacher.training.ema=0.9"),
    *(
        "student.name=segresnet",
        "student.plan.spacing=[16,16,16]",
        "student.plan.patch=[16,16,16]",
        "student.plan.overlap=0",
    ),
    *("student.training.steps=4", "student.training.validate_every=2", "student.training.batch=1"),
]
SECONDS_TO_END = 60.0  # for the processes that are left when one is killed


@dataclass(frozen=True)
class Work:
    """A verb, "teach" or "distill" (with its control), on so many processes."""

    verb: str
    processes: int

    def __str__(self) -> str:
        return f"{self.verb}, {self.processes} process{'es' if self.processes > 1 else ''}"


EVERY_WORK = tuple(Work(verb, processes) for verb in ("teach", "distill") for processes in (1, 2))


def do(verb: str, runs: Path, *, run: Path | None = None, settings: list[str] = SETTINGS, lambda_: float = 0.5) -> None:
    """One process of a verb, in the run root `runs`, or in the folder `run`."""
    if verb == "teach":
        teach(load_config("phantom", settings), data=None, runs=runs, run=run, devices=world_size())
        return
    distill(
        "phantom",
        [],
        lambdas=[lambda_],
        data=None,
        unlabelled=None,
        runs=runs,
        overrides=settings,
        run=run,
        control=True,
        pretrained_path=None,
        options=StudentOptions(devices=world_size()),
    )


def start(work: Work, runs: Path) -> Processes:
    return Processes(do, work.verb, runs, count=work.processes)


def result(runs: Path) -> dict[str, str]:
    """What the runs came to: of every run sha256 of its weights, the losses of its steps and its scores."""
    values = {}
    for path in sorted(runs.glob("*/config.yaml")):
        run = Run.read(path.parent)
        values[f"{path.parent.name} weights"] = hashlib.sha256(run.weights.read_bytes()).hexdigest()
        values[f"{path.parent.name} losses"] = str([entry["loss"] for entry in run.history()])
        values[f"{path.parent.name} scores"] = str(run.metrics().test)
    return values


class KilledRuns:
    """The works, each in a run root of its own, begun as often as it takes; `reference` are uninterrupted ones."""

    def __init__(self, folder: Path, works: tuple[Work, ...] = EVERY_WORK, *, seed: int = 0) -> None:
        self.folder, self.works, self.random = folder, works, random.Random(seed)
        self.bare = {"teach": folder / "bare", "distill": folder / "taught"}
        self.reference: dict[Work, dict[str, str]] = {}
        self.seconds: dict[Work, float] = {}
        self.kills: dict[Work, int] = dict.fromkeys(works, 0)
        self.finished: dict[Work, int] = dict.fromkeys(works, 0)
        self._open: dict[Work, int] = dict.fromkeys(works, 0)  # kills of the run that is not finished yet
        self._make_references()

    def kill(self, work: Work) -> str:
        """Begin or go on with a work and kill one of its processes, or all, at a random moment; what was going on.

        The processes that are left end by themselves within SECONDS_TO_END. A work that ends before the moment comes is
        compared with its reference, and begun anew.
        """
        while True:
            runs = self.root(work)
            processes = start(work, runs)
            moment = time.monotonic() + self.random.uniform(0, self.seconds[work])
            while time.monotonic() < moment and all(process.is_alive() for process in processes.started):
                time.sleep(0.01)
            if all(process.is_alive() for process in processes.started):
                break
            self._compare(work, processes)
        victims = self.random.choice([[victim] for victim in processes.started] + [processes.started])
        if not processes.have_met():  # until then it is the launcher that ends all when one is gone
            victims = processes.started
        for victim in victims:
            victim.kill()
        ended = processes.ended(within=SECONDS_TO_END)
        if all(each.exit_code == 0 for each in ended):  # the last thing it did, before the signal came
            return self.kill(work)
        assert any(each.exit_code == -signal.SIGKILL for each in ended), ended
        assert all(each.exit_code in (1, -signal.SIGKILL) for each in ended), ended
        self.kills[work] += 1
        self._open[work] += 1
        return doing(runs)

    def finish(self, work: Work) -> None:
        """Let a work that was killed end, and compare it with its reference."""
        if self._open[work]:
            self._compare(work, start(work, self.root(work)))

    def root(self, work: Work) -> Path:
        runs = self.folder / f"{work.verb}-{work.processes}"
        if not runs.exists():
            shutil.copytree(self.bare[work.verb], runs)
        return runs

    def _make_references(self) -> None:
        """The phantom and a teacher are made once; a reference begins from them, as every work does."""
        bare, taught = self.bare.values()
        open_dataset(load_config("phantom", SETTINGS), None, runs=bare)
        if any(work.verb == "distill" for work in self.works):
            shutil.copytree(bare, taught)
            assert start(Work("teach", 1), taught).ended(within=600)[0].exit_code == 0
            shutil.rmtree(taught / "cache")
        for work in self.works:
            started = time.monotonic()
            ended = start(work, self.root(work)).ended(within=600)
            assert all(each.exit_code == 0 for each in ended), ended
            self.seconds[work] = time.monotonic() - started
            self.reference[work] = result(self.root(work))
            shutil.rmtree(self.root(work))

    def _compare(self, work: Work, processes: Processes) -> None:
        ended = processes.ended(within=600)
        assert all(each.exit_code == 0 for each in ended), ended
        assert result(self.root(work)) == self.reference[work], f"{work}: another result"
        shutil.rmtree(self.root(work))
        self.finished[work] += 1
        self._open[work] = 0


def doing(runs: Path) -> str:
    """What a killed work was at: the first of its runs that is not finished."""
    for path in sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns):
        run = Run.read(path.parent)
        if run.finished:
            continue
        steps = [entry["step"] for entry in run.history()]
        if not steps:
            return "caches"
        return "scoring" if steps[-1] == run.config.training["steps"] else "training"
    return "beginning"


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of so many bytes. Raises CalledProcessError where none can be mounted."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "samkd", name], check=True, capture_output=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)


class FullDisks:
    """Works that run out of disk at any moment, and are begun again when there is more."""

    def __init__(self, runs: KilledRuns) -> None:
        self.runs = runs
        self._sizes: dict[Work, int] = {}

    def fill(self, work: Work) -> str:
        """Let a work run out of disk, and finish it on a larger one; what it was at, or "" where nothing was full.

        It ends with exit code 3 and says that a file cannot be written; every state that was there still loads.
        """
        bare = self.runs.bare[work.verb]
        least, most = size_of(bare), self._size(work)
        with small_disk(int(self.runs.random.uniform(least + 2**16, most))) as disk:
            root = disk / "runs"
            shutil.copytree(bare, root)
            ended = start(work, root).ended(within=600)
            full = any(each.exit_code for each in ended)
            if full:
                assert all(each.exit_code == 3 for each in ended), ended
                assert "cannot be written" in ended[0].value, ended
            at = doing(root) if full else ""
            enlarge(disk)
            ended = start(work, root).ended(within=600)
            assert all(each.exit_code == 0 for each in ended), ended
            assert result(root) == self.runs.reference[work], f"{work}: another result"
        return at

    def _size(self, work: Work) -> int:
        """The bytes that the whole work takes; each file needs a page at least."""
        if work not in self._sizes:
            root = self.runs.root(work)
            start(work, root).ended(within=600)
            self._sizes[work] = sum(-(-path.stat().st_size // 4096) * 4096 for path in root.rglob("*"))
            shutil.rmtree(root)
        return self._sizes[work]
