"""The memory that `--vram` predicts for a training step, against what the process really takes on a CPU.

A process measures steps of one, two and four samples, as `samkd teach --vram` does, and predicts from them the steps
of a larger batch. Each of those is then made in a process of its own, and the kernel says its peak (VmHWM). Prints a
row for each network, micro-batch and setting of activation checkpointing:

    python benchmarks/memory_plan.py
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from samkd.configs.schema import Augmentation, Training
from samkd.students import build_student
from samkd.teachers import build_teacher
from samkd.training.losses import segmentation_loss
from samkd.training.memory_plan import StepMemory
from samkd.training.memory_planner import AUTO, MEMORY, MemoryPlanner
from samkd.training.micro_batches import MicroBatches, switch_checkpointing
from samkd.training.patches import PatchBatches
from samkd.training.peak_memory import memory_in_use, return_freed_memory
from samkd.training.prepared import PreparedCase
from samkd.training.run import Run
from samkd.training.run_config import CaseNames, NetworkSpec, Objective, RunConfig
from samkd.training.schedule import optimizer_of
from samkd.training.step import SupervisedStep
from samkd.training.together import fabric_for
from samkd.volumes.memory import peak_bytes
from samkd.volumes.plan import Plan

CLASSES = 7
NETWORKS: dict[str, tuple[str | None, tuple[int, int, int]]] = {  # backbone of a teacher, and patch
    "masam": ("vit_tiny_p8", (5, 128, 128)),
    "medsa": ("vit_tiny_p8", (3, 128, 128)),
    "segresnet": (None, (32, 32, 64)),
    "swinunetr-tiny": (None, (32, 32, 64)),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    backbone, patch = NETWORKS[name]
    shape: dict[str, Any] = {"in_channels": 1, "num_classes": CLASSES, "patch": patch}
    return build_teacher(name, backbone=backbone, **shape) if backbone else build_student(name, **shape)


def predict(name: str, batch: int) -> dict[str, Any]:
    """The costs of a step, as memory.json has them, and what the process held before."""
    patch = NETWORKS[name][1]
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=patch).astype(np.uint8)
    image = rng.standard_normal((1, *patch), np.float32)
    case = PreparedCase("a", image, labels, (1, 1, 1), {1: np.argwhere(labels == 1)}, 0.0)
    settings = Training(steps=1, batch=batch, precision="32-true")
    batches = PatchBatches(
        [case], patch=patch, batch=batch, steps=1, foreground=0.5, augmentation=Augmentation(), seed=0
    )
    names = {number: str(number) for number in range(CLASSES)}
    config = RunConfig(
        stage="control",
        network=NetworkSpec(family="students", name=name, in_channels=1, num_classes=CLASSES, patch=patch),
        objective=Objective(),
        plan=Plan.from_dict({"intensity": [{"rule": "zscore"}], "patch": list(patch)}),
        class_names=names,
        channels=("CT",),
        training=settings.model_dump(mode="json"),
        seed=0,
        cases=CaseNames(dataset="noise", train=("a",), validation=(), content="0"),
        data="/nowhere",
        user_config={"name": "noise"},
    )
    step = SupervisedStep(dice_weight=1.0, cross_entropy_weight=1.0)
    with TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        planner = MemoryPlanner(
            build(name),
            step,
            batches=batches,
            settings=settings,
            fabric=fabric_for("32-true"),
            run=run,
            vram=AUTO,
        )
        return_freed_memory()
        held = memory_in_use(torch.device("cpu"))
        planner.prepare()
        return {"held": held, "costs": json.loads((run.path / MEMORY).read_text())["costs"]}


def measure(name: str, *, batch: int, micro_batch: int, checkpointing: bool) -> dict[str, float]:
    """The peak of a training step after a first one, and what the process held before."""
    patch, network = NETWORKS[name][1], build(name)
    switch_checkpointing(network, checkpointing)
    model = MicroBatches(network, micro_batch).train()
    optimizer = optimizer_of(network.parameters(), Training(steps=1))
    image, labels = torch.randn(batch, 1, *patch), torch.randint(CLASSES, (batch, *patch))
    return_freed_memory()
    held = memory_in_use(torch.device("cpu"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for samples in (1, batch):  # the first step makes the optimiser's moments
        segmentation_loss(model(image[:samples]), labels[:samples]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"held": held, "peak": peak_bytes() or 0.0}


def in_a_process(job: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> dict[str, Any]:
    """What the job gives, in a process that was forked before any network was built."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(job, *arguments, **options).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="samples of the batch that is predicted")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    options = parser.parse_args()
    batch = options.batch
    torch.set_num_threads(1)
    print("| network | patch | micro-batches | activations | predicted | measured | error | of the step alone |")
    print("|---|---|---|---|---:|---:|---:|---:|", flush=True)
    for name in options.networks:
        patch = NETWORKS[name][1]
        prediction = in_a_process(predict, name, batch)
        for values in prediction["costs"]:
            cost = StepMemory(**values)
            sizes = {batch, 1} if cost.checkpointing else {batch, -(-batch // 2), 1}
            for micro_batch in sorted(sizes, reverse=True):
                peak = cost.peak(batch=batch, micro_batch=micro_batch)
                measured = in_a_process(
                    measure, name, batch=batch, micro_batch=micro_batch, checkpointing=cost.checkpointing
                )
                error = peak / measured["peak"] - 1
                step = (peak - prediction["held"]) / (measured["peak"] - measured["held"]) - 1
                print(
                    f"| {name} | {' x '.join(map(str, patch))} | {-(-batch // micro_batch)} x {micro_batch} | "
                    f"{'again' if cost.checkpointing else 'kept'} | {peak / 1e6:.0f} MB | "
                    f"{measured['peak'] / 1e6:.0f} MB | {error:+.1%} | {step:+.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
