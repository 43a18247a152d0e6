"""How a training step is made to fit into a budget of memory: the plan, and the arithmetic that chooses it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROOM = 0.95  # of the budget is planned with: a GPU's context and the gaps between its blocks take the rest


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Peak bytes of a training step, as a linear function of its samples, with or without ``checkpointing``.

    ``fixed`` is what there is without any sample: weights, gradients, the optimiser's moments, and all else that the
    process holds. ``per_sample`` is a sample's activations, for each of a micro-batch; ``per_logits`` a sample's image,
    logits and loss, for each of the whole batch. ``update`` is the peak of the optimiser's own step.

    ``single`` takes the place of ``fixed + per_sample`` where a sample goes through the network alone: PyTorch then
    convolves by another algorithm, which takes more than that for two samples at once does.
    """

    checkpointing: bool
    fixed: float
    per_sample: float
    per_logits: float
    single: float
    update: float

    def peak(self, *, batch: int, micro_batch: int) -> float:
        """Bytes for a batch of so many samples that goes through the network so many at a time."""
        largest = self.single if micro_batch == 1 else self.fixed + self.per_sample * micro_batch
        if batch % micro_batch == 1:  # the last micro-batch is of one
            largest = max(largest, self.single)
        return max(self.update, largest + self.per_logits * batch)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A batch of so many samples in micro-batches, with or without activation checkpointing, and the bytes it takes.

    ``budget`` are the bytes that the process may use; ``measured`` is the peak of one step of this plan, None before
    it was measured.
    """

    batch: int
    micro_batch: int
    accumulate: int
    checkpointing: bool
    precision: str
    budget: float
    predicted: float
    measured: float | None = None

    @property
    def parts(self) -> int:
        """How many micro-batches a batch is."""
        return math.ceil(self.batch / self.micro_batch)

    @property
    def extra_passes(self) -> float:
        """How often a sample goes through the network again in the backward pass; the last micro-batch need not."""
        return (self.parts - 1) / self.parts + self.checkpointing

    @property
    def peak(self) -> float:
        return self.predicted if self.measured is None else self.measured

    def text(self) -> str:
        """One block of lines for whoever starts the training."""
        batches = f", {self.accumulate} batches for each step" if self.accumulate > 1 else ""
        parts = "in one" if self.parts == 1 else f"in {self.parts} micro-batches of at most {self.micro_batch}"
        passes = f"; {self.extra_passes:.2f} more forward passes for each sample" if self.extra_passes else ""
        measured = "" if self.measured is None else f", {self.measured / 1e9:.2f} GB measured"
        return "\n".join(
            (
                f"memory plan for {self.budget / 1e9:.2f} GB",
                f"  batch       {self.batch} samples {parts}{batches}; the loss is that of the whole batch",
                f"  activations {'computed again, block by block' if self.checkpointing else 'kept'}{passes}",
                f"  precision   {self.precision}",
                f"  peak        {self.predicted / 1e9:.2f} GB predicted{measured}",
            )
        )


def plans(
    costs: Sequence[StepMemory], *, batch: int, divisible: bool, accumulate: int, precision: str, budget: float
) -> list[MemoryPlan]:
    """Every plan for a batch, the fastest first: the one with the fewest forward passes, then the fewest micro-batches.

    Without ``divisible`` the batch stays in one.
    """
    sizes = {math.ceil(batch / parts) for parts in range(1, batch + 1)} if divisible else {batch}
    every = [
        MemoryPlan(
            batch=batch,
            micro_batch=size,
            accumulate=accumulate,
            checkpointing=cost.checkpointing,
            precision=precision,
            budget=budget,
            predicted=cost.peak(batch=batch, micro_batch=size),
        )
        for cost in costs
        for size in sizes
    ]
    return sorted(every, key=lambda plan: (plan.extra_passes, plan.parts))
