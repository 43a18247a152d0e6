"""The one training loop, for teachers and students alike, on Lightning Fabric (1..N devices)."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from ..configs.schema import Training
from ..errors import SamkdError
from .average import WeightAverage
from .checkpoint import load_state, save_state, save_weights
from .patches import PatchBatches
from .progress import Bar, console
from .run import Run
from .schedule import learning_rate, optimizer_of

Objective = Callable[[torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
Call = Callable[[torch.nn.Module, dict[str, torch.Tensor], int], torch.Tensor]  # network, batch, its number -> logits
MAX_SKIPPED = 20  # steps in a row that are not finite, and in all as many or
MAX_SKIPPED_SHARE = 0.05  # of the run's steps


def plain_call(model: torch.nn.Module, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
    """Logits of the batch's image, without prompts."""
    return model(batch["image"])


class Stopped(SamkdError):
    """Training was interrupted; the run folder holds a state to continue from."""

    exit_code = 130


@dataclass(frozen=True)
class Summary:
    steps: int
    best_dice: float
    best_step: int
    skipped: int
    seconds: float


def fit(
    network: torch.nn.Module,
    *,
    batches: PatchBatches,
    objective: Objective,
    validate: Callable[[torch.nn.Module], dict[str, float]],
    settings: Training,
    run: Run,
    fabric: Fabric,
    title: str,
    call: Call = plain_call,
    helper: torch.nn.Module | None = None,
) -> Summary:
    """Train, validating every ``validate_every`` steps, and keep the weights of the best validation Dice.

    ``patience`` validations without a better one end the run early; with ``ema`` the averaged weights are validated
    and kept. The run can be resumed exactly from its last state: batches, dropout and learning rate depend on the step
    alone. Ctrl-C and SIGTERM finish the step, write the state and raise Stopped. A step whose loss or gradient is not
    finite is skipped and counted; too many of them raise SamkdError. A ``helper`` of the objective learns along, on one
    device, and is no part of the weights.
    """
    seed = int(run.config["seed"])
    learning = network if helper is None else torch.nn.ModuleList([network, helper.to(fabric.device)])
    optimizer = optimizer_of(learning.parameters(), settings)
    average = WeightAverage(network, settings.ema) if settings.ema else None
    progress = {"step": 0, "best_dice": -1.0, "best_step": 0, "stale": 0, "failures": 0, "skipped": 0, "seconds": 0.0}
    if run.state.exists():
        progress |= load_state(
            run.state, network=learning, optimizer=optimizer, average=average.values if average else None
        )
    if fabric.is_global_zero:
        run.forget_after(int(progress["step"]))
    first = int(progress["step"])
    model, wrapped = fabric.setup(network, optimizer)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first * settings.accumulate, settings.steps * settings.accumulate),
        num_workers=0 if fabric.device.type == "cpu" else 4,
    )
    micro_batches = iter(loader)
    epoch_steps = max(
        1, math.ceil(len(batches.cases) / (settings.batch * settings.masks * settings.accumulate * fabric.world_size))
    )
    started = time.monotonic() - progress["seconds"]

    def save() -> None:
        progress["seconds"] = time.monotonic() - started
        if fabric.is_global_zero:
            values = average.values if average else None
            save_state(run.state, network=learning, optimizer=optimizer, progress=progress, average=values)

    shown = fabric.is_global_zero
    with _Interrupt() as interrupt, Bar(title, settings.steps, done=first, enabled=shown) as bar:
        for step in range(first, settings.steps):
            if settings.patience and progress["stale"] >= settings.patience:
                break
            torch.manual_seed(seed * 1_000_003 + step * fabric.world_size + fabric.global_rank)
            rate = learning_rate(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            numbers = range(step * settings.accumulate, (step + 1) * settings.accumulate)
            terms = _accumulate(model, micro_batches, numbers, call, objective, fabric)
            entry = {"step": step + 1, "learning_rate": rate, **terms}
            norm = fabric.clip_gradients(model, wrapped, max_norm=settings.clip_norm, error_if_nonfinite=False)
            assert norm is not None
            if math.isfinite(terms["loss"]) and math.isfinite(float(norm)):
                wrapped.step()
                progress["failures"] = 0
                if average:
                    average.update(step)
            else:
                _count_failure(progress, steps=settings.steps, run=run)
            wrapped.zero_grad(set_to_none=True)
            progress["step"] = step + 1
            due = (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps
            if due:
                with average.applied() if average else nullcontext():
                    scores = validate(network)
                    better = scores["mean"] > progress["best_dice"]
                    if better and fabric.is_global_zero:
                        save_weights(network, run.weights)
                entry |= {"dice": scores["mean"], "dice_per_class": scores}
                progress["stale"] += 1
                if better:
                    progress |= {"best_dice": scores["mean"], "best_step": step + 1, "stale": 0}
            if fabric.is_global_zero:
                run.log(entry | {"seconds": round(time.monotonic() - started, 3)})
            epoch = f"epoch {step // epoch_steps + 1}/{math.ceil(settings.steps / epoch_steps)}"
            bar.advance(f"{epoch}  loss {terms['loss']:.4f}  Dice {max(progress['best_dice'], 0):.3f}")
            stop = interrupt.requested and step + 1 < settings.steps
            if due or stop:
                save()
            if stop:
                raise Stopped(f"{run.path}: stopped at step {step + 1}; the same command continues from there")
    if shown and not console.is_terminal:
        console.print(f"{title}: {progress['step']} steps, validation Dice {progress['best_dice']:.3f}")
    return Summary(
        steps=int(progress["step"]),
        best_dice=float(progress["best_dice"]),
        best_step=int(progress["best_step"]),
        skipped=int(progress["skipped"]),
        seconds=time.monotonic() - started,
    )


def _count_failure(progress: dict[str, float | int], *, steps: int, run: Run) -> None:
    progress["failures"] += 1
    progress["skipped"] += 1
    if progress["failures"] >= MAX_SKIPPED or progress["skipped"] > max(MAX_SKIPPED, MAX_SKIPPED_SHARE * steps):
        raise SamkdError(
            f"{run.path}: loss or gradient was not finite for {progress['failures']} steps in a row and "
            f"{progress['skipped']} in all (step {progress['step'] + 1} of {steps}); lower training.learning_rate or "
            f"check the data with `samkd check`"
        )


def _accumulate(
    model, micro_batches: Iterator, numbers: range, call: Call, objective: Objective, fabric: Fabric
) -> dict[str, float]:
    """Gradients of the micro-batches `numbers`; returns the mean of every loss term over them and over all devices."""
    sums: dict[str, torch.Tensor] = {}
    for number in numbers:
        batch = {name: tensor.to(fabric.device) for name, tensor in next(micro_batches).items()}
        with fabric.no_backward_sync(model, enabled=number != numbers[-1]):
            terms = objective(call(model, batch, number), batch)
            fabric.backward(terms["loss"] / len(numbers))
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach().float() / len(numbers)
    return {name: torch.as_tensor(fabric.all_reduce(value, reduce_op="mean")).item() for name, value in sums.items()}


class _Interrupt:
    """Turns SIGINT and SIGTERM into a flag, so that a step is never torn; a second Ctrl-C raises at once."""

    requested = False

    def __enter__(self) -> "_Interrupt":
        self._previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._flag)
        except ValueError:  # not the main thread: leave signals alone
            pass
        return self

    def _flag(self, number: int, _frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
