"""A training within a budget of memory: a step is measured, a plan is chosen, and a smaller one where that fails."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..configs.schema import Training
from ..errors import BadInputError
from ..volumes.json_files import read_json
from .checkpoint import trainable_state
from .compiled import compile_faults, compiled
from .determinism import deterministic
from .memory_plan import ROOM, MemoryPlan, StepMemory, plans
from .micro_batches import MicroBatches, checkpoint_switches, needs_whole_batch
from .patches import PatchBatches
from .peak_memory import additional_peak, device_memory, is_out_of_memory, memory_in_use, return_freed_memory
from .precision import MixedPrecision
from .progress import console
from .ranks import alone, gathered, is_main, main_first
from .run import Run
from .schedule import optimizer_of
from .step import TrainingStep

AUTO = math.inf  # --vram auto: all that the device has
MEMORY = "memory.json"


class MemoryPlanner:
    """Puts a network's training steps into ``vram`` bytes, AUTO for all that the device has.

    ``module`` is the network as a step is to call it; ``plan`` is kept in the run's folder, and a run that is continued
    with the same ``vram`` on the same device goes on with it, so that it sums in the same order. ``prepare`` measures
    steps; it leaves weights, buffers and random state as they were, and has an optimiser of its own.
    """

    plan: MemoryPlan

    def __init__(
        self,
        network: nn.Module,
        step: TrainingStep,
        *,
        batches: PatchBatches,
        settings: Training,
        fabric: Fabric,
        run: Run,
        vram: float,
    ) -> None:
        self.module = MicroBatches(compiled(network) if settings.compile else network)
        self.step, self.batches, self.settings = step, batches, settings
        self.fabric, self.run, self.vram = fabric, run, vram
        self._switches = checkpoint_switches(network)
        self._always_on = bool(self._switches) and all(getattr(module, name) for module, name in self._switches)
        self._plans: list[MemoryPlan] = []
        self._whole_batch: str | None = None

    def prepare(self) -> None:
        """Choose the plan, print it and keep it. Raises BadInputError when no plan fits into the budget."""
        device = self.fabric.device
        self.module.to(device).train()
        if device.type == "cpu":
            return_freed_memory()
        self._whole_batch = needs_whole_batch(self.module.network, self.step)
        with main_first():
            kept = self._read()
        budget = min(self.vram, min(gathered(device_memory(device, processes=self.fabric.world_size))))
        if kept is None:
            with self._probe() as probe:
                self._costs = self._measure(probe, budget)
                self._plans = self._plans_for(self._costs, budget)
                plan = self._first_that_fits(probe)
        else:
            self._costs, plan = kept
            self._plans = self._plans_for(self._costs, plan.budget)
        self._take(plan)
        console.print(plan.text(), highlight=False, markup=False)
        if device.type == "cuda" and self.vram < torch.cuda.get_device_properties(device).total_memory:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(self.vram / total, device)

    def take_smaller(self, fault: str) -> None:
        """Go on with the next plan that takes less than the present one, after a step for which memory was too small.

        Raises BadInputError when there is none, and where several processes train together: a step that one of them
        repeats alone would leave the others waiting.
        """
        where = f"{self.run.path}: memory was too small for a step ({fault})"
        if self.fabric.world_size > 1:
            raise BadInputError(
                f"{where}; the run continues from its last state: give the same command with a smaller --vram than "
                f"{self.plan.budget / 1e9:.2f}G"
            )
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = [plan for plan in self._plans if plan.predicted < self.plan.predicted]
        if not smaller:
            raise BadInputError(f"{where}, and no plan takes less; {self._ways_out()}")
        plan = smaller[0]
        parts = f"{plan.parts} micro-batches of {plan.micro_batch}" if plan.parts > 1 else "the batch in one"
        again = ", activations computed again" if plan.checkpointing else ""
        console.print(f"{where}; the step is repeated with {parts}{again}", highlight=False, markup=False)
        self._take(plan)

    def _plans_for(self, costs: Sequence[StepMemory], budget: float) -> list[MemoryPlan]:
        return plans(
            costs,
            batch=self._samples(),
            divisible=self._whole_batch is None,
            accumulate=self.settings.accumulate,
            precision=self.settings.precision,
            budget=budget,
        )

    def _samples(self) -> int:
        """The most samples of a batch on this device."""
        unlabelled = self.settings.batch if self.batches.unlabelled else 0
        return self.settings.batch * self.settings.masks + unlabelled

    def _first_that_fits(self, probe: "_Probe") -> MemoryPlan:
        """The first plan whose prediction and whose own measured step are within the budget."""
        update = max(cost.update for cost in self._costs) if self._costs else 0.0
        for index, plan in enumerate(self._plans):
            if plan.predicted > ROOM * plan.budget:
                continue
            self._apply(plan)
            peak = max(*gathered(probe.peak(plan.batch)), update)
            if peak <= plan.budget:
                return replace(plan, measured=peak)
            self._plans[index] = replace(plan, predicted=peak)
        raise self._too_small()

    def _too_small(self) -> BadInputError:
        smallest = min(self._plans, key=lambda plan: plan.predicted, default=None)
        if smallest is None or smallest.predicted == math.inf:
            return BadInputError(f"{self.run.path}: no training step fits into the device's memory; {self._ways_out()}")
        enough = math.ceil(smallest.predicted / ROOM / 1e8 + 0.25) / 10
        batch = "" if self._whole_batch is None else f", and the batch stays in one ({self._whole_batch})"
        return BadInputError(
            f"{self.run.path}: {smallest.budget / 1e9:.2f} GB are too small for a training step{batch}: the smallest "
            f"budget that works is --vram {enough:.1f}G; else {self._ways_out()}"
        )

    def _ways_out(self) -> str:
        return "lower the config's batch or patch, or take a device with more memory"

    def _apply(self, plan: MemoryPlan) -> None:
        self.module.size = None if plan.parts == 1 else plan.micro_batch
        self._switch(plan.checkpointing)

    def _switch(self, checkpointing: bool) -> None:
        for module, name in self._switches:
            setattr(module, name, checkpointing)

    def _take(self, plan: MemoryPlan) -> None:
        self._apply(plan)
        self.plan = plan
        if is_main():
            values = {"vram": None if self.vram == AUTO else self.vram, "device": _name(self.fabric.device)}
            costs = [asdict(cost) for cost in self._costs]
            self.run.write_json(MEMORY, {**values, "costs": costs, "plan": asdict(plan)})

    def _read(self) -> tuple[list[StepMemory], MemoryPlan] | None:
        """What an earlier start of this run found out; None where it cannot be used."""
        path = self.run.path / MEMORY
        if not path.exists():
            return None
        try:
            values = read_json(path)
            costs = [StepMemory(**cost) for cost in values["costs"]]
            plan = MemoryPlan(**values["plan"])
            json.dumps([values["costs"], values["plan"]], allow_nan=False)
            same = values["vram"] == (None if self.vram == AUTO else self.vram)
            fits = plan.batch == self._samples() and plan.accumulate == self.settings.accumulate
            divided = 1 <= plan.micro_batch <= plan.batch and (plan.parts == 1 or self._whole_batch is None)
            usable = same and values["device"] == _name(self.fabric.device) and fits and divided and plan.peak >= 0
            return (costs, plan) if usable else None
        except (BadInputError, KeyError, TypeError, ValueError):
            return None

    def _measure(self, probe: "_Probe", budget: float) -> list[StepMemory]:
        """The bytes of a step without and with activation checkpointing, where the network has that and is not set to
        it; the largest of all processes. What one sample takes is measured whatever the budget is, and more only where
        they must fit.
        """
        costs = []
        for checkpointing in (False, True):
            if (checkpointing and not self._switches) or (not checkpointing and self._always_on):
                continue
            self._switch(checkpointing)
            sizes = _largest(gathered(self._sizes(probe, budget)))
            if sizes is not None:
                costs.append(StepMemory(checkpointing=checkpointing, **sizes))
        return costs

    def _sizes(self, probe: "_Probe", budget: float) -> dict[str, float] | None:
        """The numbers of a StepMemory; None when one sample does not fit into the device's memory."""
        samples = self._samples()
        self.module.size = 1 if samples > 1 else None
        one = probe.peak(1)
        if one == math.inf:
            return None
        most = one - probe.start  # of one sample, its part of everything
        several = [count for count in sorted({2, min(samples, 4)}) if 1 < count <= samples]
        single, logits = one, 0.0
        if several and self._whole_batch is None and one <= budget:
            in_turn = [probe.peak(count) for count in several]  # the gradients of the first are there for all others
            further = (in_turn[-1] - in_turn[0]) / (several[-1] - several[0]) if len(several) > 1 else in_turn[0] - one
            logits = min(max(further, 0.0), most) if in_turn[-1] < math.inf else most
            single = one - logits
            if in_turn[0] < math.inf:
                single = max(single, in_turn[0] - several[0] * logits)
        self.module.size = None
        fixed, slope = probe.start, most
        peaks = {count: probe.peak(count) for count in several if probe.start + count * most <= budget}
        peaks = {count: peak for count, peak in peaks.items() if peak < math.inf}
        if peaks:
            fewest, largest = min(peaks), max(peaks)
            if fewest < largest:
                slope = (peaks[largest] - peaks[fewest]) / (largest - fewest)
                fixed = peaks[fewest] - slope * fewest
            else:
                slope = (peaks[largest] - probe.start) / largest
        return {
            "fixed": fixed,
            "per_sample": max(slope - logits, 0.0),
            "per_logits": logits,
            "single": single,
            "update": probe.update,
        }

    @contextmanager
    def _probe(self) -> Iterator["_Probe"]:
        """Steps that leave nothing behind."""
        device = self.fabric.device
        learning: nn.Module = self.module.network
        if self.step.helper is not None:
            learning = nn.ModuleList([learning, self.step.helper.to(device)])
        state = {name: tensor.detach().cpu().clone() for name, tensor in trainable_state(learning).items()}
        cards = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards), deterministic(device):
            try:
                self._switch(bool(self._switches))
                self.module.size = 1 if self._whole_batch is None else None
                try:
                    probe = _Probe(self, learning)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise self._too_small() from None
                yield probe
            finally:
                with torch.no_grad():
                    for name, tensor in trainable_state(learning).items():
                        tensor.copy_(state[name])
                for parameter in learning.parameters():
                    parameter.grad = None
                if cards:
                    torch.cuda.empty_cache()


