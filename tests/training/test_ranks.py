"""Processes that train together: the batch of all is one batch, and all of them stop, fail and resume together."""

import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import Processes, in_processes
from helpers.tiny_training import losses, train
from safetensors.torch import load_file

from samkd.configs.schema import Training
from samkd.errors import BadInputError, UsageError
from samkd.training import lifeline
from samkd.training.losses import segmentation_loss
from samkd.training.prepared import PreparedCase
from samkd.training.ranks import gathered, rank, share_of, total
from samkd.training.together import Layout, layout_of
from samkd.training.validation import grid_dice
from samkd.volumes.plan import Plan

pytestmark = pytest.mark.slow

STOPPED = 130


def objective(logits, batch):
    return {"loss": segmentation_loss(logits, batch["labels"])}


def plain_network():
    """Nothing in it is random, and no sample's part depends on the others."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 1))


def full_network():
    """Dropout, and statistics that each process has of its own batch."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.ReLU(), torch.nn.Dropout(0.2)]
    return torch.nn.Sequential(*layers, torch.nn.Conv3d(4, 2, 1))


EVERYTHING = Training(steps=8, validate_every=3, accumulate=2, ema=0.9)


def arrays(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def train_plain(folder: Path, settings: Training) -> dict[str, np.ndarray]:
    return arrays(train(folder, settings, objective, net=plain_network())[0])


def train_everything(folder: Path, *, at: int = -1, in_rank: int = -1, number: int = 0) -> dict[str, np.ndarray]:
    """`number` is a signal that the process of a rank gets in the batch `at`."""
    calls = iter(range(100))

    def interrupted(logits, batch):
        if next(calls) == at and rank() == in_rank:
            signal.raise_signal(number)
        return objective(logits, batch)

    return arrays(train(folder, EVERYTHING, interrupted, net=full_network())[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    one, two = in_processes(train_everything, folder)
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)
    return folder


def same_runs(one: Path, two: Path) -> bool:
    first, second = (load_file(folder / "state" / "last.safetensors") for folder in (one, two))
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return same and losses(one) == losses(two)


def test_two_processes_learn_what_one_with_twice_the_batch_learns(tmp_path):
    """The same patches, and Dice, whose sums are over the whole batch."""
    settings = Training(steps=12, validate_every=6, batch=2, learning_rate=0.02)
    alone = train_plain(tmp_path / "one", settings.model_copy(update={"batch": 4}))
    together = in_processes(train_plain, tmp_path / "two", settings)[0]
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-5)
    assert losses(tmp_path / "one")[0] > 1.1 * losses(tmp_path / "one")[-1]
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("in_rank", "number"), [(1, signal.SIGTERM), (0, signal.SIGUSR1)])
def test_a_signal_to_one_stops_both_at_the_same_step_and_they_resume_exactly(tmp_path, whole, in_rank, number):
    ended = Processes(_train_interrupted, tmp_path / "run", in_rank, number).ended()
    assert [each.exit_code for each in ended] == [STOPPED, STOPPED]
    assert "stopped at step 5" in ended[0].value and ended[1].value is None
    assert len(losses(tmp_path / "run")) == 5
    in_processes(train_everything, tmp_path / "run", launcher="slurm")
    assert same_runs(whole, tmp_path / "run")


def _train_interrupted(folder: Path, in_rank: int, number: int) -> None:
    train_everything(folder, at=9, in_rank=in_rank, number=number)


@pytest.mark.parametrize("in_rank", [0, 1])
def test_when_one_is_killed_the_other_ends_with_one_clear_error_and_they_resume_exactly(tmp_path, whole, in_rank):
    started = time.monotonic()
    ended = Processes(_train_interrupted, tmp_path / "run", in_rank, signal.SIGKILL).ended()
    assert time.monotonic() - started < 60
    other = ended[1 - in_rank]
    assert ended[in_rank].exit_code == -signal.SIGKILL and other.exit_code == 1
    assert f"process {in_rank} (pid" in other.value and "was killed" in other.value and "last state" in other.value
    in_processes(train_everything, tmp_path / "run")
    assert same_runs(whole, tmp_path / "run")


