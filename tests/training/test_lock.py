"""A run is trained by one process, or by one group of them: whoever comes second is refused and changes nothing."""

import os
import signal
import time
from pathlib import Path

import pytest
from helpers.killed_runs import SETTINGS, do
from helpers.processes import Processes
from helpers.run_configs import run_config

from samkd.configs.load import load_config
from samkd.distill.train import control_job
from samkd.errors import BadInputError
from samkd.teachers.train import teaching_job
from samkd.training.lock import LOCK, locked_folder, one_at_a_time
from samkd.training.ranks import barrier, main_first, rank
from samkd.training.run import Run
from samkd.workflows.data import open_dataset

pytestmark = pytest.mark.slow

SMALL = [*SETTINGS, "phantom.training=3", "phantom.test=1"]
VERBS = ("teach", "distill")


def begin(verb: str, runs: Path, folder: Path) -> None:
    do(verb, runs, run=folder, settings=SMALL, lambda_=1.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run root in which each verb has a run that stopped on its way; its state cannot be read."""
    root = tmp_path_factory.mktemp("runs")
    config = load_config("phantom", SMALL)
    dataset = open_dataset(config, None, runs=root)
    jobs = {
        "teach": teaching_job(config, dataset, pretrained=None, init_run=None, devices=1),
        "distill": control_job(config, dataset, pretrained=None, devices=1),
    }
    for verb, job in jobs.items():
        run = Run.create(root / verb, job.run_config())
        run.log({"step": 7, "loss": 0.5})
        run.state.write_bytes(b"half a state")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_goes_on_elsewhere_is_refused_to_one_process_and_to_two(runs, verb):
    folder, before = runs / verb, contents(runs / verb)
    with locked_folder(folder):
        expected = f"is being trained by process {os.getpid()} on"
        with pytest.raises(BadInputError, match=expected):
            begin(verb, runs, folder)
        ended = Processes(begin, verb, runs, folder).ended(within=120)
    assert [each.exit_code for each in ended] == [3, 3]
    assert expected in ended[0].value and ended[1].value is None
    assert contents(folder) == before


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.005)


def race(folder: Path, mine: str, other: str) -> None:
    """Begin a run at the moment at which another process does, and train until the other was refused."""

    @one_at_a_time
    def train(*, run: Run) -> Run:
        wait_for(folder / f"{other} refused")
        return run

    (folder / f"{mine} ready").touch()
    wait_for(folder / f"{other} ready")
    run = Run.create(folder / "run", run_config())
    try:
        train(run=run)
    except BadInputError:
        (folder / f"{mine} refused").touch()
        raise


def test_of_two_starts_at_the_same_moment_one_trains(tmp_path):
    both = [Processes(race, tmp_path, mine, other, count=1) for mine, other in (("a", "b"), ("b", "a"))]
    ended = [processes.ended()[0] for processes in both]
    assert sorted(each.exit_code for each in ended) == [0, 3]
    assert any("is being trained by process" in str(each.value) for each in ended)


def die(folder: Path, victim: int) -> None:
    @one_at_a_time
    def train(*, run: Run) -> Run:
        barrier()  # the first holds the lock
        if rank() == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        barrier()
        return run

    with main_first():
        run = Run.create(folder, run_config())
    train(run=run)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_lock_of_two_processes_is_free_when_one_was_killed(tmp_path, victim):
    ended = Processes(die, tmp_path / "run", victim).ended()
    assert ended[victim].exit_code == -signal.SIGKILL and ended[1 - victim].exit_code == 1
    with locked_folder(tmp_path / "run"):
        pass
