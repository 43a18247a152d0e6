"""Several processes that train together, as torchrun or SLURM starts them, without the seconds of an import each."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from samkd.errors import SamkdError
from samkd.training.together import Layout, Strategy, together

_PRELOADED = ["samkd.workflows.teach", "samkd.workflows.distill", "helpers.tiny_training"]


@dataclass(frozen=True)
class Ended:
    """How a process ended: what the function returned, or the error's exit code and words; None where it was killed."""

    exit_code: int
    value: Any


class Processes:
    """`function(*arguments)` in each of so many processes, which are together."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        count: int = 2,
        launcher: str = "torchrun",
        strategy: Strategy = "ddp",
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        port = _free_port()
        self._pipes, self._met, self.started = [], [], []
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for what is loaded beforehand
        try:
            for rank in range(count):
                mine, theirs = context.Pipe()
                variables = _variables(launcher, rank, count, port)
                met = context.Event()
                process = context.Process(target=_work, args=(theirs, met, variables, strategy, function, arguments))
                self._met.append(met)
                process.start()
                theirs.close()
                self._pipes.append(mine)
                self.started.append(process)
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before

    def have_met(self) -> bool:
        """Whether every process knows the others by now."""
        return all(met.is_set() for met in self._met)

    def ended(self, *, within: float = 60.0) -> list[Ended]:
        """All of them, by rank; those that do not end in so many seconds each are killed, which is a failure."""
        results = []
        for process, pipe in zip(self.started, self._pipes, strict=True):
            process.join(within)
            late = process.is_alive()
            for other in self.started if late else []:
                other.kill()
            assert not late, f"process {process.pid} was alive after {within} seconds"
            results.append(Ended(int(process.exitcode or 0), _received(pipe)))
        return results


def in_processes(
    function: Callable[..., Any],
    *arguments: Any,
    count: int = 2,
    launcher: str = "torchrun",
    strategy: Strategy = "ddp",
) -> list[Any]:
    """What the function returns in each of the processes."""
    ended = Processes(function, *arguments, count=count, launcher=launcher, strategy=strategy).ended()
    assert [each.exit_code for each in ended] == [0] * count, ended
    return [each.value for each in ended]


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:  # it ended without a word
        return None


def _work(
    pipe: Connection,
    met: Any,
    variables: dict[str, str],
    strategy: Strategy,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= variables
    torch.set_num_threads(1)
    try:
        with together(Layout(strategy=strategy)):
            met.set()
            value = function(*arguments)
    except SamkdError as error:
        pipe.send(str(error))
        raise SystemExit(error.exit_code) from None
    pipe.send(value)


def _variables(launcher: str, rank: int, count: int, port: int) -> dict[str, str]:
    """The environment that a launcher gives a process, on one machine."""
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if launcher == "torchrun":
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
        return both | {"TORCHELASTIC_RUN_ID": "test"} | {name: str(value) for name, value in ranks.items()}
    slurm = {"NTASKS": count, "NTASKS_PER_NODE": count, "NNODES": 1, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    slurm |= {"JOB_ID": 12345, "STEP_ID": 0, "JOB_NAME": "samkd", "NODELIST": "localhost"}
    return both | {f"SLURM_{name}": str(value) for name, value in slurm.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
