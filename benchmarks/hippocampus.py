"""What a teacher is worth on the Medical Segmentation Decathlon's hippocampus (Task04), for swinunetr-tiny.

    python benchmarks/hippocampus.py --data DIR --runs runs/few --labelled 18
    python benchmarks/hippocampus.py --data DIR --runs runs/all

Five networks teach together: three swinunetr-tiny of other seeds and two segresnet, trained on the same labels as the
student, for neither SAM's weights nor a GPU are asked for. Printed are the teachers, alone and together, three seeds of
the student against their controls (lambda 0.5 against 1), and for the first seed lambda 0, 0.2, 0.5, 0.8 and 1 (the
paper's Table 4). With --labelled, that many training cases keep their masks and the others join with L_mse alone. Every
run is a `samkd distill`, sized for a CPU; killed, it goes on where it was.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from verbs import samkd, settings

from samkd.distill.ensemble import Ensemble, EnsembleMember
from samkd.evaluation.paired_comparison import PairedDifference, paired_difference
from samkd.evaluation.records import CaseScores, DiceByCase
from samkd.evaluation.scores import score_case, summarise
from samkd.training.run import Run
from samkd.volumes.datasets.registry import read_labelled_case
from samkd.volumes.plan import grid
from samkd.volumes.preprocess import restore
from samkd.workflows.data import config_for, labelled_test, open_dataset

LAMBDAS = (0, 0.2, 0.5, 0.8, 1)
SEEDS = (0, 1, 2)


def trained(run: Path, options: argparse.Namespace, *words: object, name: str = "swinunetr-tiny", seed: int = 0) -> Run:
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
    return trained(run, options, "--lambda", 1, *words, **kind)


def test_scores(run: Run) -> CaseScores:
    scores = run.metrics().test
    assert scores is not None, f"{run.path}: this run has no test scores"
    return scores


def mean_dice(run: Run) -> dict[str, float | None]:
    return test_scores(run).summary.dice_by_class()


def mean_over_runs(runs: Sequence[Run]) -> DiceByCase:
    """Each case's Dice per class, averaged over runs; every case holds every class."""
    tables = [test_scores(run).dice() for run in runs]
    return {
        case: {name: float(np.mean([table[case][name] or 0.0 for table in tables])) for name in classes}
        for case, classes in tables[0].items()
    }


def together(runs: Sequence[Run], options: argparse.Namespace) -> str:
    """The row of the teachers' mean probabilities, on the test cases."""
    dataset = open_dataset(config_for("hippocampus", None, []), options.data, runs=options.runs)
    ensemble, rows = Ensemble([EnsembleMember.of(run) for run in runs]), {}
    for case in labelled_test(dataset):
        volume, truth = read_labelled_case(case, dataset)
        seen = grid(runs[0].plan, volume.geometry)
        mask = restore(ensemble.probabilities(volume, seen), seen, volume.geometry)
        rows[case.name] = score_case(
            mask, truth, spacing=volume.geometry.spacing, labels=dataset.labels, frames=volume.geometry.frames
        )
    dice = summarise(rows).dice_by_class().values()
    return "| all five teachers together | " + " | ".join(f"{value:.3f}" for value in dice) + " | |"


def row(title: str, run: Run, *, against: Run | None = None) -> str:
    note = ""
    if against is not None:
        note = told(paired_difference(test_scores(run).dice(), test_scores(against).dice())["mean"])
    return f"| {title} | " + " | ".join(f"{value:.3f}" for value in mean_dice(run).values()) + f" | {note} |"


def experiment(options: argparse.Namespace) -> None:
    labels = ("--labelled", options.labelled) if options.labelled else ()
    controls = [alone(options.runs / f"alone-{seed}", options, *labels, seed=seed) for seed in SEEDS]
    others = [
        alone(options.runs / f"segresnet-{seed}", options, *labels, name="segresnet", seed=seed) for seed in SEEDS[:2]
    ]
    taught = [word for teacher in (*controls, *others) for word in ("--teacher", teacher.path)]

    def student(run: str, weight: float, *, seed: int) -> Run:
        words = ("--lambda", weight, *labels, *taught, "--no-control")
        return trained(options.runs / run, options, *words, seed=seed)

    students = [student(f"taught-{seed}", 0.5, seed=seed) for seed in SEEDS]
    swept = {value: student(f"lambda-{value:g}", value, seed=SEEDS[0]) for value in LAMBDAS if value not in (0.5, 1)}
    swept |= {0.5: students[0], 1: controls[0]}

    print("\n| | " + " | ".join(mean_dice(controls[0])) + " | against its control |")
    print("|---|" + "---|" * (len(mean_dice(controls[0])) + 1))
    for seed, other in enumerate(others):
        print(row(f"teacher: segresnet, seed {seed}", other))
    print(together([*controls, *others], options))
    for seed, (control, made) in enumerate(zip(controls, students, strict=True)):
        print(row(f"control (and teacher), seed {seed}", control))
        print(row(f"student, seed {seed}", made, against=control))
    for value in LAMBDAS:
        print(row(f"seed 0, lambda {value:g}", swept[value], against=None if value == 1 else controls[0]))
    effects = paired_difference(mean_over_runs(students), mean_over_runs(controls))
    for name, effect in effects.items():
        print(f"three seeds, {name}: {told(effect)}")


def told(effect: PairedDifference) -> str:
    return f"{effect.difference:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}], p = {effect.p:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labelled", type=int)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    experiment(parser.parse_args())


if __name__ == "__main__":
    main()
