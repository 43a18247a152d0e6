"""A teacher that knows more than its labels: Med-SA on LiteMedSAM's published weights, automatic, against its student.

    python benchmarks/above_student.py chaos-t2 DATA --out runs/above
    python benchmarks/above_student.py hippocampus DATA --out runs/above --seeds 0 --teacher-steps 2 --steps 2

Printed are the teacher, the student alone (lambda 1), the student taught with eq. 2, with a Dice loss between
probabilities besides (`student.distillation.dice=1`), and with classes that weigh the same (`balance_classes`), three
seeds of each student, on validation and test cases, with the differences over the test cases. All see the same labels:
the 11 training cases of CHAOS T2-SPIR, of which one is the validation case, or 18 of the first 40 of the hippocampus,
of which two are, and whose other cases join the taught student without masks; its test cases are the first 20. Every
run is a `samkd teach` or `samkd distill`; killed, it goes on where it was.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from boxes_for_masks import STUDENT, mean_over, with_mean
from verbs import samkd, settings

from samkd.evaluation.paired_comparison import paired_difference
from samkd.evaluation.records import CaseScores
from samkd.training.run import Run
from samkd.volumes.datasets.registry import read_dataset

ARMS = {
    "alone": [],
    "taught": [],
    "taught+dice": settings(student__distillation__dice=1),
    "taught+balanced": settings(student__distillation__balance_classes=True),
}
# LiteMedSAM saw pictures in [0, 1]; a token is 4 pixels.
TEACHER: dict[str, Any] = {
    "name": "medsa",
    "backbone": "litemedsam",
    "plan": {
        "orientation": "SPL",
        "intensity": [{"rule": "percentile", "low": 0.5, "high": 99.5}],
        "overlap": 0.34,
    },
    "training": {
        "batch": 1,
        "learning_rate": 5e-4,
        "warmup": 20,
        "foreground": 0.8,
        "precision": "bf16-mixed",
        "augmentation": {"rotate_degrees": 10, "scale": 0.1, "brightness": 0.1, "contrast": 0.1},
    },
}
TASKS: dict[str, dict[str, Any]] = {
    "chaos-t2": {
        "side": 128,
        "slices": 3,
        "validation": 1,
        "cases": None,
        "test": None,
        "labelled": None,
        "student": {},
        "teacher_steps": 400,
        "steps": 300,
    },
    "hippocampus": {
        "side": 128,
        "slices": 3,
        "validation": 2,
        "cases": 40,
        "test": 20,
        "labelled": 16,
        "student": {"spacing": [1.0, 1.0, 1.0], "patch": [32, 64, 32]},
        "teacher_steps": 500,
        "steps": 300,
    },
}


def write_config(task: str, options: argparse.Namespace) -> Path:
    """The config of a task: both sections, the cases, and how many of them keep their masks."""
    facts = TASKS[task]
    dataset = read_dataset(options.data)
    training = [case.name for case in dataset.training][: facts["cases"]]
    test = [case.name for case in dataset.test][: facts["test"]]
    validation = facts["validation"]
    cases = {"train": training[validation:], "validation": training[:validation]}
    teacher, student = TEACHER | {}, STUDENT | {}
    size = {"size": [None, facts["side"], facts["side"]], "patch": [facts["slices"], facts["side"], facts["side"]]}
    teacher["plan"] = TEACHER["plan"] | size
    student["plan"] = STUDENT["plan"] | facts["student"]
    steps = {"steps": options.teacher_steps, "validate_every": max(1, options.teacher_steps // 2)}
    teacher["training"] = TEACHER["training"] | steps
    student["training"] = STUDENT["training"] | {"steps": options.steps, "validate_every": options.steps}
    content = {
        "name": f"above-{task}",
        "data": str(options.data.resolve()),
        "split": {"cases": {**cases, "test": test}},
        "labelled": facts["labelled"],
        "teacher": teacher,
        "student": student,
    }
    path = options.out / f"above-{task}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def trained(verb: str, run: Path, *words: object) -> Run:
    """A run, as a user would train it."""
    if not (run / "metrics.json").exists():
        samkd(verb, "--run", run, *words)
    return Run.read(run)


def scores(run: Run) -> CaseScores:
    """The scores on the test cases that training ended with."""
    test = run.metrics().test
    assert test is not None, f"{run.path}: has no test scores"
    return test


def print_rows(name: str, runs: Sequence[Run]) -> None:
    """A row of Dice, the mean over seeds, on test cases; then the mean Dice on the validation cases."""
    dice = with_mean(mean_over([scores(run).dice() for run in runs]))
    steered = [best.dice for run in runs if (best := run.metrics().validation) is not None]
    by_seed = ", ".join(f"{with_mean(scores(run).dice())['mean']:.3f}" for run in runs)
    cells = " | ".join(f"{value:.3f}" for value in dice.values())
    print(f"| {name} | {cells} | {by_seed} | {np.mean(steered):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/above"))
    parser.add_argument("--weights", default="litemedsam")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--teacher-steps", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    facts = TASKS[options.task]
    options.teacher_steps = options.teacher_steps or facts["teacher_steps"]
    options.steps = options.steps or facts["steps"]
    options.out.mkdir(parents=True, exist_ok=True)
    where = ("-c", write_config(options.task, options), "--runs", options.out)
    teacher = trained("teach", options.out / f"{options.task}-teacher", *where, "--weights", options.weights)
    students: dict[str, list[Run]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            who = ["--lambda", 1] if arm == "alone" else ["--lambda", 0.5, "--teacher", teacher.path, "--no-control"]
            run = options.out / f"{options.task}-{arm}-{seed}"
            students[arm].append(trained("distill", run, *where, *who, *settings(seed=seed), *ARMS[arm]))

    names = list(with_mean(scores(teacher).dice()))
    print(f"\n| {options.task} | " + " | ".join(names) + " | mean of each seed | validation |")
    print("|---|" + "---|" * (len(names) + 2))
    print_rows("teacher", [teacher])
    for arm, runs in students.items():
        print_rows(arm, runs)
    print("\n| difference over the test cases | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    tables = {arm: mean_over([scores(run).dice() for run in runs]) for arm, runs in students.items()}
    tables["teacher"] = scores(teacher).dice()
    for arm in [name for name in tables if name != "alone"]:
        effects = paired_difference(tables[arm], tables["alone"])
        told = [f"{effects[n].difference:+.3f} [{effects[n].low:+.3f}, {effects[n].high:+.3f}]" for n in names]
        print(f"| {arm} minus alone | " + " | ".join(told) + " |")


if __name__ == "__main__":
    main()
