"""The one training loop, for teachers and students alike, on Lightning Fabric (1..N devices)."""

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from ..configs.schema import Training
from ..errors import BadInputError, SamkdError
from .average import WeightAverage
from .checkpoint import load_state, save_state, save_weights
from .compiled import compile_faults, compiled
from .counters import Counters
from .determinism import deterministic
from .interrupt import Interrupt, Stopped
from .live_figures import LiveFigures
from .memory_planner import MemoryPlanner
from .micro_batches import statistics_restored_on_error
from .patches import PatchBatches
from .peak_memory import is_out_of_memory
from .progress import Bar, console
from .ranks import barrier, gathered, spread_buffers
from .run import Run
from .scalars import Scalars
from .schedule import learning_rate, optimizer_of, steps_per_epoch
from .sharding import gathered_weights, whole, with_everybodys_parameters
from .step import TrainingStep

MAX_SKIPPED = 20  # steps in a row that are not finite, and in all as many or
MAX_SKIPPED_SHARE = 0.05  # of the run's steps


@dataclass(frozen=True)
class TrainingResult:
    """How a run went: steps made, the best validation Dice and its step, steps skipped, seconds in all restarts.

    Without validation there is no Dice, and the step is the last.
    """

    steps: int
    best_dice: float | None
    best_step: int
    skipped: int
    seconds: float


def fit(
    network: torch.nn.Module,
    step: TrainingStep,
    *,
    batches: PatchBatches,
    validate: Callable[[torch.nn.Module], dict[str, float]] | None,
    settings: Training,
    run: Run,
    fabric: Fabric,
    title: str,
    memory: MemoryPlanner | None = None,
) -> TrainingResult:
    """Train, validating every ``validate_every`` steps, and keep the weights of the best validation Dice.

    Without ``validate`` the last weights are kept.
    ``patience`` validations without a better one end the run early; with ``ema`` the averaged weights are validated
    and kept. On a CPU the run can be resumed exactly from its last state: batches, dropout and learning rate depend on
    the step alone, and as many threads compute the same gradients. Ctrl-C, SIGTERM and SIGUSR1 (which SLURM sends
    before it takes a machine away) to any of the devices' processes finish the step, write the state and raise Stopped
    in all of them. A step whose loss or gradient is not finite is skipped and counted; too many of them raise
    SamkdError. With ``memory``, which has a plan, a step for which memory is too small is repeated with a smaller plan;
    without, it raises BadInputError.
    """
    loop = _Loop(network, step, batches=batches, settings=settings, run=run, fabric=fabric, memory=memory)
    counters = loop.counters
    bar = Bar(title, settings.steps, done=counters.step, enabled=loop.writes)
    with deterministic(fabric.device), Interrupt() as interrupt, closing(loop), bar:
        for number in range(counters.step, settings.steps):
            if settings.patience and counters.stale >= settings.patience:
                break
            entry = loop.train_step(number)
            loop.figures.end_step(entry["loss"])
            due = (number + 1) % settings.validate_every == 0 or number + 1 == settings.steps
            if due:
                entry |= loop.keep_last(number) if validate is None else loop.validate_and_keep_best(number, validate)
            loop.log(entry)
            dice = f"  Dice {counters.best_dice:.3f}" if counters.best_dice >= 0 else ""
            bar.advance(f"{loop.epoch(number)}  loss {entry['loss']:.4f}{dice}", below=loop.figures.text)
            stop = any(gathered(interrupt.requested)) and number + 1 < settings.steps
            if due or stop:
                loop.save_state()
            if stop:
                barrier()  # the state is written before any process ends
                raise Stopped(f"{run.path}: stopped at step {number + 1}; the same command continues from there")
    if loop.writes and not console.is_terminal:
        kept = "the last weights kept" if validate is None else f"validation Dice {counters.best_dice:.3f}"
        console.print(f"{title}: {counters.step} steps, {kept}")
    return TrainingResult(
        steps=counters.step,
        best_dice=None if validate is None else counters.best_dice,
        best_step=counters.best_step,
        skipped=counters.skipped,
        seconds=loop.seconds(),
    )


