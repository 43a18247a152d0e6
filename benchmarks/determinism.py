"""Seconds of a training step with and without deterministic algorithms, alternating in one process.

    python benchmarks/determinism.py --patch 96 96 96 --steps 10

SwinUNETR-tiny, batch 1, 7 classes, random numbers, float32, as many threads as PyTorch takes. A step is forward, loss,
backward and update; the medians of `--steps` each are printed, after one of each to warm up.
"""

import argparse
import time
from contextlib import nullcontext
from statistics import median

import torch

from samkd.students import build_student
from samkd.training.determinism import deterministic
from samkd.training.losses import segmentation_loss

CLASSES = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96), metavar=("D", "H", "W"))
    parser.add_argument("--steps", type=int, default=10, help="of each kind")
    args = parser.parse_args()

    torch.manual_seed(0)
    network = build_student("swinunetr-tiny", in_channels=1, num_classes=CLASSES, patch=tuple(args.patch))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    image, labels = torch.randn(1, 1, *args.patch), torch.randint(CLASSES, (1, *args.patch))

    def step() -> float:
        started = time.perf_counter()
        segmentation_loss(network(image), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    seconds = {"deterministic": [], "any order": []}
    for number in range(args.steps + 1):
        for name, times in seconds.items():
            with deterministic(torch.device("cpu")) if name == "deterministic" else nullcontext():
                spent = step()
            if number:
                times.append(spent)
    ordered, free = median(seconds["deterministic"]), median(seconds["any order"])
    patch = " x ".join(map(str, args.patch))
    print(f"swinunetr-tiny, {patch}, {torch.get_num_threads()} threads, {args.steps} steps each, medians:")
    print(f"deterministic {ordered:.3f} s, any order {free:.3f} s, ratio {ordered / free:.3f}")


if __name__ == "__main__":
    main()