class _Probe:
    """Training steps of the network as it is, on the first batch's samples; ``start`` and ``update`` are in bytes.

    ``start`` is what there is before a step's forward pass, ``update`` the peak of the optimiser's step.
    """

    def __init__(self, planner: MemoryPlanner, learning: nn.Module) -> None:
        settings, fabric = planner.settings, planner.fabric
        self.device, self.step, self.count = fabric.device, planner.step, settings.accumulate
        self.model = MixedPrecision(planner.module, bf16=settings.precision == "bf16-mixed")
        self.compiled = settings.compile
        self.batch = planner.batches[planner.batches.number_of_largest()]
        self.number = _prompted_number(self.step, settings)
        self.optimizer = optimizer_of(learning.parameters(), settings)
        average = sum(map(_bytes, trainable_state(planner.module.network).values())) if settings.ema else 0
        self._run(1)  # loads code and workspaces that stay
        gradients = float(sum(_bytes(p.grad) for p in learning.parameters() if p.grad is not None))
        before = memory_in_use(self.device) - gradients
        buckets = gradients if fabric.world_size > 1 else 0  # DistributedDataParallel's
        before += average + buckets
        self.update = before + gradients + additional_peak(self.optimizer.step, self.device)
        state = sum(_bytes(value) for values in self.optimizer.state.values() for value in values.values())
        self.start = before + state + (gradients if self.count > 1 else 0)

    def peak(self, samples: int) -> float:
        """Bytes at most in a step's forward and backward pass for so many samples; infinite when they do not fit."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            if self.count > 1:
                self._run(1)  # then there are gradients that the next batch's are added to
            return self.start + additional_peak(lambda: self._run(samples), self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return math.inf

    def _run(self, samples: int) -> None:
        rows = torch.arange(samples)
        batch = {name: tensor[rows % len(tensor)].to(self.device) for name, tensor in self.batch.items()}
        with alone(), compile_faults() if self.compiled else nullcontext():
            terms = self.step(self.model, batch, self.number)
            (terms["loss"] / self.count).backward()


@contextmanager
def statistics_restored_on_error(network: nn.Module) -> Iterator[None]:
    """When the block raises, the running statistics of batch norms are what they were before it."""
    buffers = [
        buffer
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.training
        for buffer in module.buffers()
    ]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise


def _prompted_number(step: TrainingStep, settings: Training) -> int:
    """The number of a late batch, one with prompts where there are some."""
    last = settings.steps * settings.accumulate - 1
    prompts = getattr(step, "prompts", None)
    numbers = range(last, max(last - 100, -1), -1)
    return next((number for number in numbers if prompts is None or prompts.is_prompted(number)), last)


def _largest(sizes: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Of all processes the largest of each number; None where one of them has none."""
    known = [size for size in sizes if size is not None]
    return {name: max(size[name] for size in known) for name in known[0]} if len(known) == len(sizes) else None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
