"""What a published model finds without any training, shown a box on every slice that holds an organ.

    python benchmarks/zero_shot.py DATA --weights litemedsam --out runs/zero-shot
    python benchmarks/zero_shot.py DATA --weights litemedsam --out runs/zero-shot --package PACKAGE [--package ...]

The first scores the torch network on the labelled test cases of DATA with tight boxes, with boxes whose edges are off
by up to `--jitter` pixels in either direction, and with what may mend those. The second gives the tight boxes to the
runtime.pyz of packages, each a process of its own. Boxes come from the true masks: scores of a user who knows.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samkd.configs.load import load_config
from samkd.distill.networks import load_network
from samkd.evaluation.records import ClassScore
from samkd.evaluation.scores import score_case, summarise
from samkd.training.predictor import make_predictor
from samkd.training.prompt_sampling import jittered_boxes, slice_boxes
from samkd.training.run import Run
from samkd.volumes.datasets.registry import Case, Dataset, read_labelled_case
from samkd.volumes.geometry import Volume
from samkd.volumes.io.nifti import read_labels
from samkd.volumes.pipeline import segment_with_answers
from samkd.volumes.preprocess import preprocess
from samkd.volumes.prompts import ClassPrompts, GridPrompts, ScanPrompts
from samkd.volumes.sliding_window import Window
from samkd.workflows.data import labelled_test, open_dataset
from samkd.workflows.teach import teach

Boxes = dict[int, np.ndarray]  # by class: x0, y0, z, x1, y1, z in voxels, a row for each slice
MARGIN = 3  # pixels


def tight(truth: np.ndarray, dataset: Dataset) -> Boxes:
    masks = {value: truth == value for value in dataset.labels if value}
    return {value: np.array(slice_boxes(mask)) for value, mask in masks.items() if mask.any()}


def widened(boxes: Boxes, pixels: float) -> Boxes:
    step = pixels * np.array([-1, -1, 0, 1, 1, 0])
    return {value: rows + step for value, rows in boxes.items()}


def jittered(boxes: Boxes, rng: np.random.Generator, pixels: int) -> Boxes:
    return {value: jittered_boxes(rng, rows, pixels) for value, rows in boxes.items()}


def smoothed(boxes: Boxes) -> Boxes:
    """Every edge the median of its own and of those on the slices below and above, where the organ is there too."""
    result = {}
    for value, rows in boxes.items():
        by_slice = {row[2]: row for row in rows}
        near = [[by_slice.get(z + step, by_slice[z]) for step in (-1, 0, 1)] for z in by_slice]
        result[value] = np.median(near, axis=1)
        result[value][:, [2, 5]] = rows[:, [2, 5]]
    return result


def to_prompts(boxes: Boxes, volume: Volume) -> ScanPrompts:
    """The boxes, cut at the slice's edges."""
    sides = np.array(volume.geometry.shape[::-1]) - 1
    cut = {value: np.clip(rows, 0, [*sides, *sides]) for value, rows in boxes.items()}
    rows_of = {value: tuple(map(tuple, rows.tolist())) for value, rows in cut.items()}
    return ScanPrompts({value: ClassPrompts(boxes=rows) for value, rows in rows_of.items()}, "voxel")


class Remembered:
    """The encoder, which sees a slice once however many prompts it is shown; counts its seconds."""

    def __init__(self, network: Any) -> None:
        self.encode, self.known, self.seconds, self.slices = network.encode, {}, 0.0, 0
        network.encode = self

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        key = image.numpy().tobytes()
        if key not in self.known:
            started = time.perf_counter()
            self.known[key] = self.encode(image)
            self.seconds += time.perf_counter() - started
            self.slices += 1
        return self.known[key]


def segment(run: Run, infer: Callable[..., Any], volume: Volume, shown: list[ScanPrompts]) -> np.ndarray:
    """Labels [D, H, W] from the mean of the probabilities that each of the prompts gives."""
    prepared, classes = preprocess(volume, run.plan), len(run.class_names)
    placed = [prompts.onto(prepared.geometry, scan=volume.geometry, classes=classes) for prompts in shown]

    def answers(window: Window, _: GridPrompts | None):
        together = zip(*(window.infer(infer, prompts=prompts) for prompts in placed), strict=True)
        return (np.mean(each, axis=0) for each in together)

    return segment_with_answers(prepared, volume.geometry, run.plan, answers, num_classes=classes)


