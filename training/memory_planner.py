"""A training within a budget of memory: a step is measured, a plan is chosen, and a smaller one where that fails."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from lightning.fabric import Fabric
from torch import nn

from ..configs.schema import Training
from ..errors import BadInputError
from ..volumes.json_files import read_json
from .compiled import compiled
from .memory_plan import ROOM, MemoryPlan, StepMemory, plans
from .memory_probe import StepProbe, nothing_left_behind
from .micro_batches import MicroBatches, checkpoint_switches, needs_whole_batch, switch_checkpointing
from .patches import PatchBatches
from .peak_memory import device_memory, is_out_of_memory, return_freed_memory
from .progress import console
from .ranks import gathered, is_main, main_first
from .run import Run
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
        self._network = network
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
        self._whole_batch = needs_whole_batch(self._network, self.step)
        with main_first():
            kept = self._read()
        budget = min(self.vram, min(gathered(device_memory(device, processes=self.fabric.world_size))))
        if kept is None:
            learning: nn.Module = self._network
            if self.step.helper is not None:
                learning = nn.ModuleList([learning, self.step.helper.to(device)])
            with nothing_left_behind(learning, device):
                probe = self._probe(learning)
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

    def _first_that_fits(self, probe: StepProbe) -> MemoryPlan:
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
        switch_checkpointing(self._network, plan.checkpointing)

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

    def _probe(self, learning: nn.Module) -> StepProbe:
        """A probe of the plan that takes least. Raises BadInputError when that is too much for the device."""
        switch_checkpointing(self._network, True)
        self.module.size = 1 if self._whole_batch is None else None
        try:
            return StepProbe(
                self.module,
                learning,
                self.step,
                batches=self.batches,
                settings=self.settings,
                device=self.fabric.device,
                processes=self.fabric.world_size,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise self._too_small()

    def _measure(self, probe: StepProbe, budget: float) -> list[StepMemory]:
        """The bytes of a step without and with activation checkpointing, where the network has that and is not set to
        it; the largest of all processes. What one sample takes is measured whatever the budget is, and more only where
        they must fit.
        """
        costs = []
        for checkpointing in (False, True):
            if (checkpointing and not self._switches) or (not checkpointing and self._always_on):
                continue
            switch_checkpointing(self._network, checkpointing)
            sizes = _largest(gathered(probe.sizes(self._samples(), budget=budget, divisible=self._whole_batch is None)))
            if sizes is not None:
                costs.append(StepMemory(checkpointing=checkpointing, **sizes))
        return costs


def _largest(sizes: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Of all processes the largest of each number; None where one of them has none."""
    known = [size for size in sizes if size is not None]
    return {name: max(size[name] for size in known) for name in known[0]} if len(known) == len(sizes) else None


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
