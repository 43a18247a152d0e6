"""Learning rate and optimiser. The rate is a pure function of the step: a resumed run needs no scheduler state."""

from collections.abc import Iterable

import torch

from ..configs.schema import Training


def learning_rate(step: int, settings: Training) -> float:
    """Linear warm-up over ``settings.warmup`` steps, then, with progress from 0 to 1 over the steps that are left,

    - polynomial: ``base * (1 - progress) ** power`` (0.9 in nnU-Net, 7 in MA-SAM's code);
    - exponential: ``base * final ** progress``;
    - constant: ``base``.

    ``step`` counts from 0 to ``settings.steps - 1``.
    """
    base, warmup = settings.learning_rate, settings.warmup
    if step < warmup:
        return base * (step + 1) / warmup
    progress = (step - warmup) / max(settings.steps - warmup, 1)
    if settings.decay == "polynomial":
        return base * (1 - progress) ** settings.power
    return base * settings.final**progress if settings.decay == "exponential" else base


def optimizer_of(parameters: Iterable[torch.nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over the parameters that learn."""
    rate, decay = settings.learning_rate, settings.weight_decay
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trainable, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(trainable, lr=rate, weight_decay=decay)
