"""What a training step of a teacher or a student costs, for settings side by side, each in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ...configs.load import load_config
from ...configs.schema import Augmentation, Training
from ...errors import SamkdError, UsageError
from ...sam.vit import use_published_attention
from ...students import build_student
from ...teachers import build_teacher
from ...training.compiled import compile_faults, compiled
from ...training.losses import segmentation_loss
from ...training.micro_batches import checkpoint_switches, switch_checkpointing
from ...training.patches import PatchBatches
from ...training.peak_memory import additional_peak, memory_in_use
from ...training.precision import MixedPrecision
from ...training.prepared import PreparedCase
from ...training.schedule import optimizer_of
from ...volumes.datasets.phantom.generate import make_case

PLAIN = "plain"
TEACHER_SETTINGS = (
    PLAIN,
    "published-attention",
    "checkpointing",
    "published-attention+checkpointing",
    "bf16",
    "compile",
    "bf16+compile",
)
STUDENT_SETTINGS = (PLAIN, "bf16", "compile", "bf16+compile")
CLASSES = 13
MARGIN = 16  # voxels by which the generated CT is larger than the patch


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """What is switched on for a row; all that is not is ours, kept, in float32 and not compiled."""

    published_attention: bool = False
    checkpointing: bool = False
    bf16: bool = False
    compile: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "plain", or words joined by "+". Raises UsageError for any other word."""
        words = [field.name.replace("_", "-") for field in fields(cls)]
        parts = [] if text == PLAIN else text.split("+")
        if unknown := [part for part in parts if part not in words]:
            raise UsageError(
                f"--setting {text!r}: {unknown[0]!r} is none; expected {PLAIN}, or {', '.join(words)} joined by +"
            )
        return cls(**{part.replace("-", "_"): True for part in parts})


@dataclass(frozen=True, kw_only=True)
class StepJob:
    """The network that is trained: of a teacher with a ``backbone``, of a student without; patch (D, H, W)."""

    name: str
    backbone: str | None
    patch: tuple[int, int, int]
    batch: int
    steps: int

    def build(self) -> nn.Module:
        """A teacher's base is frozen, as one that starts from a published file."""
        shape: dict[str, Any] = {"in_channels": 1, "num_classes": CLASSES, "patch": self.patch}
        if self.backbone is None:
            return build_student(self.name, **shape)
        teacher = build_teacher(self.name, backbone=self.backbone, **shape)
        teacher.freeze_pretrained()
        return teacher


def bench_steps(job: StepJob, settings: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each setting, as `measure` gives it, with the ``setting``; or its ``fault``.

    Raises UsageError for a setting that is none, before anything is measured.
    """
    for text in settings:
        StepSetting.parse(text)
    for text in settings:
        values = {"job": vars(job), "setting": text}
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(values)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            yield {"setting": text, **json.loads(done.stdout.splitlines()[-1])}
        else:
            yield {"setting": text, "fault": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}


def measure(job: StepJob, setting: StepSetting) -> dict[str, Any]:
    """Train on patches of a generated CT, with the augmentation of the config `phantom`.

    ``seconds`` is the median of the steps after one to warm up, ``samples_per_second`` and ``waiting``, the share of
    the time in which a batch is waited for, are of all of them. ``peak_mb`` is what the process holds on a CPU, and
    what PyTorch has allocated on a GPU, at most in a step. ``flops`` are the operations of a step as FlopCounterMode
    counts them (2 for a multiplication with addition), without what checkpointing computes again; ``share_of_peak`` is
    their rate over ``device_flops_per_second``, that of a plain product of matrices in the same precision.
    Raises UsageError for a setting that the network does not have.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = job.build().to(device).train()
    if setting.checkpointing and not checkpoint_switches(network):
        raise UsageError(f"{job.name} has no activation checkpointing")
    if setting.published_attention:
        use_published_attention(network)
    batches = _batches(job)
    optimizer = optimizer_of(network.parameters(), Training(steps=1))

    def step(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
        image, labels = batch["image"].to(device), batch["labels"].to(device)
        segmentation_loss(model(image), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        step(MixedPrecision(network, bf16=setting.bf16), batches[0])
    flops = counter.get_total_flops()
    if setting.checkpointing:
        switch_checkpointing(network, True)
    model = MixedPrecision(compiled(network) if setting.compile else network, bf16=setting.bf16)
    workers = 0 if device.type == "cpu" else 4
    loader = iter(DataLoader(batches, batch_size=None, sampler=range(job.steps + 2), num_workers=workers))
    with compile_faults():
        step(model, next(loader))
    seconds, waiting = [], 0.0
    for _ in range(job.steps):
        started = time.perf_counter()
        batch = next(loader)
        waiting += time.perf_counter() - started
        step(model, batch)
        seconds.append(time.perf_counter() - started)
    batch = next(loader)
    peak = memory_in_use(device) + additional_peak(lambda: step(model, batch), device)
    rate, best = flops / median(seconds), matrix_product_rate(device, bf16=setting.bf16)
    return {
        "seconds": median(seconds),
        "samples_per_second": job.batch * job.steps / sum(seconds),
        "waiting": waiting / sum(seconds),
        "peak_mb": peak / 2**20,
        "flops": flops,
        "flops_per_second": rate,
        "device_flops_per_second": best,
        "share_of_peak": rate / best,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    }


def matrix_product_rate(device: torch.device, *, bf16: bool, repeats: int = 5) -> float:
    """Operations per second of a product of two square matrices, the best of so many: what the device can do."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def _batches(job: StepJob) -> PatchBatches:
    """Patches of one generated CT, half of them around an organ."""
    d, h, w = (size + MARGIN for size in job.patch)
    volume, labels = make_case(0, shape=(d, h, w), orientation="SPL")
    image = np.clip((volume.array + 200) / 450, 0, 1).astype(np.float32)
    places = {int(value): np.argwhere(labels == value) for value in np.unique(labels) if value}
    case = PreparedCase("generated", image, labels, (1.0, 1.0, 1.0), places, 0.0)
    augmentation: Augmentation = load_config("phantom", []).teacher.training.augmentation
    return PatchBatches(
        [case],
        patch=job.patch,
        batch=job.batch,
        steps=job.steps + 2,
        foreground=0.5,
        augmentation=augmentation,
        seed=0,
    )


if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    chosen = StepJob(**values["job"] | {"patch": tuple(values["job"]["patch"])})
    try:
        print(json.dumps(measure(chosen, StepSetting.parse(values["setting"]))))
    except SamkdError as error:
        sys.exit(str(error))