def rows_of(labels: np.ndarray, truth: np.ndarray, volume: Volume, dataset: Dataset) -> tuple[ClassScore, ...]:
    grid = volume.geometry
    return score_case(labels, truth, spacing=grid.spacing, labels=dataset.labels, frames=grid.frames)


def variants(truth: np.ndarray, dataset: Dataset, rng: np.random.Generator, jitter: int) -> dict[str, list[Boxes]]:
    """What the network is shown, by name; several boxes are averaged."""
    exact = tight(truth, dataset)
    off, other = jittered(exact, rng, jitter), jittered(exact, rng, jitter)
    return {
        "tight": [exact],
        f"tight, {MARGIN} pixels wider": [widened(exact, MARGIN)],
        f"edges off by up to {jitter}": [off],
        f"edges off, {MARGIN} pixels wider": [widened(off, MARGIN)],
        "edges off, median of three slices": [smoothed(off)],
        "edges off, two boxes averaged": [off, other],
    }


def with_torch(run: Run, cases: list[Case], dataset: Dataset, jitter: int, out: Path) -> None:
    """Score every variant; scores.json is written after every case."""
    network: Any = load_network(run)
    encoder, infer = Remembered(network), make_predictor(network)
    rng, scores = np.random.default_rng(0), {}
    for case in cases:
        volume, truth = read_labelled_case(case, dataset)
        for name, shown in variants(truth, dataset, rng, jitter).items():
            labels = segment(run, infer, volume, [to_prompts(boxes, volume) for boxes in shown])
            scores.setdefault(name, {})[case.name] = rows_of(labels, truth, volume, dataset)
            report(name, scores[name])
        encoder.known.clear()
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.json").write_text(json.dumps(scores, indent=1, default=ClassScore.to_json))
    print(f"encoder: {encoder.seconds / max(1, encoder.slices):.2f} s a slice over {encoder.slices} slices")


def with_package(package: Path, cases: list[Case], dataset: Dataset, threads: int, out: Path) -> None:
    """Tight boxes through the device's runtime: scores, seconds a prompted slice, peak memory."""
    scores, seconds, slices, memory = {}, 0.0, 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    for case in cases:
        volume, truth = read_labelled_case(case, dataset)
        boxes = tight(truth, dataset)
        prompts = {dataset.labels[value]: {"boxes": rows.tolist()} for value, rows in boxes.items()}
        files = [out / f"{case.name}{end}" for end in ("-prompts.json", ".nii.gz", "-report.json")]
        files[0].write_text(json.dumps({"space": "voxel", "classes": prompts}))
        command = [sys.executable, "-m", "samkd.deploy.runtime", "predict", *case.image.files, "-o", files[1]]
        command += ["--package", package, "--prompts", files[0], "--report", files[2], "--threads", threads]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        told = json.loads(files[2].read_text())
        seconds += told["scans"][0]["seconds"]["network"]
        slices += len(np.unique(np.concatenate([rows[:, 2] for rows in boxes.values()])))
        memory = max(memory, told["peak_memory_mb"])
        scores[case.name] = rows_of(read_labels(files[1])[0], truth, volume, dataset)
        report(package.name, scores)
    print(f"{package.name}: {seconds / slices:.2f} s a prompted slice, peak memory {memory:.0f} MB")


def report(name: str, scores: dict[str, Any]) -> None:
    """One row: Dice by class and their mean over the cases so far."""
    summary = summarise(scores)
    classes = " ".join(f"{row.dice:.3f}" for row in summary.per_class.values())
    print(f"{name:40} {len(scores)} cases: mean {summary.mean.dice:.3f}; {classes}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, default=Path("litemedsam"))
    parser.add_argument("--backbone", default="litemedsam")
    parser.add_argument("--jitter", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/zero-shot"))
    parser.add_argument("--package", type=Path, action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = ["phantom=null", "split=null", "classes=null", f"teacher.backbone={options.backbone}"]
    config = load_config("phantom-published", [*overrides, "name=zero-shot"])
    dataset = open_dataset(config, options.data, runs=options.out)
    run = teach(config, data=options.data, runs=options.out, run=options.out / "run", weights=options.weights)
    cases = labelled_test(dataset)
    if options.package:
        for package in options.package:
            with_package(package, cases, dataset, options.threads, options.out / f"{package.name}-masks")
    else:
        with_torch(run, cases, dataset, options.jitter, options.out)


if __name__ == "__main__":
    main()
