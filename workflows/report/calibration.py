"""How well the probabilities of student and package are calibrated on the test scans."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...evaluation.calibration import Reliability, scored_voxels, temperature_of
from ...training.progress import Bar
from ...volumes.datasets.registry import Case, Dataset, read_labelled_case
from ...volumes.geometry import Volume
from ...volumes.pipeline import Model
from ..models import load_model


@dataclass(frozen=True)
class Calibration:
    """The reliability of a model on the test scans: as it is, and at the temperature that its validation cases say."""

    temperature: float
    plain: Reliability
    scaled: Reliability


def calibrations(
    models: Mapping[str, Path],
    *,
    validation: Sequence[Case],
    test: Sequence[Case],
    dataset: Dataset,
    trust: Path | None,
) -> dict[str, Calibration]:
    """The calibration of each model by its title in the report; one that finds nothing without prompts has none.

    `models` are runs and packages; with `trust`, a public key (PEM), its owner must have signed the packages. Raises
    what workflows.models.load_model raises.
    """
    results = {}
    for title, path in models.items():
        is_run = (path / "config.yaml").exists()
        model = load_model(path, trust=None if is_run else trust)
        if not model.prompts_required:
            results[title] = _calibration(title, model, validation, test, dataset)
    return results


def _calibration(
    title: str, model: Model, validation: Sequence[Case], test: Sequence[Case], dataset: Dataset
) -> Calibration:
    with Bar(f"calibration, {title}", len(validation) + len(test)) as bar:

        def read(cases: Sequence[Case]) -> Iterator[tuple[Volume, np.ndarray]]:
            for case in cases:
                yield read_labelled_case(case, dataset)
                bar.advance(case.name)

        temperature = temperature_of(model, read(validation))
        plain, scaled = Reliability(), Reliability()
        for volume, truth in read(test):
            for voxels in scored_voxels(model, volume, truth):
                plain.add(voxels.probabilities, voxels.labels)
                scaled.add(voxels.at(temperature), voxels.labels)
    return Calibration(temperature, plain, scaled)
