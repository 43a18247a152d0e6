"""Gradients that many threads compute on a busy machine, and runs that are killed there and continued."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.tiny_training import cross_entropy, network, train
from safetensors.torch import load_file

from samkd.configs.schema import Training
from samkd.students.swinunetr.window_attention import FastWindowAttention
from samkd.training.determinism import deterministic

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
THREADS = 2


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@contextmanager
def busy_threads() -> Iterator[None]:
    """PyTorch computes on two threads, and two other processes want the cores."""
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(THREADS)]
    try:
        with threads(THREADS):
            yield
    finally:
        for process in load:
            process.kill()
            process.wait()


INDEX = torch.randint(0, 2197, (60_000,), generator=torch.Generator().manual_seed(0))
LOOKUPS = {
    "table[index]": lambda table: table[INDEX],
    "index_select": lambda table: table.index_select(0, INDEX),
    "gather": lambda table: table.gather(0, INDEX[:, None].expand(-1, table.shape[1])),
    "embedding": lambda table: torch.nn.functional.embedding(INDEX, table),
    "two axes": lambda table: table[INDEX, INDEX % table.shape[1]],
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_lookups_gradient_is_the_same_a_hundred_times_and_that_of_one_thread(name):
    table = torch.randn(2197, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.randn(LOOKUPS[name](table).shape, generator=torch.Generator().manual_seed(2))

    def gradient() -> torch.Tensor:
        return torch.autograd.grad((LOOKUPS[name](table) * weight).sum(), table)[0]

    with threads(1):
        alone = gradient()
    with deterministic(CPU):
        with threads(1):
            assert torch.equal(gradient(), alone)
        with busy_threads():
            gradients = [gradient() for _ in range(100)]
    assert all(torch.equal(one, gradients[0]) for one in gradients)
    torch.testing.assert_close(gradients[0], alone)


def test_a_swin_attentions_gradients_are_the_same_every_time():
    torch.manual_seed(0)
    attention = FastWindowAttention(12, num_heads=3, window_size=(7, 7, 7), qkv_bias=True)
    windows = torch.randn(2, 343, 12)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(attention(windows, None).square().mean(), list(attention.parameters())))

    with busy_threads(), deterministic(CPU):
        first = gradients()
        for _ in range(20):
            assert all(torch.equal(one, two) for one, two in zip(first, gradients(), strict=True))


def test_the_setting_ends_with_the_block_and_is_only_for_the_cpu():
    with pytest.raises(KeyError), deterministic(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cuda")):
        assert not torch.are_deterministic_algorithms_enabled()


class WithTable(torch.nn.Module):
    """The network of the loop's tests, with an indexed table that is added to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.table = torch.nn.Parameter(torch.zeros(2197))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image) + (self.table[INDEX] * (INDEX % 7)).sum() / 1000


def train_table(folder: Path, pause: float = 0.0) -> None:
    def objective(logits, batch):
        time.sleep(pause)
        return {"loss": cross_entropy(logits, batch)["loss"] + logits.square().mean()}

    settings = Training(steps=15, validate_every=3, learning_rate=0.05)
    train(folder, settings, objective, net=WithTable())


def test_a_run_killed_on_two_threads_ends_with_the_same_weights(tmp_path):
    """kill -9, twice, while two other processes want the cores."""
    program = f"""
        import importlib.util, pathlib, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import torch
        torch.set_num_threads({THREADS})
        spec = importlib.util.spec_from_file_location("determinism_test", {__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.train_table(pathlib.Path({str(tmp_path / "torn")!r}), pause=0.1)
    """
    log = tmp_path / "torn" / "log.jsonl"
    with busy_threads():
        train_table(tmp_path / "whole")
        for steps in (4, 9):
            child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not (log.exists() and len(log.read_bytes().splitlines()) >= steps):
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert len(log.read_bytes().splitlines()) < 15
        train_table(tmp_path / "torn")
    for name in ("weights.safetensors", "state/last.safetensors"):
        one, two = (load_file(tmp_path / folder / name) for folder in ("whole", "torn"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