class _Loop:
    """The parts of a run between two steps: network, optimiser, counters, batches; each method is a part of a step."""

    def __init__(
        self,
        network: torch.nn.Module,
        step: TrainingStep,
        *,
        batches: PatchBatches,
        settings: Training,
        run: Run,
        fabric: Fabric,
        memory: MemoryPlanner | None,
    ) -> None:
        self.network = network
        self.memory = memory
        self.step = step
        self.settings = settings
        self.run = run
        self.fabric = fabric
        self.writes = fabric.is_global_zero
        self.learning = network
        if step.helper is not None:
            self.learning = torch.nn.ModuleList([network, step.helper.to(fabric.device)])
        module = memory.module if memory else compiled(network) if settings.compile else network
        self.model = fabric.setup_module(module)  # which may divide its parameters, before anybody holds them
        self.own_optimizer = optimizer_of(self.learning.parameters(), settings)
        self.optimizer: Any = fabric.setup_optimizers(self.own_optimizer)
        self.average = WeightAverage(network, settings.ema) if settings.ema else None
        self.counters = self._resume()
        self._check_the_others()
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.counters.step * settings.accumulate, settings.steps * settings.accumulate),
            num_workers=0 if fabric.device.type == "cpu" else 4,
        )
        self.batches = iter(loader)
        self.step_batches: list[dict[str, torch.Tensor]] = []  # of the step that is made, on the CPU
        self.figures = LiveFigures(fabric.device, devices=fabric.world_size)
        self.epoch_steps = steps_per_epoch(settings, cases=len(batches.cases), devices=fabric.world_size)
        self.started = time.monotonic() - self.counters.seconds
        self.scalars = Scalars(run) if self.writes else None

    def _resume(self) -> Counters:
        """The counters of the last state, which is loaded; those of a beginning where there is none."""
        if not self.run.state.exists():
            if self.writes:
                self.run.forget_after(0)
            return Counters()
        average = self.average.values if self.average else None
        values = load_state(self.run.state, network=self.learning, optimizer=self.own_optimizer, average=average)
        counters = Counters.read(values, steps=self.settings.steps, path=self.run.state)
        if self.writes:
            self.run.forget_after(counters.step)
        return counters

    def _check_the_others(self) -> None:
        """Raises BadInputError where the devices' processes go on from different states."""
        steps = gathered(self.counters.step)
        if len(set(steps)) > 1:
            raise BadInputError(
                f"{self.run.path}: the processes that train together find states of the steps {steps} in it; let this "
                "folder lie on a file system that all their machines share"
            )

    def train_step(self, number: int) -> dict[str, Any]:
        """Forward, backward and update on the batches of a step; returns its entry of the log."""
        self.figures.start_step()
        rate = learning_rate(number, self.settings)
        for group in self.own_optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        terms = self._gradients(number)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None
        if math.isfinite(terms["loss"]) and math.isfinite(float(whole(norm))):
            self.optimizer.step()
            spread_buffers(self.network)
            self.counters.failures = 0
            if self.average:
                self.average.update(number)
        else:
            self._count_failure()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_batches.clear()
        self.counters.step = number + 1
        return {"step": number + 1, "learning_rate": rate, **terms}

    def _gradients(self, number: int) -> dict[str, float]:
        """Gradients of a step, with smaller and smaller memory plans until memory is enough; returns its loss terms."""
        seed = self.run.config.seed * 1_000_003 + number * self.fabric.world_size + self.fabric.global_rank
        while True:
            torch.manual_seed(seed)
            try:
                with (
                    statistics_restored_on_error(self.network) if self.memory else nullcontext(),
                    compile_faults() if self.settings.compile else nullcontext(),
                ):
                    return self._accumulate_gradients(number)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fault = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self.optimizer.zero_grad(set_to_none=True)  # outside of the block, whose error holds the step's tensors
            if self.memory is None:
                raise BadInputError(
                    f"{self.run.path}: memory was too small for step {number + 1} ({fault}); give --vram auto, which "
                    "puts a batch through in parts, or lower the config's batch or patch"
                )
            self.memory.take_smaller(fault)

    def _accumulate_gradients(self, number: int) -> dict[str, float]:
        """Gradients of the step's batches; returns the mean of every loss term over them and over all devices."""
        count, sums = self.settings.accumulate, {}
        for batch_number in range(number * count, (number + 1) * count):
            if len(self.step_batches) == batch_number - number * count:
                self.step_batches.append(self.figures.awaited(self.batches))
            on_host = self.step_batches[batch_number - number * count]
            batch = {name: tensor.to(self.fabric.device) for name, tensor in on_host.items()}
            last = batch_number == (number + 1) * count - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                terms = self.step(self.model, batch, batch_number)
                self.fabric.backward(with_everybodys_parameters(self.network, terms["loss"]) / count)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().float() / count
        return {
            name: torch.as_tensor(self.fabric.all_reduce(value, reduce_op="mean")).item()
            for name, value in sums.items()
        }

    def _count_failure(self) -> None:
        """Count a step that was skipped. Raises SamkdError when there are too many."""
        counters, steps = self.counters, self.settings.steps
        counters.failures += 1
        counters.skipped += 1
        if counters.failures >= MAX_SKIPPED or counters.skipped > max(MAX_SKIPPED, MAX_SKIPPED_SHARE * steps):
            raise SamkdError(
                f"{self.run.path}: loss or gradient was not finite for {counters.failures} steps in a row and "
                f"{counters.skipped} in all (step {counters.step + 1} of {steps}); lower training.learning_rate or "
                f"check the data with `samkd check`"
            )

    def keep_last(self, number: int) -> dict[str, Any]:
        """Save the weights, averaged where they are; there is nothing for the log's entry."""
        with self.average.applied() if self.average else nullcontext():
            save_weights(self.network, self.run.weights)
        self.counters.best_step = number + 1
        return {}

    def validate_and_keep_best(
        self, number: int, validate: Callable[[torch.nn.Module], dict[str, float]]
    ) -> dict[str, Any]:
        """Score the network, averaged where it is; save its weights when it is the best so far. For the log's entry."""
        with self.average.applied() if self.average else nullcontext():
            with gathered_weights(self.network):
                scores = validate(self.network)
            better = scores["mean"] > self.counters.best_dice
            if better:
                save_weights(self.network, self.run.weights)
        self.figures.validated(scores)
        self.counters.stale += 1
        if better:
            self.counters.best_dice, self.counters.best_step = scores["mean"], number + 1
            self.counters.stale = 0
        return {"dice": scores["mean"], "dice_per_class": scores}

    def log(self, entry: dict[str, Any]) -> None:
        if self.scalars is None:
            return
        entry = entry | self.figures.scalars() | {"seconds": round(self.seconds(), 3)}
        self.run.log(entry)
        self.scalars.write(entry)

    def close(self) -> None:
        if self.scalars is not None:
            self.scalars.close()

    def save_state(self) -> None:
        self.counters.seconds = self.seconds()
        save_state(
            self.run.state,
            network=self.learning,
            optimizer=self.own_optimizer,
            progress=asdict(self.counters),
            average=self.average.values if self.average else None,
        )

    def seconds(self) -> float:
        """Since the run began, without the time between its restarts."""
        return time.monotonic() - self.started

    def epoch(self, number: int) -> str:
        """Which pass over the training cases a step belongs to, for the progress bar."""
        return f"epoch {number // self.epoch_steps + 1}/{math.ceil(self.settings.steps / self.epoch_steps)}"
