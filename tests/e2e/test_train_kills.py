"""A short version of benchmarks/train_kills.py: kill -9 and a full disk, at random moments of real runs."""

import subprocess

import pytest
from helpers.killed_runs import FullDisks, KilledRuns, Work, small_disk

pytestmark = pytest.mark.slow
TEACH = Work("teach", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> KilledRuns:
    return KilledRuns(tmp_path_factory.mktemp("kills"), (TEACH,), seed=1)


def test_two_processes_that_are_killed_twice_end_with_the_weights_of_those_that_were_not(runs):
    for _ in range(2):
        runs.kill(TEACH)
    runs.finish(TEACH)
    assert runs.kills[TEACH] == 2 and runs.finished[TEACH] >= 1


def test_a_full_disk_ends_training_with_a_reason_and_the_last_good_state_goes_on(runs):
    try:
        with small_disk(2**20):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    assert any(FullDisks(runs).fill(TEACH) for _ in range(3))
