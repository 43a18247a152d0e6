"""What a run costs before it is run: the parameters of its network at full size, and an estimate of its GPU hours.

Networks are built without their weights, on PyTorch's meta device.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...configs.paper_tables import paper_datasets
from ...students import build_student
from ...teachers import PUBLISHED, build_teacher
from ...training.schedule import with_steps
from .experiments import Experiment, class_count

GPU = "an NVIDIA A100 in float32"
SUSTAINED = 0.5 * 19.5e12  # of multiplications and additions a second: half of what its maker names as its peak
TRAINING = 3  # a training step is a forward pass and a backward pass of twice its work
COST_MODEL = (
    f"Estimates: the forward pass by PyTorch's FLOP counter, three times that for a training step, at {GPU} "
    f"with {SUSTAINED / 1e12:.2f} TFLOP/s sustained, half of its peak; without reading data, validation, scoring "
    "and the soft targets of a teacher"
)


@dataclass(frozen=True)
class Budget:
    """Optimiser steps, and the patches in each; none of a published model as it is."""

    steps: int
    patches: int


def parameters(experiment: Experiment, kind: str) -> int:
    """Parameters of a run's network at full size: "all", those that are "trained", "trained encoder" for its part."""
    network = _network(experiment)
    names = dict(network.named_parameters())
    if kind == "all":
        return sum(parameter.numel() for parameter in names.values())
    prefix = "image_encoder." if kind == "trained encoder" else ""
    return sum(each.numel() for name, each in names.items() if each.requires_grad and name.startswith(prefix))


def budget(experiment: Experiment) -> Budget:
    """The budget of a run as its config has it, on one device, with the number of cases of the paper's data."""
    config = experiment.load()
    section = experiment.trained(config)
    if section.name == PUBLISHED:
        return Budget(0, 0)
    cases = config.labelled or paper_datasets()[experiment.data].training
    training = with_steps(section.training, cases=cases, devices=1)
    return Budget(training.steps, training.batch * training.accumulate)


def gpu_hours(experiment: Experiment) -> float:
    """An estimate of the hours that a run of the paper's size takes on one GPU, by COST_MODEL."""
    spent = budget(experiment)
    patches = spent.steps * spent.patches
    return patches * TRAINING * forward_flops(experiment) / SUSTAINED / 3600 if patches else 0.0


@cache
def forward_flops(experiment: Experiment) -> int:
    """The floating-point operations of a forward pass of one patch."""
    network = _network(experiment).requires_grad_(False)
    image = torch.zeros(1, network.in_channels, *network.patch, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def _network(experiment: Experiment) -> Any:
    """The run's network at full size, without weights, what it does not train frozen."""
    config = experiment.load()
    section = experiment.trained(config)
    shape: dict[str, Any] = {
        "in_channels": paper_datasets()[experiment.data].channels,
        "num_classes": class_count(experiment, config),
        "patch": section.plan.patch,
    }
    if experiment.stage != "teach":
        return build_student(section.name, **shape, **section.options).to("meta").eval()
    with torch.device("meta"):
        network = build_teacher(section.name, backbone=config.teacher.backbone, **shape, **section.options)
    if experiment.weights:
        network.freeze_pretrained()
    return network.eval()
