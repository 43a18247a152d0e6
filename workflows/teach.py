"""samkd teach: a config's teacher, fitted to a config's dataset."""

from pathlib import Path

from ..configs.schema import Config
from ..sam.packaged_weights import find_weights
from ..teachers import check_teacher
from ..teachers.train import teach as train_teacher
from ..training.ranks import main_first
from ..training.run import Run
from .data import open_dataset


def teach(
    config: Config,
    *,
    data: Path | None,
    runs: Path,
    run: Path | None = None,
    weights: Path | None = None,
    start: Path | None = None,
    devices: int = 1,
    vram: float | None = None,
) -> Run:
    """Open the dataset, train the teacher and return its run; a run that lies there already is continued.

    `weights` is a published checkpoint of the teacher's backbone, or its name in sam.packaged_weights, `start` a run of
    the same network whose weights it starts from, `vram` a budget of memory in bytes. Raises what find_weights,
    open_dataset and teachers.train.teach raise; an unknown teacher is a UsageError before anything is read.
    """
    check_teacher(config.teacher.name, config.teacher.backbone)
    weights = find_weights(weights) if weights else None
    with main_first():
        dataset = open_dataset(config, data, runs=runs)
    return train_teacher(config, dataset, runs=runs, run=run, weights=weights, start=start, devices=devices, vram=vram)
