"""What a training step takes, measured on steps of the network itself that leave nothing behind."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..configs.schema import Training
from .checkpoint import trainable_state
from .compiled import compile_faults
from .determinism import deterministic
from .micro_batches import MicroBatches
from .patches import PatchBatches
from .peak_memory import additional_peak, is_out_of_memory, memory_in_use
from .precision import MixedPrecision
from .ranks import alone
from .schedule import optimizer_of
from .step import TrainingStep


@contextmanager
def nothing_left_behind(learning: nn.Module, device: torch.device) -> Iterator[None]:
    """After the block weights, buffers, gradients and random numbers are what they were before it."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in trainable_state(learning).items()}
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), deterministic(device):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in trainable_state(learning).items():
                    tensor.copy_(state[name])
            for parameter in learning.parameters():
                parameter.grad = None
            if cards:
                torch.cuda.empty_cache()


class StepProbe:
    """Training steps of the network as it is, on the first batch's samples; ``start`` and ``update`` are in bytes.

    ``start`` is what there is before a step's forward pass, ``update`` the peak of the optimiser's step.
    """

    def __init__(
        self,
        module: MicroBatches,
        learning: nn.Module,
        step: TrainingStep,
        *,
        batches: PatchBatches,
        settings: Training,
        device: torch.device,
        processes: int,
    ) -> None:
        self.module, self.step, self.device = module, step, device
        self.count, self.compiled = settings.accumulate, settings.compile
        self.model = MixedPrecision(module, bf16=settings.precision == "bf16-mixed")
        self.batch = batches[batches.number_of_largest()]
        self.number = _prompted_number(step, settings)
        self.optimizer = optimizer_of(learning.parameters(), settings)
        average = sum(map(_bytes, trainable_state(module.network).values())) if settings.ema else 0
        self._run(1)  # loads code and workspaces that stay
        gradients = float(sum(_bytes(p.grad) for p in learning.parameters() if p.grad is not None))
        before = memory_in_use(self.device) - gradients
        buckets = gradients if processes > 1 else 0  # DistributedDataParallel's
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

    def sizes(self, samples: int, *, budget: float, divisible: bool) -> dict[str, float] | None:
        """The numbers of a StepMemory for a batch of so many samples; None when one does not fit into the device.

        More than one are measured only where they fit into the budget.
        """
        self.module.size = 1 if samples > 1 else None
        one = self.peak(1)
        if one == math.inf:
            return None
        most = one - self.start  # of one sample, its part of everything
        several = [count for count in sorted({2, min(samples, 4)}) if 1 < count <= samples]
        single, logits = one, 0.0
        if several and divisible and one <= budget:
            in_turn = [self.peak(count) for count in several]  # the gradients of the first are there for all others
            further = (in_turn[-1] - in_turn[0]) / (several[-1] - several[0]) if len(several) > 1 else in_turn[0] - one
            logits = min(max(further, 0.0), most) if in_turn[-1] < math.inf else most
            single = one - logits
            if in_turn[0] < math.inf:
                single = max(single, in_turn[0] - several[0] * logits)
        self.module.size = None
        fixed, slope = self.start, most
        peaks = {count: self.peak(count) for count in several if self.start + count * most <= budget}
        peaks = {count: peak for count, peak in peaks.items() if peak < math.inf}
        if peaks:
            fewest, largest = min(peaks), max(peaks)
            if fewest < largest:
                slope = (peaks[largest] - peaks[fewest]) / (largest - fewest)
                fixed = peaks[fewest] - slope * fewest
            else:
                slope = (peaks[largest] - self.start) / largest
        return {
            "fixed": fixed,
            "per_sample": max(slope - logits, 0.0),
            "per_logits": logits,
            "single": single,
            "update": self.update,
        }

    def _run(self, samples: int) -> None:
        rows = torch.arange(samples)
        batch = {name: tensor[rows % len(tensor)].to(self.device) for name, tensor in self.batch.items()}
        with alone(), compile_faults() if self.compiled else nullcontext():
            terms = self.step(self.model, batch, self.number)
            (terms["loss"] / self.count).backward()


def _prompted_number(step: TrainingStep, settings: Training) -> int:
    """The number of a late batch, one with prompts where there are some."""
    last = settings.steps * settings.accumulate - 1
    prompts = getattr(step, "prompts", None)
    numbers = range(last, max(last - 100, -1), -1)
    return next((number for number in numbers if prompts is None or prompts.is_prompted(number)), last)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
