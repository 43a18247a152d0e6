"""Several processes train as one: started by this process, by torchrun or by SLURM, on one machine or on several.

The engine is Lightning's Fabric over torch.distributed. Here is what comes before it and after: who starts whom, that
all of them end when one does, and that the first alone prints.
"""

import atexit
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import distributed

from ..errors import SamkdError, UsageError, translated
from .lifeline import Lifeline, ProcessLostError
from .progress import console
from .ranks import barrier, is_main
from .sharding import shard

Strategy = Literal["ddp", "fsdp"]

PORT = "29500"  # of the first machine, where MASTER_PORT names none: as torchrun has it

_PARENT = "SAMKD_STARTED_BY"  # the process that started this one, by its id


@dataclass(frozen=True)
class Layout:
    """So many `devices` on each of so many machines, the `nodes`; a process for each device.

    With the `strategy` "ddp" each holds the whole network, with "fsdp" its share of weights, gradients and moments.
    """

    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"

    @property
    def world_size(self) -> int:
        return self.devices * self.nodes

    def __str__(self) -> str:
        return f"--devices {self.devices} --nodes {self.nodes}"


_layout: Layout | None = None  # of the group that this process is in
_met = threading.Event()  # all processes know each other
_block = 0  # how many `together` blocks are open


@contextmanager
def together(layout: Layout) -> Iterator[int]:
    """Inside the block the processes of the layout work as one; it gives their number.

    torchrun and srun start them all, and say how many there are: a layout of 1 then means theirs. Else this process
    starts the others of its machine, by its own command line. A block in a block changes nothing. When one process
    ends, all do: the first says why, and leaves with the code of the error.
    Raises UsageError for a layout that is not the launcher's and for several machines that do not say where the first
    one is, ProcessLostError when another process is gone.
    """
    global _block
    layout = layout_of(os.environ, layout)
    if layout.strategy == "fsdp" and layout.world_size == 1:
        raise UsageError("--strategy fsdp divides a network among devices, and there is one; give --devices 2 or more")
    if layout.world_size == 1 or _block:
        if _block and _layout and layout.world_size not in (1, _layout.world_size):
            raise UsageError(f"{layout}: the processes that train together are {_layout.world_size} already")
        yield _layout.world_size if _layout else 1
        return
    _join(layout)
    with translated(layout, "the processes did not meet", SamkdError):
        lifeline = Lifeline(os.environ["MASTER_ADDR"])
    _met.set()
    _block += 1
    try:
        yield layout.world_size
        barrier()
    except BaseException as error:
        raise _end(lifeline, error) from error.__cause__
    else:
        lifeline.end({})
    finally:
        _block -= 1


def fabric_for(precision: str) -> Fabric:
    """Fabric on this process's accelerator, in the group that it is in, by the group's strategy."""
    layout = _layout or Layout()
    if layout.world_size == 1:
        return Fabric(accelerator="auto", devices=1, precision=precision)  # type: ignore[arg-type]
    with translated(layout, "cannot be had here", UsageError):
        return Fabric(
            accelerator="auto",
            devices=layout.devices,
            num_nodes=layout.nodes,
            strategy=_strategy(layout),
            precision=precision,  # type: ignore[arg-type]
            plugins=[_environment(os.environ)],
        )


def strategy() -> Strategy:
    """How the network lies on the devices that train together."""
    return (_layout or Layout()).strategy


def _strategy(layout: Layout) -> DDPStrategy | ModelParallelStrategy:
    if layout.strategy == "ddp":
        return DDPStrategy(find_unused_parameters=True)
    return ModelParallelStrategy(shard, data_parallel_size=layout.world_size, tensor_parallel_size=1)


def layout_of(environment: Mapping[str, str], layout: Layout) -> Layout:
    """The layout that a launcher's environment variables say, else the one that was asked for.

    Raises UsageError where both say something else, and for what neither can be.
    """
    theirs = _launchers(environment)
    if theirs is None:
        if layout.nodes > 1:
            _check_address(environment, layout)
        return layout
    theirs = replace(theirs, strategy=layout.strategy)
    if layout.world_size != 1 and layout != theirs:
        raise UsageError(f"{layout}: the launcher started {theirs}; give the same, or leave both options out")
    return theirs


