"""The one training loop, for teachers and students alike, on Lightning Fabric (1..N devices)."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from ..configs.schema import Training
from ..errors import BadInputError, IntegrityError, SamkdError
from .average import WeightAverage
from .checkpoint import load_state, save_state, save_weights
from .compiled import compile_faults, compiled
from .determinism import deterministic
from .live_figures import LiveFigures
from .memory_planner import MemoryPlanner, statistics_restored_on_error
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


class Stopped(SamkdError):
    """Training was interrupted; the run folder holds a state to continue from."""

    exit_code = 130


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


@dataclass
class Progress:
    """The counters that a resumed run needs, in the names that the state file has.

    ``stale`` counts validations since the best one, ``failures`` the steps in a row that were not finite, ``skipped``
    all of those.
    """

    step: int = 0
    best_dice: float = -1.0
    best_step: int = 0
    stale: int = 0
    failures: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, values: Mapping[str, Any], *, steps: int, path: Path) -> "Progress":
        """The counters of a state file, of a run of ``steps``. Raises IntegrityError for what cannot be such."""
        known = {field.name: field.type for field in fields(cls)}
        integers = [values[name] for name, kind in known.items() if kind is int and name in values]
        sound = (
            values.keys() <= known.keys()
            and all(type(number) in (int, float) for number in values.values())
            and all(type(number) is int and 0 <= number <= steps for number in integers)
            and -1 <= values.get("best_dice", 0) <= 1
            and 0 <= values.get("seconds", 0) < math.inf
        )
        if not sound:
            raise IntegrityError(
                f"{path}: its counters cannot be those of a run of {steps} steps ({dict(values)}); remove this file, "
                "and the same command begins the run anew"
            )
        return cls(**values)


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
    progress = loop.progress
    bar = Bar(title, settings.steps, done=progress.step, enabled=loop.writes)
    with deterministic(fabric.device), _Interrupt() as interrupt, closing(loop), bar:
        for number in range(progress.step, settings.steps):
            if settings.patience and progress.stale >= settings.patience:
                break
            entry = loop.train_step(number)
            loop.figures.end_step(entry["loss"])
            due = (number + 1) % settings.validate_every == 0 or number + 1 == settings.steps
            if due:
                entry |= loop.keep_last(number) if validate is None else loop.validate_and_keep_best(number, validate)
            loop.log(entry)
            dice = f"  Dice {progress.best_dice:.3f}" if progress.best_dice >= 0 else ""
            bar.advance(f"{loop.epoch(number)}  loss {entry['loss']:.4f}{dice}", below=loop.figures.text)
            stop = any(gathered(interrupt.requested)) and number + 1 < settings.steps
            if due or stop:
                loop.save_state()
            if stop:
                barrier()  # the state is written before any process ends
                raise Stopped(f"{run.path}: stopped at step {number + 1}; the same command continues from there")
    if loop.writes and not console.is_terminal:
        kept = "the last weights kept" if validate is None else f"validation Dice {progress.best_dice:.3f}"
        console.print(f"{title}: {progress.step} steps, {kept}")
    return TrainingResult(
        steps=progress.step,
        best_dice=None if validate is None else progress.best_dice,
        best_step=progress.best_step,
        skipped=progress.skipped,
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
        self.progress = self._resume()
        self._check_the_others()
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.progress.step * settings.accumulate, settings.steps * settings.accumulate),
            num_workers=0 if fabric.device.type == "cpu" else 4,
        )
        self.batches = iter(loader)
        self.step_batches: list[dict[str, torch.Tensor]] = []  # of the step that is made, on the CPU
        self.figures = LiveFigures(fabric.device, devices=fabric.world_size)
        self.epoch_steps = steps_per_epoch(settings, cases=len(batches.cases), devices=fabric.world_size)
        self.started = time.monotonic() - self.progress.seconds
        self.scalars = Scalars(run) if self.writes else None

    def _resume(self) -> Progress:
        """The counters of the last state, which is loaded; those of a beginning where there is none."""
        if not self.run.state.exists():
            if self.writes:
                self.run.forget_after(0)
            return Progress()
        average = self.average.values if self.average else None
        counters = load_state(self.run.state, network=self.learning, optimizer=self.own_optimizer, average=average)
        progress = Progress.read(counters, steps=self.settings.steps, path=self.run.state)
        if self.writes:
            self.run.forget_after(progress.step)
        return progress

    def _check_the_others(self) -> None:
        """Raises BadInputError where the devices' processes go on from different states."""
        steps = gathered(self.progress.step)
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
            self.progress.failures = 0
            if self.average:
                self.average.update(number)
        else:
            self._count_failure()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_batches.clear()
        self.progress.step = number + 1
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
        progress, steps = self.progress, self.settings.steps
        progress.failures += 1
        progress.skipped += 1
        if progress.failures >= MAX_SKIPPED or progress.skipped > max(MAX_SKIPPED, MAX_SKIPPED_SHARE * steps):
            raise SamkdError(
                f"{self.run.path}: loss or gradient was not finite for {progress.failures} steps in a row and "
                f"{progress.skipped} in all (step {progress.step + 1} of {steps}); lower training.learning_rate or "
                f"check the data with `samkd check`"
            )

    def keep_last(self, number: int) -> dict[str, Any]:
        """Save the weights, averaged where they are; there is nothing for the log's entry."""
        with self.average.applied() if self.average else nullcontext():
            save_weights(self.network, self.run.weights)
        self.progress.best_step = number + 1
        return {}

    def validate_and_keep_best(
        self, number: int, validate: Callable[[torch.nn.Module], dict[str, float]]
    ) -> dict[str, Any]:
        """Score the network, averaged where it is; save its weights when it is the best so far. For the log's entry."""
        with self.average.applied() if self.average else nullcontext():
            with gathered_weights(self.network):
                scores = validate(self.network)
            better = scores["mean"] > self.progress.best_dice
            if better:
                save_weights(self.network, self.run.weights)
        self.figures.validated(scores)
        self.progress.stale += 1
        if better:
            self.progress.best_dice, self.progress.best_step = scores["mean"], number + 1
            self.progress.stale = 0
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
        self.progress.seconds = self.seconds()
        save_state(
            self.run.state,
            network=self.learning,
            optimizer=self.own_optimizer,
            progress=asdict(self.progress),
            average=self.average.values if self.average else None,
        )

    def seconds(self) -> float:
        """Since the run began, without the time between its restarts."""
        return time.monotonic() - self.started

    def epoch(self, number: int) -> str:
        """Which pass over the training cases a step belongs to, for the progress bar."""
        return f"epoch {number // self.epoch_steps + 1}/{math.ceil(self.settings.steps / self.epoch_steps)}"


class _Interrupt:
    """Turns Ctrl-C and the signals of a scheduler into a flag, so that a step is never torn.

    A second Ctrl-C raises at once; a scheduler may send several signals, and gets its state.
    """

    requested = False
    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __enter__(self) -> "_Interrupt":
        self._previous = {}
        try:
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._flag)
        except ValueError:  # not the main thread: leave signals alone
            pass
        return self

    def _flag(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
