"""What a training step of a teacher costs: seconds and peak memory, each variant in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from ...sam.vit import use_published_attention
from ...teachers import build_teacher
from ...training.losses import segmentation_loss
from ...volumes.memory import peak_bytes

VARIANTS = (("SAM's", False), ("ours", False), ("SAM's", True), ("ours", True))


def bench_teacher(
    *, name: str, backbone: str, patch: tuple[int, int, int], classes: int, steps: int
) -> Iterator[dict[str, Any]]:
    """One row per variant: attention as SAM wrote it or ours, with and without activation checkpointing.

    A row holds `attention`, `checkpointing`, `seconds` (median of `steps` after one to warm up) and `peak_mb`: on a
    CPU the peak resident memory of the whole process, on a GPU what PyTorch allocated there.
    """
    for attention, checkpointing in VARIANTS:
        job = {
            "name": name,
            "backbone": backbone,
            "patch": patch,
            "classes": classes,
            "steps": steps,
            "attention": attention,
            "checkpointing": checkpointing,
        }
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(job)], capture_output=True, text=True, check=False
        )
        measured = json.loads(done.stdout) if done.returncode == 0 else {"fault": done.stderr.strip().splitlines()[-1]}
        yield {"attention": attention, "checkpointing": checkpointing, **measured}


def measure(
    *,
    name: str,
    backbone: str,
    patch: tuple[int, int, int],
    classes: int,
    steps: int,
    attention: str,
    checkpointing: bool,
) -> dict[str, Any]:
    """Train on random numbers with the base frozen, batch 1; float32 on a CPU, bf16 autocast on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        network = build_teacher(
            name, backbone=backbone, in_channels=1, num_classes=classes, patch=patch, checkpointing=checkpointing
        )
        image = torch.randn(1, 1, *patch)
        labels = torch.randint(classes, (1, *patch))
    network.freeze_pretrained()
    if attention == "SAM's":
        use_published_attention(network)
    optimizer = torch.optim.AdamW([parameter for parameter in network.parameters() if parameter.requires_grad])
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(image)
        loss = segmentation_loss(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = (torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes() or 0.0) / 2**20
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"seconds": median(seconds[1:]), "peak_mb": peak, "device": where}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(measure(**job | {"patch": tuple(job["patch"])})))