def _launchers(environment: Mapping[str, str]) -> Layout | None:
    """What torchrun or srun started; None without them."""
    if "TORCHELASTIC_RUN_ID" in environment:
        world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        if world % local:
            raise UsageError("torchrun: every machine must have the same --nproc-per-node")
        return Layout(local, world // local)
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks == 1 or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_STEP_ID" not in environment:
        raise UsageError(f"this SLURM job has {tasks} tasks, and one was started: put srun before the command")
    nodes = int(environment.get("SLURM_NNODES", "1"))
    if "SLURM_NTASKS_PER_NODE" not in environment or int(environment["SLURM_NTASKS_PER_NODE"]) * nodes != tasks:
        raise UsageError("SLURM: say --ntasks-per-node, one for each GPU, in place of --ntasks")
    return Layout(tasks // nodes, nodes)


def _check_address(environment: Mapping[str, str], layout: Layout) -> None:
    if missing := [name for name in ("MASTER_ADDR", "NODE_RANK") if name not in environment]:
        raise UsageError(
            f"--nodes {layout.nodes}: the environment lacks {' and '.join(missing)}; on every machine set MASTER_ADDR "
            f"to the address of the first, NODE_RANK to its own number (0 is the first), and MASTER_PORT if {PORT} is "
            "in use"
        )
    number = environment["NODE_RANK"]
    if not number.isdigit() or int(number) >= layout.nodes:
        raise UsageError(f"NODE_RANK is {number!r}; expected a number of 0 to {layout.nodes - 1}")


def _environment(environment: Mapping[str, str]) -> ClusterEnvironment:
    if "TORCHELASTIC_RUN_ID" in environment:
        return TorchElasticEnvironment()
    return LightningEnvironment() if _launchers(environment) is None else SLURMEnvironment(auto_requeue=False)


def _join(layout: Layout) -> None:
    """Start the others, where nobody else does, and wait for all of them. The first alone prints from here on."""
    global _layout
    if isinstance(_environment(os.environ), LightningEnvironment):
        _start_others(layout)
    _layout = layout
    fabric = fabric_for("32-true")
    if not distributed.is_initialized():
        if _is_first():
            console.print(f"waiting for all {layout.world_size} processes", highlight=False)
        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with translated(layout, "the processes did not meet", SamkdError):
            fabric.launch()
        atexit.register(distributed.destroy_process_group)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if not is_main():
        console.quiet = True
        warnings.simplefilter("ignore")


def _is_first() -> bool:
    """Before the processes know each other."""
    environment = _environment(os.environ)
    return environment.local_rank() == 0 and environment.node_rank() == 0


def _start_others(layout: Layout) -> None:
    """The other processes of this machine, by this one's own command; nothing in one of those, and when it is done."""
    if "LOCAL_RANK" in os.environ:
        if parent := os.environ.get(_PARENT):
            _end_unless_met(lambda: os.getppid() != int(parent))
        return
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(layout.world_size)}
    os.environ.setdefault("NODE_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", PORT if layout.nodes > 1 else _free_port())
    specification = sys.modules["__main__"].__spec__
    program = ["-m", specification.name] if specification else [str(Path(sys.argv[0]).absolute())]
    for number in range(1, layout.devices):
        environment = os.environ | {"LOCAL_RANK": str(number), _PARENT: str(os.getpid())}
        process = subprocess.Popen([sys.executable, *program, *sys.argv[1:]], env=environment)
        atexit.register(_ended, process)
        _end_unless_met(lambda process=process: process.poll() is not None)


def _end_unless_met(gone: Callable[[], bool]) -> None:
    """End when one of this machine is gone before all processes know each other, which would be waited for."""

    def watch() -> None:
        while not _met.wait(0.5):
            if gone():
                sys.stderr.write("error: one of the processes that were to train together ended before all had met\n")
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was started here; it ends by itself when this one does."""
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _end(lifeline: Lifeline, error: BaseException) -> BaseException:
    """What this process ends with after `error`: the others hear of it, and one of all prints."""
    if isinstance(error, SamkdError):
        lifeline.end({"error": str(error), "code": error.exit_code})
        return error if is_main() else SystemExit(error.exit_code)
    loss = lifeline.loss(within=5.0 if isinstance(error, Exception) else 0.0)
    if loss is None:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        lifeline.end({"error": f"{type(error).__name__}: {error}", "code": code})
        return error
    lifeline.end({"error": loss.message, "code": loss.exit_code})
    return SystemExit(loss.exit_code) if loss.told else ProcessLostError(loss.message, loss.exit_code)
