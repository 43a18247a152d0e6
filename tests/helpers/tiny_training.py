"""A training of a network of a few weights on one case of 8 x 8 x 8 voxels, in milliseconds a step."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from samkd.configs.schema import Augmentation, Training
from samkd.training import memory_planner
from samkd.training.loop import TrainingResult, fit
from samkd.training.memory_planner import MemoryPlanner
from samkd.training.patches import PatchBatches
from samkd.training.prepared import PreparedCase
from samkd.training.ranks import main_first, rank
from samkd.training.run import Run
from samkd.training.together import fabric_for

from .run_configs import run_config


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Conv3d(4, 2, 1)]
    return torch.nn.Sequential(*layers)


def make_batches(settings: Training, patch: tuple[int, int, int] = (4, 4, 4)) -> PatchBatches:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    case = PreparedCase("a", labels[None].astype(np.float32), labels, (1, 1, 1), {1: np.argwhere(labels)}, 0.0)
    return PatchBatches(
        [case],
        patch=patch,
        batch=settings.batch,
        rank=rank(),
        steps=settings.steps * settings.accumulate,
        foreground=0.5,
        augmentation=Augmentation(noise=0.1),
        seed=0,
    )


def make_run(folder: Path, settings: Training) -> Run:
    return Run.create(folder, run_config(seed=3, training=settings.model_dump(mode="json")))


@dataclass(frozen=True)
class Step:
    """The loss of the logits, as a function of them and of the batch; `helper` learns along."""

    objective: Callable[..., dict[str, torch.Tensor]]
    helper: torch.nn.Module | None = None

    def __call__(self, model, batch, number):
        return self.objective(model(batch["image"]), batch)


def cross_entropy(logits, batch):
    return {"loss": torch.nn.functional.cross_entropy(logits, batch["labels"].long())}


def train(
    folder: Path,
    settings: Training,
    objective=cross_entropy,
    validate=lambda model: {"mean": 0.5},
    helper: torch.nn.Module | None = None,
    net: torch.nn.Module | None = None,
    vram: float | None = None,
    patch: tuple[int, int, int] = (4, 4, 4),
) -> tuple[torch.nn.Module, TrainingResult]:
    """Train `net` (default: `network()`) in a run folder, or go on with the run there; with `vram` by a memory plan."""
    net = net or network()
    fabric = fabric_for("32-true" if settings.precision == "auto" else settings.precision)
    fabric.launch()
    with main_first():
        run = make_run(folder, settings)
    step, batches, memory = Step(objective, helper), make_batches(settings, patch), None
    if vram is not None:
        memory = MemoryPlanner(net, step, batches=batches, settings=settings, fabric=fabric, run=run, vram=vram)
        with mock.patch.object(memory_planner, "return_freed_memory"):  # for good, and for all later tests of a process
            memory.prepare()
    summary = fit(
        net,
        step,
        batches=batches,
        validate=validate,
        settings=settings,
        run=run,
        fabric=fabric,
        title="test",
        memory=memory,
    )
    return net, summary


def losses(folder: Path) -> list[float]:
    """The loss of every line in a run's log."""
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
