"""Every teacher into every student on the built-in phantom, tiny budgets: a table of mean test Dice.

    python benchmarks/matrix.py --runs runs/matrix

Each cell is what a user would type: `samkd distill` from a finished teacher, then `samkd predict` on the test scans,
and the masks it wrote are scored. The first row is each student without a teacher (lambda = 1), the first column each
teacher by itself. Steps are far fewer than in the configs: the table shows that every pair works, not what it can
reach. Killed, it goes on where it was: finished runs are used as they are.
"""

import argparse
from pathlib import Path

from verbs import samkd, settings

from samkd.workflows.evaluate import evaluate

TEACHERS = {"masam": 600, "medsa": 250, "autosam": 200, "sam3d": 200}  # steps
STUDENTS = {  # config, steps
    "swinunetr-tiny": ("phantom", 160),
    "swinunetr-small": ("phantom", 100),
    "mobilesam": ("phantom-efficientsam", 120),
    "efficientsam-ti": ("phantom-efficientsam", 200),
    "efficientsam-s": ("phantom-efficientsam", 100),
}
ALONE = "none"


def teach(name: str, run: Path, *, runs: Path, scale: float) -> None:
    steps = max(2, round(TEACHERS[name] * scale))
    budget = settings(teacher__training__steps=steps, teacher__training__validate_every=steps)
    config = "phantom" if name == "masam" else f"phantom-{name}"
    samkd("teach", "-c", config, "--run", run, "--runs", runs, *budget)


def distill(student: str, run: Path, teacher: Path, *, weight: float, runs: Path, scale: float) -> None:
    config, steps = STUDENTS[student]
    steps = max(2, round(steps * scale))
    budget = settings(student__training__steps=steps, student__training__validate_every=steps)
    samkd(
        *("distill", "-c", config, "--student", student, "--teacher", teacher, "--lambda", weight, "--no-control"),
        *("--run", run, "--runs", runs, *budget),
    )


def score(run: Path, data: Path) -> float:
    """Mean Dice of the masks that `samkd predict` writes for the test scans."""
    masks = run.parent / f"{run.name}-masks"
    samkd("predict", run, "-i", data / "imagesTs", "-o", masks)
    dice = evaluate(masks, data).summary.mean.dice
    assert dice is not None, "every test scan of the phantom holds an organ"
    return dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps")
    options = parser.parse_args()
    runs, rows = options.runs, {}
    for teacher in TEACHERS:
        run = runs / f"teach-{teacher}"
        teach(teacher, run, runs=runs, scale=options.scale)
        (data,) = (runs / "data").iterdir()
        rows[teacher] = [score(run, data)]
    first = runs / f"teach-{next(iter(TEACHERS))}"
    for teacher in (ALONE, *TEACHERS):
        for student in STUDENTS:
            run = runs / f"{teacher}-{student}"
            weight, source = (1.0, first) if teacher == ALONE else (0.5, runs / f"teach-{teacher}")
            distill(student, run, source, weight=weight, runs=runs, scale=options.scale)
            rows.setdefault(teacher, [float("nan")]).append(score(run, data))
    print(f"\n| teacher | by itself | {' | '.join(STUDENTS)} |")
    print("|---" * (2 + len(STUDENTS)) + "|")
    for teacher in (ALONE, *TEACHERS):
        alone, *cells = rows[teacher]
        print(f"| {teacher} | {'' if teacher == ALONE else f'{alone:.3f}'} | {' | '.join(f'{c:.3f}' for c in cells)} |")


if __name__ == "__main__":
    main()
