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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samkd.configs.load import load_config
from samkd.deploy.runtime.manifest import Manifest
from samkd.distill.networks import load_network
from samkd.evaluation.records import ClassScore
from samkd.evaluation.scores import score_case, summarise
from samkd.training.predictor import make_predictor
from samkd.training.prompt_sampling import jittered_boxes, slice_boxes
from samkd.training.run import Run
from samkd.volumes.datasets.registry import Case, Dataset, read_labelled_case
from samkd.volumes.geometry import Geometry, Volume
from samkd.volumes.io.nifti import read_labels, write_scan
from samkd.volumes.pipeline import segment_with_answers
from samkd.volumes.plan import slice_axis
from samkd.volumes.preprocess import preprocess
from samkd.volumes.prompts import ClassPrompts, GridPrompts, ScanPrompts
from samkd.volumes.sliding_window import Window
from samkd.workflows.data import labelled_test, open_dataset
from samkd.workflows.teach import teach

Boxes = dict[int, np.ndarray]  # by class: x0, y0, z, x1, y1, z in voxels, a row for each slice
MARGIN = 3  # pixels


def thinned(volume: Volume, truth: np.ndarray, *, axis: int, every: int) -> tuple[Volume, np.ndarray]:
    """Every so many-th slice along an axis of a scan and its mask, from the middle of the first such group."""
    first = (every - 1) // 2
    pick = [slice(None)] * 3
    pick[axis] = slice(first, None, every)
    thin = truth[tuple(pick)]
    affine = volume.geometry.affine.copy()
    affine[:3, 3] += first * affine[:3, axis]
    affine[:3, axis] *= every
    return Volume(volume.array[(slice(None), *pick)], Geometry(affine, thin.shape)), thin


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
    """The encoder, which sees a slice once however many prompts it is shown; counts the CPU seconds of encoding a slice
    and of decoding a prompt's mask.
    """

    def __init__(self, network: Any) -> None:
        self.encode, self.known, self.seconds, self.slices = network.encode, {}, 0.0, 0
        self.decode, self.decoding, self.masks = network.masks, 0.0, 0
        network.encode, network.masks = self, self.mask

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        key = image.numpy().tobytes()
        if key not in self.known:
            started = time.process_time()
            self.known[key] = self.encode(image)
            self.seconds += time.process_time() - started
            self.slices += 1
        return self.known[key]

    def mask(self, *shown: torch.Tensor) -> torch.Tensor:
        started = time.process_time()
        result = self.decode(*shown)
        self.decoding += time.process_time() - started
        self.masks += 1
        return result

    @property
    def costs(self) -> str:
        encoding, decoding = self.seconds / max(1, self.slices), self.decoding / max(1, self.masks)
        return (
            f"CPU seconds: {encoding:.3f} a slice encoded ({self.slices}), {decoding:.3f} a mask decoded ({self.masks})"
        )


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


ENDS = ("-scan.nii.gz", "-prompts.json", ".nii.gz", "-report.json")


def scans(cases: list[Case], dataset: Dataset, run: Run, every: int) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Name, scan and mask of each case; with `every` above 1 of every so many-th slice."""
    for case in cases:
        volume, truth = read_labelled_case(case, dataset)
        if every > 1:
            volume, truth = thinned(volume, truth, axis=slice_axis(run.plan, volume.geometry), every=every)
        yield case.name, volume, truth


def with_torch(
    run: Run, cases: list[Case], dataset: Dataset, *, jitter: int, every: int, only: list[str], out: Path
) -> None:
    """Score every variant, or those whose names contain one of `only`; scores.json is written after every case."""
    network: Any = load_network(run)
    network.image_encoder.to(memory_format=torch.channels_last)  # LiteMedSAM's takes 40 % less time so on a CPU
    encoder, infer = Remembered(network), make_predictor(network)
    rng, scores = np.random.default_rng(0), {}
    for case_name, volume, truth in scans(cases, dataset, run, every):
        for name, shown in variants(truth, dataset, rng, jitter).items():
            if only and name not in only:
                continue
            labels = segment(run, infer, volume, [to_prompts(boxes, volume) for boxes in shown])
            scores.setdefault(name, {})[case_name] = rows_of(labels, truth, volume, dataset)
            report(name, scores[name])
        encoder.known.clear()
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.json").write_text(json.dumps(scores, indent=1, default=ClassScore.to_json))
    print(encoder.costs)


def with_package(
    package: Path, run: Run, cases: list[Case], dataset: Dataset, *, every: int, threads: int, out: Path
) -> None:
    """Tight boxes through the device's runtime: scores, seconds a prompted slice, peak memory.

    A package whose only class is `object` is shown one organ after the other, each in a process of its own; what two
    masks claim is the later one's.
    """
    (*_, last) = Manifest.read(package).class_names.values()
    scores, seconds, slices, memory = {}, 0.0, 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    for name, volume, truth in scans(cases, dataset, run, every):
        boxes, labels = tight(truth, dataset), np.zeros_like(truth)
        by_class = {dataset.labels[value]: {"boxes": rows.tolist()} for value, rows in boxes.items()}
        prompts = [by_class] if last != "object" else [{"object": rows} for rows in by_class.values()]
        scan, shown, mask, facts = (out / f"{name}{end}" for end in ENDS)
        write_scan(scan, volume)
        for classes, value in zip(prompts, boxes, strict=False):
            shown.write_text(json.dumps({"space": "voxel", "classes": classes}))
            command = [sys.executable, "-m", "samkd.deploy.runtime", "predict", scan, "-o", mask, "--package", package]
            command += ["--prompts", shown, "--report", facts, "--threads", threads]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
            told = json.loads(facts.read_text())
            seconds += told["scans"][0]["seconds"]["network"]
            memory = max(memory, told["peak_memory_mb"])
            prediction = read_labels(mask)[0]
            labels = prediction if last != "object" else np.where(prediction > 0, value, labels)
        slices += len(np.unique(np.concatenate([rows[:, 2] for rows in boxes.values()])))
        scores[name] = rows_of(labels, truth, volume, dataset)
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
    parser.add_argument("--side", type=int, default=256, help="pixels of the slices that the network sees")
    parser.add_argument("--every", type=int, default=1, help="use every so many-th slice of a scan")
    parser.add_argument("--cases", type=int, help="the first so many test cases")
    parser.add_argument("--only", action="append", default=[], help="one of the variants, by its printed name")
    parser.add_argument("--out", type=Path, default=Path("runs/zero-shot"))
    parser.add_argument("--package", type=Path, action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = ["phantom=null", "split=null", "classes=null", f"teacher.backbone={options.backbone}"]
    overrides += [f"teacher.plan.long_side={options.side}", f"teacher.plan.patch=[1,{options.side},{options.side}]"]
    config = load_config("phantom-published", [*overrides, "name=zero-shot"])
    dataset = open_dataset(config, options.data, runs=options.out)
    run = teach(config, data=options.data, runs=options.out, run=options.out / "run", weights=options.weights)
    cases = labelled_test(dataset)[: options.cases]
    if options.package:
        for package in options.package:
            masks = options.out / f"{package.name}-masks"
            with_package(package, run, cases, dataset, every=options.every, threads=options.threads, out=masks)
    else:
        with_torch(
            run,
            cases,
            dataset,
            jitter=options.jitter,
            every=options.every,
            only=options.only,
            out=options.out,
        )


if __name__ == "__main__":
    main()
