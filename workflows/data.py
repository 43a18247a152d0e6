"""Which config and which cases a verb works on."""

import re
from dataclasses import replace
from pathlib import Path

from ..configs.load import load_config, parse_config
from ..configs.schema import Config
from ..errors import BadInputError, UsageError
from ..training.prepared import few_labels
from ..training.run import CACHE, Run
from ..volumes.datasets.layouts.listing import prompts_in, strays
from ..volumes.datasets.phantom.generate import write_phantom
from ..volumes.datasets.registry import Case, Dataset, read_dataset, with_classes
from ..volumes.datasets.splits import assign, divide
from ..volumes.io.scans import sources
from .empty_masks import without_empty


def config_for(config_name: str | None, source: Run | None, overrides: list[str]) -> Config:
    """The config named `config_name`, else the one that the run `source` was made with, else the phantom's.

    Raises UsageError naming every fault of the config and the overrides.
    """
    if config_name is None and source is not None:
        return parse_config(source.config.user_config, overrides=overrides, source=f"{source.path}/config.yaml")
    return load_config(config_name or "phantom", overrides)


def open_dataset(config: Config, data: Path | None, *, runs: Path) -> Dataset:
    """The dataset of a config, with the config's classes, split and number of labelled cases.

    It lies in the folder `data`, else where the config says, else it is the built-in phantom, which is written into
    `runs` on first use. Raises UsageError when none of the three is known, BadInputError for a dataset with faults.
    """
    folder = data or (Path(config.data) if config.data else _phantom(config, runs))
    dataset = with_config_classes(read_dataset(folder, modality=config.modality), config)
    if config.skip_empty:
        dataset = without_empty(dataset, cache=runs / CACHE)
    dataset = apply_split(dataset, config)
    return dataset if config.labelled is None else few_labels(dataset, config.labelled, seed=config.labelled_seed)


def _phantom(config: Config, runs: Path) -> Path:
    """The folder of the config's phantom. Raises UsageError for a config without one."""
    phantom = config.phantom
    if phantom is None:
        raise UsageError(f"config {config.name!r} needs a dataset; give --data DIR")
    name = f"phantom-{phantom.training}-{phantom.test}-{phantom.seed}{'-organs-apart' if phantom.organs_apart else ''}"
    return write_phantom(runs / "data" / name, **phantom.model_dump())


def with_config_classes(dataset: Dataset, config: Config) -> Dataset:
    """The dataset with the classes that the config makes of the dataset's own, or as it is without such a rule."""
    return dataset if config.classes is None else with_classes(dataset, config.classes)


def apply_split(dataset: Dataset, config: Config) -> Dataset:
    """The dataset cut as the config's `split` says; without one a run draws its validation cases itself."""
    rule = config.split
    if rule is None:
        return dataset
    if rule.only is not None:
        dataset = _only(dataset, rule.only)
    if rule.test_names is not None:
        dataset = _tested_by_name(dataset, rule.test_names)
    if rule.cases is not None:
        return assign(dataset, rule.cases.model_dump(), patient=rule.patient)
    return divide(
        dataset,
        validation=config.validation,
        seed=config.seed,
        patient=rule.patient,
        test=rule.test,
        folds=rule.folds,
        index=rule.fold,
    )


def _only(dataset: Dataset, pattern: str) -> Dataset:
    """The cases with a name in which the pattern is found. Raises BadInputError when no training case has one."""
    parts = {
        part: tuple(case for case in getattr(dataset, part) if re.search(pattern, case.name))
        for part in ("training", "validation", "test")
    }
    if not parts["training"]:
        raise BadInputError(f"{dataset.root}: split.only {pattern!r} is found in no training case's name")
    return replace(dataset, **parts)


def _tested_by_name(dataset: Dataset, pattern: str) -> Dataset:
    """The dataset with the cases with a name in which the pattern is found as its test cases.

    Raises BadInputError when none or all of them are.
    """
    cases = (*dataset.training, *dataset.validation, *dataset.test)
    tested = tuple(case for case in cases if re.search(pattern, case.name))
    training = tuple(case for case in dataset.training if case not in tested)
    if not tested or not training:
        raise BadInputError(
            f"{dataset.root}: split.test_names {pattern!r} is found in {len(tested)} of {len(cases)} cases' names; "
            "training cases and test cases are needed"
        )
    return replace(dataset, training=training, validation=(), test=tested)


def with_unlabelled(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with the scans of a folder as further training cases without masks.

    Raises BadInputError for a folder without a scan, and for a scan named like a case of the dataset.
    """
    known = {case.name for case in (*dataset.training, *dataset.validation, *dataset.test)}
    unlabelled = [Case(source, None) for source in sources(folder, channels=len(dataset.channels))]
    if twice := sorted(known & {case.name for case in unlabelled}):
        raise BadInputError(
            f"{folder}: {', '.join(twice)} already in {dataset.root}; leave them out of one of the two folders"
        )
    return replace(dataset, training=(*dataset.training, *unlabelled))


def with_prompts(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with a folder's prompt files CASE.json, each at the training case of its name.

    Files of its validation and test cases are left alone. Raises BadInputError for a folder without such files, and for
    a file that no case is named after.
    """
    prompts = prompts_in(folder)
    cases = (*dataset.training, *dataset.validation, *dataset.test)
    if not prompts:
        raise BadInputError(f"{folder}: holds no prompts; expected a folder of CASE.json, named after the scans")
    if faults := strays(prompts, cases):
        names = ", ".join(case.name for case in dataset.training[:3])
        raise BadInputError(f"{folder}: {'; '.join(faults)} in {dataset.root}; its cases are {names} and so on")
    training = tuple(replace(case, prompts=prompts.get(case.name, case.prompts)) for case in dataset.training)
    return replace(dataset, training=training)


def labelled_test(dataset: Dataset) -> list[Case]:
    """The test cases that have a mask. Raises BadInputError when none has."""
    cases = [case for case in dataset.test if case.label is not None]
    if not cases:
        raise BadInputError(f"{dataset.root}: no labelled test case to score on")
    return cases
