"""A published model shown prompts of every protocol: points, careless boxes, wrong points, each in five draws.

    python benchmarks/prompt_protocols.py DATA --weights litemedsam --every 10 --cases 5 --out runs/protocols

Every `--every`-th slice of each labelled test scan makes a thinner scan; each is encoded once for all prompts.
A class is shown on every slice that holds it. Prompts come from the true masks: scores of a user who knows.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zero_shot import Remembered, thinned

from samkd.configs.load import load_config
from samkd.distill.networks import load_network
from samkd.evaluation.records import CaseScores, ClassScore
from samkd.evaluation.rules import ScoringRules
from samkd.evaluation.score_tables import repetition_table
from samkd.evaluation.scores import case_scores, score_scan
from samkd.training.predictor import make_predictor
from samkd.training.prompt_protocol import PromptProtocol, keep_prompted, parse_protocol
from samkd.volumes.datasets.registry import read_labelled_case
from samkd.volumes.pipeline import segment
from samkd.volumes.plan import slice_axis
from samkd.workflows.data import labelled_test, open_dataset
from samkd.workflows.teach import teach

PROTOCOLS = (
    ("boxes", 1),
    ("boxes,iou=0.75", 5),
    ("boxes,iou=0.5", 5),
    ("boxes,iou=0.5,keep=box", 5),
    ("boxes,relax=0.05", 1),
    ("point,slices=each", 1),
    ("points:1,place=random,slices=each", 5),
    ("points:3,place=random,slices=each", 5),
    ("points:3,place=random,wrong=1,slices=each", 5),
    ("points:3,place=random,wrong=2,slices=each", 5),
    ("everything:16", 1),
)
Scores = dict[tuple[str, int], dict[str, tuple[ClassScore, ...]]]  # by protocol and repetition, then by case


def table(scores: Scores, class_names: list[str]) -> str:
    """A row per protocol: the mean Dice of each class, with the deviation between repetitions."""
    lines = [f"| shown | {' | '.join(class_names)} | mean | draws |", "|---|" + "---:|" * (len(class_names) + 2)]
    for protocol, repetitions in PROTOCOLS:
        results: list[CaseScores] = [
            case_scores(scores[protocol, number], rules=ScoringRules()) for number in range(repetitions)
        ]
        cells = [row[1] for row in repetition_table(results, title="").rows]
        lines.append(f"| `{protocol}` | {' | '.join(cells)} | {repetitions} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, default=Path("litemedsam"))
    parser.add_argument("--backbone", default="litemedsam")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/protocols"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = ["phantom=null", "split=null", "classes=null", f"teacher.backbone={options.backbone}", "name=protocols"]
    config = load_config("phantom-published", overrides)
    dataset = open_dataset(config, options.data, runs=options.out)
    run = teach(config, data=options.data, runs=options.out, run=options.out / "run", weights=options.weights)
    network: Any = load_network(run)
    encoder, infer = Remembered(network), make_predictor(network)
    plan, started, scores = run.plan, time.perf_counter(), {}
    for number, case in enumerate(labelled_test(dataset)[: options.cases], start=1):
        volume, truth = read_labelled_case(case, dataset)
        volume, truth = thinned(volume, truth, axis=slice_axis(plan, volume.geometry), every=options.every)
        grid = volume.geometry
        axis = slice_axis(plan, grid)
        masks: dict[PromptProtocol, np.ndarray] = {}  # before anything is kept out of them
        for text, repetitions in PROTOCOLS:
            for repetition in range(repetitions):
                protocol = parse_protocol(text).repeated(repetition)
                names, spacing = run.class_names, grid.spacing
                prompts = protocol.prompts(truth, name=case.name, labels=names, spacing=spacing, axis=axis)
                whole = replace(protocol, keep=None)
                if whole not in masks:
                    masks[whole] = segment(volume, plan, infer, num_classes=len(names), prompts=prompts)
                labels = masks[whole]
                if protocol.keep is not None:
                    labels = keep_prompted(labels, prompts, protocol.keep, spacing=spacing)
                rows = score_scan(case.name, labels, truth, grid=grid, labels=dataset.labels)
                scores.setdefault((text, repetition), {}).update(rows)
        encoder.known.clear()
        seconds = (
            f"{time.perf_counter() - started:.0f} s, {encoder.seconds / max(1, encoder.slices):.2f} s a slice encoded"
        )
        print(f"\n{number} cases, every {options.every}th slice, {encoder.slices} slices with a prompt; {seconds}\n")
        print(table(scores, [name for value, name in dataset.labels.items() if value]), flush=True)
    values = [
        {"protocol": text, "draw": draw, "scores": case_scores(rows).to_json()} for (text, draw), rows in scores.items()
    ]
    (options.out / "scores.json").write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
