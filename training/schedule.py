"""Learning rate and optimiser. The rate is a pure function of the step: a resumed run needs no scheduler state."""

import math
from collections.abc import Iterable

import torch

from ..configs.schema import Training


def learning_rate(step: int, settings: Training) -> float:
    """Linear warm-up over ``settings.warmup`` steps, then, with progress from 0 to 1 over the steps that are left,

    - polynomial: ``base * (1 - progress) ** power`` (0.9 in nnU-Net, 7 in MA-SAM's code);
    - exponential: ``base * final ** progress``;
    - constant: ``base``.

    ``step`` counts from 0 to ``settings.steps - 1``. With ``settings.schedule_steps`` progress is 1 there, and after.
    """
    base, warmup = settings.learning_rate, settings.warmup
    if step < warmup:
        return base * (step + 1) / warmup
    length = settings.schedule_steps or settings.steps
    progress = min((step - warmup) / max(length - warmup, 1), 1)
    if settings.decay == "polynomial":
        return base * (1 - progress) ** settings.power
    return base * settings.final**progress if settings.decay == "exponential" else base


def steps_per_epoch(settings: Training, *, cases: int, devices: int) -> int:
    """The optimiser steps in which as many patches are drawn as there are training cases; 1 or more."""
    return max(1, math.ceil(cases / (settings.batch * settings.masks * settings.accumulate * devices)))


def with_steps(settings: Training, *, cases: int, devices: int) -> Training:
    """The settings with their ``epochs`` as ``steps``, for so many labelled training cases and devices."""
    if not settings.epochs:
        return settings
    steps = settings.epochs * steps_per_epoch(settings, cases=cases, devices=devices)
    return settings.model_copy(update={"steps": steps, "epochs": 0})


def optimizer_of(parameters: Iterable[torch.nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over the parameters that learn."""
    rate, decay = settings.learning_rate, settings.weight_decay
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trainable, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(trainable, lr=rate, weight_decay=decay)