def fail_in(failing: int, folder: Path) -> None:
    lifeline.GRACE = 1.0
    if rank() == failing:
        time.sleep(0.5)
        raise BadInputError(f"{folder}: cannot be used")
    time.sleep(30)


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_is_told_once_and_all_end_with_its_code(tmp_path, failing):
    """Also where the other is busy, and waits for nobody."""
    started = time.monotonic()
    ended = Processes(fail_in, failing, tmp_path).ended()
    assert time.monotonic() - started < 20
    assert [each.exit_code for each in ended] == [3, 3]
    if failing == 0:
        assert ended[0].value == f"{tmp_path}: cannot be used" and ended[1].value is None


def case(number: int) -> PreparedCase:
    image = np.random.default_rng(number).standard_normal((1, 6, 8, 8), dtype=np.float32)
    return PreparedCase(str(number), image, (image[0] > 0.3).astype(np.uint8), (1, 1, 1), {}, -9.0)


def validate() -> dict[str, float]:
    plan = Plan.from_dict({"intensity": [{"rule": "zscore"}], "patch": [4, 8, 8]})
    names = {0: "background", 1: "liver"}
    return grid_dice(plain_network(), [case(number) for number in range(3)], plan=plan, class_names=names)


def test_validation_scores_of_two_processes_are_those_of_one():
    assert in_processes(validate) == [validate()] * 2


def exchange() -> tuple:
    values = torch.tensor([float(rank() + 1)], requires_grad=True)
    (total(values) ** 2).sum().backward()
    return gathered(rank()), list(share_of("abcde")), float(values.grad or 0.0)


def test_what_processes_exchange():
    """Every case is one process's, and the gradient of a loss of sums is that of all processes' losses."""
    assert in_processes(exchange, count=3, launcher="slurm") == [
        ([0, 1, 2], ["a", "d"], 36.0),
        ([0, 1, 2], ["b", "e"], 36.0),
        ([0, 1, 2], ["c"], 36.0),
    ]
    assert share_of([1, 2]) == [1, 2] and gathered("x") == ["x"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}
MACHINES = {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "layout", "expected"),
    [
        ({}, Layout(3), Layout(3)),
        (TORCHRUN, Layout(), Layout(4, 2)),
        (TORCHRUN, Layout(4, 2), Layout(4, 2)),
        (SLURM, Layout(), Layout(4, 2)),
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, Layout(), Layout()),
        ({"SLURM_NTASKS": "1"}, Layout(2), Layout(2)),
        (MACHINES, Layout(8, 2), Layout(8, 2)),
    ],
)
def test_the_layout_is_the_launchers_or_the_users(environment, layout, expected):
    assert layout_of(environment, layout) == expected


@pytest.mark.parametrize(
    ("environment", "layout", "message"),
    [
        (TORCHRUN, Layout(2), "the launcher started --devices 4 --nodes 2"),
        ({**TORCHRUN, "WORLD_SIZE": "7"}, Layout(), "the same --nproc-per-node"),
        ({"SLURM_NTASKS": "8"}, Layout(8), "put srun before"),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, Layout(), "--ntasks-per-node"),
        ({}, Layout(8, 2), "lacks MASTER_ADDR and NODE_RANK"),
        ({**MACHINES, "NODE_RANK": "2"}, Layout(8, 2), "expected a number of 0 to 1"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(environment, layout, message):
    with pytest.raises(UsageError, match=message):
        layout_of(environment, layout)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n", b"[1]\n", b"\xff\n", b"", b'{"token"'])
def test_a_stranger_who_connects_is_nobody(words):
    here, there = socket.socketpair()
    with here, there:
        there.sendall(words)
        there.shutdown(socket.SHUT_WR)
        assert lifeline._hello(here) == {}


def test_of_several_last_words_the_first_count():
    """A process that hears of another's end as it ends itself says both, and they may come together."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b'{"end": {"error": "stopped", "code": 130}}\n{"end": {"error": "lost", "code": 1}}\n')
        there.shutdown(socket.SHUT_WR)
        assert lifeline._last_words(here) == {"error": "stopped", "code": 130}
