"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""


def learning_rate(step: int, *, base: float, warmup: int, total: int, power: float = 0.9) -> float:
    """Linear warm-up over ``warmup`` steps, then ``base * (1 - progress) ** 0.9`` (the decay of MA-SAM and nnU-Net).

    ``step`` counts from 0 to ``total - 1``.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base * (1 - (step - warmup) / max(total - warmup, 1)) ** power
