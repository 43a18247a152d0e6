"""samkd evaluate: the scores of a model, or of a folder of masks, on labelled test cases."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..configs.load import load_config
from ..configs.schema import Config
from ..errors import BadInputError, UsageError, about
from ..evaluation.scores import score_case, summarise
from ..training.progress import Bar
from ..training.prompt_sampling import prompts_from_truth
from ..training.run import Run
from ..volumes.datasets.registry import Case, Dataset, read_dataset, read_labelled_case
from ..volumes.datasets.splits import assign, read_split
from ..volumes.geometry import Volume
from ..volumes.io.scans import mask_in, read_mask
from ..volumes.plan import slice_axis
from .data import config_for, labelled_test, with_config_classes
from .models import Model, is_package, load_model

# From a case, its scan and its true mask [D, H, W] to the mask that is scored.
Segment = Callable[[Case, Volume, np.ndarray], np.ndarray]


def evaluate(
    model: Path,
    data: Path,
    *,
    prompt_from_truth: str | None = None,
    split: Path | None = None,
    modality: str | None = None,
    base: Path | None = None,
    config_name: str | None = None,
) -> dict[str, Any]:
    """Scores of a package, a run, or a folder of masks named like the scans, on a dataset's labelled test cases.

    The test cases of a `split` (a run's splits.json) take their place. `modality` ("CT" or "MR") keeps one of the two
    in a dataset that holds both. With `prompt_from_truth` ("point", "box", or "boxes" for one on each slice) the
    network is shown where each class is: scores of a user who knows, and the result says so. `base` is the published
    file that a run adapts, where it has moved. The config of that name says which classes of the dataset are the
    model's.

    Returns {"summary": means, "cases": scores by case name, "prompts_from_truth": the option}. Raises BadInputError
    when the model's classes are not the dataset's, UsageError for options that this kind of model does not take.
    """
    if prompt_from_truth not in (None, "point", "box", "boxes"):
        raise UsageError(f"--prompt-from-truth {prompt_from_truth!r}: choose point, box or boxes")
    config = load_config(config_name) if config_name else None
    dataset = _test_dataset(data, config, split=split, modality=modality)
    cases = labelled_test(dataset)
    if _is_mask_folder(model):
        if prompt_from_truth or base:
            raise UsageError(f"{model}: a folder of masks takes neither prompts nor --weights")
        segment: Segment = partial(_read_mask, model)
    else:
        loaded = load_model(model, base=base)
        dataset = _with_classes_of(loaded, dataset, config)
        segment = _prompted(loaded, prompt_from_truth) if prompt_from_truth else partial(_automatic, loaded)
    scores = _scores(segment, cases, dataset)
    return {"summary": summarise(scores), "cases": scores, "prompts_from_truth": prompt_from_truth}


def _test_dataset(data: Path, config: Config | None, *, split: Path | None, modality: str | None) -> Dataset:
    """The dataset in the classes of a config, with the test cases of a splits.json; each only if it is given."""
    dataset = read_dataset(data, modality=modality or (config and config.modality))
    if config is not None:
        dataset = with_config_classes(dataset, config)
    return dataset if split is None else assign(dataset, read_split(split))


def _is_mask_folder(model: Path) -> bool:
    return model.is_dir() and not is_package(model) and not (model / "config.yaml").exists()


def _with_classes_of(model: Model, dataset: Dataset, config: Config | None) -> Dataset:
    """The dataset in the model's classes: as it is, or by the rule of the config that the model's run was made with.

    That rule is looked up only when no `config` was named. Raises BadInputError when the classes differ all the same.
    """
    if model.class_names != dataset.labels and config is None and not is_package(model.path):
        dataset = with_config_classes(dataset, config_for(None, Run.read(model.path), []))
    if model.class_names != dataset.labels:
        raise BadInputError(
            f"{dataset.root}: its classes are {list(dataset.labels.values())}, {model.path} knows "
            f"{list(model.class_names.values())}; give -c CONFIG, whose `classes` say which are which"
        )
    return dataset


def _read_mask(folder: Path, case: Case, volume: Volume, truth: np.ndarray) -> np.ndarray:
    """The mask in `folder` that is named like the case's scan. Raises BadInputError when it is on another grid."""
    mask = mask_in(folder, case.image)
    labels, geometry = read_mask(mask)
    if not geometry.same_grid(volume.geometry):
        raise BadInputError(f"{mask.files[0]}: this mask is not on the grid of {case.image.files[0]}")
    return labels


def _automatic(model: Model, case: Case, volume: Volume, truth: np.ndarray) -> np.ndarray:
    if model.prompts_required:
        raise UsageError(f"{model.path}: this model segments only what it is shown; give --prompt-from-truth boxes")
    with about(case.image.place):
        return model.segment(volume)


def _prompted(model: Model, kind: str) -> Segment:
    """Segment with one prompt of that kind per class, from the truth. UsageError for a model that does not take it."""
    model.accept(frozenset({kind.removesuffix("es")}))

    def segment(case: Case, volume: Volume, truth: np.ndarray) -> np.ndarray:
        axis, spacing = slice_axis(model.plan, volume.geometry), volume.geometry.spacing
        prompts = prompts_from_truth(kind, truth, labels=model.class_names, spacing=spacing, axis=axis)
        return model.segment(volume, prompts=prompts)

    return segment


def _scores(segment: Segment, cases: list[Case], dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """The rows of evaluation.scores.score_case, by case name."""
    scores = {}
    with Bar("test scans", len(cases)) as bar:
        for case in cases:
            volume, truth = read_labelled_case(case, dataset)
            prediction = segment(case, volume, truth)
            grid = volume.geometry
            scores[case.name] = score_case(
                prediction, truth, spacing=grid.spacing, labels=dataset.labels, frames=grid.frames
            )
            bar.advance(case.name)
    return scores
