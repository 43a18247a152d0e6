"""The verbs on a tiny phantom, in this process, and the runs that they write."""

from collections.abc import Sequence
from pathlib import Path

from samkd.training.run import Run

from .command_line import Outcome, run_cli

SLICES = [
    *("phantom.training=4", "phantom.test=1", "student.plan.size=[6,32,32]", "student.plan.patch=[3,32,32]"),
    *("student.training.steps=3", "student.training.batch=1", "student.prompts.kind=points"),
    *("student.prompts.count=2", "student.prompts.share=0.99"),
]
TINY = [
    "phantom.training=5",
    "phantom.test=2",
    "student.plan.spacing=[12,12,12]",
    "student.plan.patch=[32,32,64]",
    "student.plan.overlap=0",
    "student.training.steps=1",
    "student.training.batch=1",
]


def run_verb(*arguments: object, runs: Path, sets: Sequence[str] = TINY) -> Outcome:
    """Run a verb that makes run folders under `runs`, with every override of `sets`, in this process."""
    overrides = [part for override in sets for part in ("--set", override)]
    return run_cli(*arguments, "--runs", runs, *overrides, in_process=True)


def data_of(teacher: Path) -> list[str]:
    """The phantom of the teachers, so that no other run writes it again."""
    return ["-c", "phantom", "--data", str(Run.read(teacher).config.data)]


def runs_of(runs: Path, stage: str) -> list[Run]:
    """The runs of one stage (`teach`, `distill`, `control`) in the order of their names."""
    return [Run.read(path) for path in sorted(runs.glob(f"{stage}-*"))]
