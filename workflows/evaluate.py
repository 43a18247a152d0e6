"""samkd evaluate: the scores of a model, or of a folder of masks, on labelled test cases."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..configs.evaluation_schema import Evaluation
from ..configs.load import load_config, parse_evaluation
from ..configs.schema import Config
from ..configs.validate import validated
from ..deploy.runtime.package import warn_before_use
from ..deploy.runtime.quality import scan_flags
from ..errors import BadInputError, UsageError, about
from ..evaluation.records import CaseScores, ClassScore
from ..evaluation.rules import ScoringRules
from ..evaluation.scores import case_scores, score_scan
from ..training.metrics import scoring_rules
from ..training.progress import Bar, console
from ..training.prompt_protocol import PromptProtocol, keep_prompted, parse_protocol
from ..training.run import Run
from ..volumes.alignment import onto
from ..volumes.datasets.parallel import in_threads
from ..volumes.datasets.registry import Case, Dataset, read_dataset, read_labelled_case
from ..volumes.datasets.splits import assign, read_split
from ..volumes.geometry import Geometry, Volume
from ..volumes.io.scans import mask_in, read_mask
from .data import config_for, labelled_test, with_config_classes
from .models import Model, is_package, load_model

# From a case, its scan and its true mask [D, H, W] to the mask that is scored.
Segment = Callable[[Case, Volume, np.ndarray], np.ndarray]


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    prompt_from_truth: str | None = None,
    split: Path | None = None,
    modality: str | None = None,
    pretrained_path: Path | None = None,
    config_name: str | None = None,
    trust: Path | None = None,
    overrides: list[str] | None = None,
    repetition: int = 0,
) -> CaseScores:
    """Scores of a package, a run, or a folder of masks named like the scans, on a dataset's labelled test cases.

    The test cases of a `split` (a run's splits.json) take their place. `modality` ("CT" or "MR") keeps one of the two
    in a dataset that holds both. With `prompt_from_truth` ("point", "boxes" for one on each slice, or any other
    spelling of training.prompt_protocol.parse_protocol) the network is shown where each class is: scores of a user who
    knows. A `repetition`, from 0, has draws of its own. `pretrained_path` is the published file that a run adapts,
    where it has moved. The config of that name says which classes of the dataset are the model's. With `trust`, a
    public key (PEM), its owner must have signed a package.

    Scores follow the section `evaluation` of that config, else of the config that a run was made with, with `overrides`
    such as "evaluation.tolerance_mm=5".

    Raises BadInputError when the model's classes are not the dataset's, UsageError for options that this kind of model
    does not take.
    """
    model, data = Path(model), Path(data)
    protocol = parse_protocol(prompt_from_truth) if prompt_from_truth else None
    protocol = protocol and protocol.repeated(repetition)
    config = load_config(config_name) if config_name else None
    loaded = None if _is_mask_folder(model) else load_model(model, pretrained_path=pretrained_path, trust=trust)
    settings = parse_evaluation(_evaluation_of(model, loaded, config), overrides or [])
    dataset = _test_dataset(data, config, split=split, modality=modality)
    cases = labelled_test(dataset)
    if loaded is None:
        if protocol or pretrained_path or trust:
            raise UsageError(f"{model}: a folder of masks takes neither prompts nor --weights nor --trust")
        rules = scoring_rules(settings, dataset.labels.values())
        return _scores(partial(_read_mask, model), cases, dataset, rules=rules, one_by_one=False)
    warn_before_use(loaded)
    dataset = _with_classes_of(loaded, dataset, config)
    rules = scoring_rules(settings, dataset.labels.values())
    if protocol:
        loaded.accept(frozenset({protocol.kind}))
    elif loaded.prompts_required:
        raise UsageError(f"{model}: this model segments only what it is shown; give --prompt-from-truth boxes")
    segment = partial(_segment, loaded, protocol)
    return _scores(segment, cases, dataset, rules=rules, one_by_one=True)


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
    """The mask in `folder` that is named like the case's scan, in the voxel order of the scan.

    Raises BadInputError when it does not lie on the scan.
    """
    mask = mask_in(folder, case.image)
    labels, geometry = read_mask(mask)
    placed = onto(labels, geometry, volume.geometry)
    if placed is None:
        raise BadInputError(f"{mask.files[0]}: this mask is not on the grid of {case.image.files[0]}")
    return placed


def _segment(
    model: Model, protocol: PromptProtocol | None, case: Case, volume: Volume, truth: np.ndarray
) -> np.ndarray:
    """The model's mask of a scan, shown what the protocol draws from the truth; warns of a doubtful mask."""
    prompts, grid = None, volume.geometry
    if protocol:
        prompts = protocol.of_scan(truth, name=case.name, labels=model.class_names, grid=grid, plan=model.plan)
    with about(case.image.place):
        preprocessed = model.preprocess(volume)
        labels = model.segment_preprocessed(preprocessed, grid, prompts=prompts)
    for flag in scan_flags(model, case.image, preprocessed, labels, grid):
        console.print(f"warning: {case.image.place}: {flag}", markup=False, highlight=False, soft_wrap=True)
    if protocol and prompts and protocol.keep is not None:
        labels = keep_prompted(labels, prompts, protocol.keep, spacing=grid.spacing)
    return labels


@dataclass(frozen=True)
class Segmented:
    """A case that is ready to be scored: its masks [D, H, W] and the grid that they lie on."""

    name: str
    prediction: np.ndarray
    truth: np.ndarray
    grid: Geometry


def _segmented(segment: Segment, dataset: Dataset, case: Case) -> Segmented:
    volume, truth = read_labelled_case(case, dataset)
    return Segmented(case.name, segment(case, volume, truth), truth, volume.geometry)


def _scored(dataset: Dataset, rules: ScoringRules, case: Segmented) -> dict[str, tuple[ClassScore, ...]]:
    return score_scan(case.name, case.prediction, case.truth, grid=case.grid, labels=dataset.labels, rules=rules)


def _scores(
    segment: Segment, cases: list[Case], dataset: Dataset, *, rules: ScoringRules, one_by_one: bool
) -> CaseScores:
    """The scores of the masks that `segment` gives, several cases at a time.

    A model has threads of its own, so that its masks are made `one_by_one`, each while those before it are scored.
    """
    make, score = partial(_segmented, segment, dataset), partial(_scored, dataset, rules)
    scores = {}
    with Bar("test scans", len(cases)) as bar:
        rows = in_threads(score, map(make, cases)) if one_by_one else in_threads(lambda case: score(make(case)), cases)
        for case, row in zip(cases, rows, strict=True):
            scores |= row
            bar.advance(case.name)
    return case_scores(scores, rules=rules)


def _evaluation_of(model: Path, loaded: Model | None, config: Config | None) -> Evaluation:
    """What a config says of scores: the one that was named, else the one that a run was made with, else the default.

    Of the run's only this section is read: how it was trained does not matter here, nor whether today's samkd would.
    """
    if config is not None:
        return config.evaluation
    if loaded is None or is_package(model):
        return Evaluation()
    section = Run.read(model).config.user_config.get("evaluation") or {}
    return validated(section, source=f"{model}: evaluation", kind=Evaluation)
