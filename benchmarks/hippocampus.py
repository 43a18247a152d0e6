"""What a teacher is worth on the Medical Segmentation Decathlon's hippocampus (Task04), for swinunetr-tiny.

    python benchmarks/hippocampus.py --data DIR --part sweep --runs runs/sweep
    python benchmarks/hippocampus.py --data DIR --part few   --runs runs/few

sweep: three networks with all labels, of other seeds and kinds, teach together; lambda 0, 0.2, 0.5, 0.8 and 1 (the
paper's Table 4). few: 18 training cases keep their masks, the others join with L_mse alone; five networks trained on
those 18 teach together; three seeds of the student, each against its control. Every run is a `samkd distill`, sized
for a CPU; killed, it goes on where it was.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from verbs import samkd, settings

from samkd.distill.effect import Rows, paired_difference
from samkd.training.run import Run

LAMBDAS = (0, 0.2, 0.5, 0.8, 1)
LABELLED = 18
SEEDS = (0, 1, 2)


def student(run: Path, options: argparse.Namespace, *words: object, name: str = "swinunetr-tiny", seed: int = 0) -> Run:
    if not (run / "metrics.json").exists():
        steps = settings(
            student__training__steps=options.steps,
            student__training__validate_every=options.steps,
            student__training__learning_rate=options.learning_rate,
            seed=seed,
        )
        where = ("-c", "hippocampus", "--data", options.data, "--runs", options.runs, "--run", run)
        samkd("distill", *where, "--student", name, *words, *steps)
    return Run.read(run)


def alone(run: Path, options: argparse.Namespace, *words: object, **kind: Any) -> Run:
    return student(run, options, "--lambda", 1, *words, **kind)


def mean_dice(run: Run) -> dict[str, float]:
    summary = run.metrics()["test"]["summary"]
    return {name: row["dice"] for name, row in [*summary["per_class"].items(), ("mean", summary["mean"])]}


def mean_rows(runs: Sequence[Run]) -> Rows:
    """Each case's Dice per class, averaged over runs."""
    tables = [run.metrics()["test"]["cases"] for run in runs]
    return {
        case: [
            {"name": rows[0]["name"], "dice": float(np.mean([row["dice"] for row in rows]))}
            for rows in zip(*(table[case] for table in tables), strict=True)
        ]
        for case in tables[0]
    }


def row(name: object, dice: dict[str, float], note: str = "") -> str:
    return f"| {name} | " + " | ".join(f"{value:.3f}" for value in dice.values()) + f" | {note} |"


def sweep(options: argparse.Namespace) -> None:
    first = alone(options.runs / "teacher-0", options, seed=1)
    same = ("--split", first.path / "splits.json")  # so that no teacher has seen a validation case
    teachers = [first]
    for index, seed in enumerate((2, 3), 1):
        teachers.append(alone(options.runs / f"teacher-{index}", options, *same, name="segresnet", seed=seed))
    taught = [word for teacher in teachers for word in ("--teacher", teacher.path)]
    students = {
        value: student(options.runs / f"lambda-{value:g}", options, "--lambda", value, *same, *taught, "--no-control")
        for value in LAMBDAS
    }
    control = students[1].metrics()["test"]["cases"]
    print("\n| | " + " | ".join(mean_dice(first)) + " | against lambda 1 |")
    print("|---|" + "---|" * (len(mean_dice(first)) + 1))
    for teacher in teachers:
        print(row(f"teacher: {teacher.config['network']['name']}", mean_dice(teacher)))
    for value, made in students.items():
        effect = paired_difference(made.metrics()["test"]["cases"], control)["mean"]
        print(row(f"lambda {value:g}", mean_dice(made), "" if value == 1 else told(effect)))


def few(options: argparse.Namespace) -> None:
    labels = ("--labelled", LABELLED)
    controls = [alone(options.runs / f"alone-{seed}", options, *labels, seed=seed) for seed in SEEDS]
    others = [
        alone(options.runs / f"segresnet-{seed}", options, *labels, name="segresnet", seed=seed) for seed in SEEDS[:2]
    ]
    taught = [word for teacher in (*controls, *others) for word in ("--teacher", teacher.path)]
    students = [
        student(options.runs / f"taught-{seed}", options, "--lambda", 0.5, *labels, *taught, "--no-control", seed=seed)
        for seed in SEEDS
    ]
    print("\n| | " + " | ".join(mean_dice(controls[0])) + " | against its control |")
    print("|---|" + "---|" * (len(mean_dice(controls[0])) + 1))
    for seed, other in enumerate(others):
        print(row(f"teacher: segresnet, seed {seed}", mean_dice(other)))
    for seed, (control, made) in enumerate(zip(controls, students, strict=True)):
        effect = paired_difference(made.metrics()["test"]["cases"], control.metrics()["test"]["cases"])["mean"]
        print(row(f"control, seed {seed}", mean_dice(control)))
        print(row(f"student, seed {seed}", mean_dice(made), told(effect)))
    effects = paired_difference(mean_rows(students), mean_rows(controls))
    for name, effect in effects.items():
        print(f"three seeds, {name}: {told(effect)}")


def told(effect: dict[str, Any]) -> str:
    return f"{effect['difference']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}], p = {effect['p']:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("sweep", "few"), required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    {"sweep": sweep, "few": few}[options.part](options)


if __name__ == "__main__":
    main()
