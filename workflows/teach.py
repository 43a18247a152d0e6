"""samkd teach: a recipe's teacher, fitted to a recipe's dataset."""

from pathlib import Path

from ..configs.schema import Recipe
from ..teachers import check_teacher
from ..teachers.train import teach as train_teacher
from ..training.run import Run
from .data import open_dataset


def teach(
    recipe: Recipe,
    *,
    data: Path | None,
    runs: Path,
    run: Path | None = None,
    weights: Path | None = None,
    start: Path | None = None,
    devices: int = 1,
) -> Run:
    """Open the dataset, train the teacher and return its run; a run that lies there already is continued.

    `weights` is a published checkpoint of the teacher's backbone, `start` a run of the same network whose weights it
    starts from. Raises what open_dataset and teachers.train.teach raise; an unknown teacher is a UsageError before
    anything is read.
    """
    check_teacher(recipe.teacher.name, recipe.teacher.backbone)
    dataset = open_dataset(recipe, data, runs=runs)
    return train_teacher(recipe, dataset, runs=runs, run=run, weights=weights, start=start, devices=devices)
