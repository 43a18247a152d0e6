"""The verbs on a tiny phantom, in this process, and the runs that they made."""

from pathlib import Path

from typer.testing import CliRunner

from samkd.cli.app import app
from samkd.training.run import Run

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


def samkd(*arguments, runs: Path, sets=TINY):
    overrides = [part for override in sets for part in ("--set", override)]
    return CliRunner().invoke(app, [*map(str, arguments), "--runs", str(runs), *overrides])


def data_of(teacher: Path) -> list[str]:
    """The phantom made for the teachers, so that no other run makes it again."""
    return ["-c", "phantom", "--data", str(Run.read(teacher).config.data)]


def made(runs: Path, stage: str) -> list[Run]:
    return [Run.read(path) for path in sorted(runs.glob(f"{stage}-*"))]
