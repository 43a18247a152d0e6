"""What a training step costs in samkd's loop and in a plain one of PyTorch and MONAI, side by side.

    python benchmarks/training_step.py --patch 96 96 96 --steps 5

SwinUNETR-tiny, 7 classes, batch 1, float32, Dice and cross-entropy, AdamW, gradients clipped, patches of a generated CT
without augmentation, half of them around an organ. Each side is a process of its own; a step goes from one forward pass
to the next, so that drawing the patch, update, log and whatever the loop does besides are in it, and the first is left
out. "waiting" is the part that draws patches. samkd's side has its own attention, an exact resume (sums in a fixed
order), and a run folder; MONAI's has its network, RandCropByPosNegLabeld and DiceCELoss. CPU seconds are those of all
threads, and say more than seconds where the machine has other work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIDES = ("torch and MONAI", "samkd")
CLASSES = 7
FEATURES = 12  # of SwinUNETR-tiny at the first level
RATE, DECAY, CLIP = 1e-3, 1e-5, 1.0
SEED = 5

Triple = tuple[int, int, int]


class Clock:
    """CPU and wall seconds at the start of each step, and those spent on drawing patches in between."""

    def __init__(self) -> None:
        self.starts: list[tuple[float, float]] = []
        self.waits: list[float] = []

    def step(self) -> None:
        self.starts.append((time.process_time(), time.perf_counter()))

    def waiting(self, draw: Callable[[], Any]) -> Any:
        started = time.process_time()
        drawn = draw()
        self.waits.append(time.process_time() - started)
        return drawn

    def row(self) -> dict[str, float]:
        """Medians over the steps but the first."""
        processor, wall = (np.diff([start[index] for start in self.starts])[1:] for index in range(2))
        from samkd.volumes.memory import peak_bytes

        return {
            "cpu_seconds": median(processor),
            "seconds": median(wall),
            "waiting": median(self.waits[1:]),
            "peak_mb": (peak_bytes() or 0) / 1e6,
        }


def scan(patch: Triple) -> tuple[np.ndarray, np.ndarray]:
    """A generated CT [1, D, H, W] from 0 to 1 that is larger than the patch, and its labels [D, H, W]."""
    from samkd.volumes.datasets.phantom.generate import make_case

    d, h, w = (size + 32 for size in patch)
    volume, labels = make_case(SEED, shape=(d, h, w), orientation="SPL")
    return np.clip((volume.array + 200) / 450, 0, 1).astype(np.float32), labels


def ours(patch: Triple, steps: int, clock: Clock) -> None:
    """samkd's loop, as teach and distill run it."""
    import torch
    from lightning.fabric import Fabric

    from samkd.configs.schema import Augmentation, Training
    from samkd.students import build_student
    from samkd.training.loop import fit
    from samkd.training.patches import PatchBatches
    from samkd.training.prepared import PreparedCase
    from samkd.training.run import Run
    from samkd.training.run_config import RunConfig
    from samkd.training.step import SupervisedStep

    class Batches(PatchBatches):
        def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
            return clock.waiting(lambda: super(Batches, self).__getitem__(step))

    class Step(SupervisedStep):
        def __call__(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], number: int) -> Any:
            clock.step()
            return super().__call__(model, batch, number)

    image, labels = scan(patch)
    places = {int(value): np.argwhere(labels == value) for value in np.unique(labels) if value}
    case = PreparedCase("a", image, labels.astype(np.uint8), (1.0, 1.0, 1.0), places, float(image.min()))
    settings = Training(steps=steps, learning_rate=RATE, weight_decay=DECAY, clip_norm=CLIP)
    torch.manual_seed(0)
    batches = Batches([case], patch=patch, batch=1, steps=steps, foreground=0.5, augmentation=Augmentation(), seed=SEED)
    values = {
        "stage": "teach",
        "network": {
            "family": "students",
            "name": "swinunetr-tiny",
            "in_channels": 1,
            "num_classes": CLASSES,
            "patch": [*patch],
        },
        "objective": {"lambda": 1.0, "pretrained": None},
        "plan": {"intensity": [{"rule": "zscore"}], "patch": [*patch]},
        "labels": {str(value): f"class {value}" for value in range(CLASSES)},
        "channels": ["CT"],
        "cases": {"dataset": "phantom", "train": ["a"], "validation": [], "content": "0"},
        "seed": SEED,
        "training": settings.model_dump(mode="json"),
        "data": "generated",
        "recipe": {"name": "training step"},
    }
    with tempfile.TemporaryDirectory() as folder:
        fit(
            build_student("swinunetr-tiny", in_channels=1, num_classes=CLASSES, patch=patch),
            Step(dice_weight=1.0, cross_entropy_weight=1.0),
            batches=batches,
            validate=None,
            settings=settings,
            run=Run.create(Path(folder) / "run", RunConfig.from_dict(values)),
            fabric=Fabric(accelerator="cpu", devices=1),
            title="training step",
        )


def plain(patch: Triple, steps: int, clock: Clock) -> None:
    """The loop that MONAI's tutorials write."""
    import torch
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import Dataset
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.swin_unetr import SwinUNETR
    from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld

    image, labels = scan(patch)
    case = {"image": torch.from_numpy(image), "label": torch.from_numpy(labels[None].astype(np.int64))}
    crop = RandCropByPosNegLabeld(["image", "label"], "label", spatial_size=patch, num_samples=1)
    torch.manual_seed(0)
    network = SwinUNETR(in_channels=1, out_channels=CLASSES, feature_size=FEATURES).train()
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    batches = iter(DataLoader(Dataset([case] * steps, crop), batch_size=1, num_workers=0))
    for _ in range(steps):
        batch = clock.waiting(lambda: next(batches))
        clock.step()
        loss = loss_function(network(batch["image"]), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96), metavar=("D", "H", "W"))
    parser.add_argument("--steps", type=int, default=5, help="of each side that are counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # in the process of its own
    options = parser.parse_args()
    d, h, w = options.patch
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        clock, side = Clock(), ours if options.side == "samkd" else plain
        side((d, h, w), options.steps + 2, clock)  # one to warm up, and the start of one more
        print(json.dumps(clock.row()))
        return
    print(f"\nSwinUNETR-tiny, patch {d} x {h} x {w}, {options.threads} thread(s), medians of {options.steps} steps")
    print("\n| loop | CPU seconds a step | seconds | waiting for a patch | peak memory |\n|---|---:|---:|---:|---:|")
    for side in SIDES:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{side}: exit {done.returncode}: {done.stderr[-2000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        cells = f"{row['cpu_seconds']:.2f} | {row['seconds']:.2f} | {row['waiting']:.3f} | {row['peak_mb']:.0f} MB"
        print(f"| {side} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
