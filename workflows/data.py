"""Which cases a verb works on: a recipe's dataset, split and classes; and what is done with a dataset as a whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..configs.schema import Recipe
from ..errors import BadInputError, UsageError
from ..volumes.datasets.registry import Case, Dataset, read_dataset, read_labelled_case, with_classes
from ..volumes.files import atomic_path

DICOM = "DICOM series"


def open_dataset(recipe: Recipe, data: Path | None, *, runs: Path) -> Dataset:
    """The dataset of a recipe: the folder given, the recipe's own, or the built-in phantom, made on first use."""
    folder = data or (Path(recipe.data) if recipe.data else None)
    if folder is None:
        if recipe.phantom is None:
            raise UsageError(f"recipe {recipe.name!r} needs a dataset; give --data DIR")
        from ..volumes.datasets.phantom.generate import write_phantom

        made = recipe.phantom
        name = f"phantom-{made.training}-{made.test}-{made.seed}{'-organs-apart' if made.organs_apart else ''}"
        folder = write_phantom(runs / "data" / name, **made.model_dump())
    dataset = apply_split(with_recipe_classes(read_dataset(folder, modality=recipe.modality), recipe), recipe)
    if recipe.labelled is None:
        return dataset
    from ..training.prepared import few_labels

    return few_labels(dataset, recipe.labelled, seed=recipe.labelled_seed)


def with_recipe_classes(dataset: Dataset, recipe: Recipe) -> Dataset:
    return dataset if recipe.classes is None else with_classes(dataset, recipe.classes)


def apply_split(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The dataset cut as the recipe's `split` says; without one it is left for a run to draw its validation cases."""
    from ..volumes.datasets.splits import assign, divide

    rule = recipe.split
    if rule is None:
        return dataset
    if rule.cases is not None:
        return assign(dataset, rule.cases.model_dump(), patient=rule.patient)
    return divide(
        dataset,
        validation=recipe.validation,
        seed=recipe.seed,
        patient=rule.patient,
        test=rule.test,
        folds=rule.folds,
        index=rule.fold,
    )


def split_override(path: Path | None) -> list[str]:
    """The recipe override that fixes the cases to those of a splits.json; none without one. Raises BadInputError."""
    from ..volumes.datasets.splits import read_split

    return [] if path is None else [f"split={json.dumps({'cases': read_split(path)})}"]


def with_unlabelled(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset with the scans of a folder as further training cases without masks.

    Raises BadInputError for a folder without a scan, and for a scan named like a case of the dataset.
    """
    from ..volumes.io.scans import sources

    known = {case.name for case in (*dataset.training, *dataset.validation, *dataset.test)}
    more = [Case(source, None) for source in sources(folder, channels=len(dataset.channels))]
    if twice := sorted(known & {case.name for case in more}):
        raise BadInputError(
            f"{folder}: {', '.join(twice)} already in {dataset.root}; leave them out of one of the two folders"
        )
    return replace(dataset, training=(*dataset.training, *more))


def dataset_or_series(data: Path, *, modality: str | None = None) -> Dataset:
    """The dataset in a folder, or else the DICOM series in it (or the one file) as cases without masks.

    Raises what read_dataset raises when it is neither.
    """
    from ..volumes.io.dicom.series import find_series
    from ..volumes.io.scans import Source

    try:
        return read_dataset(data, modality=modality)
    except BadInputError:
        cases = tuple(Case(Source(name, files), None) for name, files in find_series(data).items())
        if not cases:
            raise
    return Dataset(data.resolve().name, data, DICOM, {0: "background"}, ("scan",), (), cases)


def check(dataset: Dataset) -> list[dict[str, Any]]:
    """The rows of volumes.datasets.survey.check_dataset, with a progress bar."""
    from ..training.progress import Bar
    from ..volumes.datasets.survey import check_dataset

    with Bar("cases", len(dataset.training) + len(dataset.test)) as bar:
        return check_dataset(dataset, on_case=lambda row: bar.advance(row["name"]))


def draw_cases(dataset: Dataset, rows: list[dict[str, Any]], out: Path, *, count: int = 4) -> None:
    """Draw the first sound cases with a mask, their first channel, into one PNG. Raises BadInputError without any."""
    from ..evaluation.contact_sheet import contact_sheet
    from ..evaluation.overlay import comparison_png
    from ..volumes.geometry import reorient

    sound = {row["name"] for row in rows if row["fault"] is None and row["label_voxels"]}
    cases = [case for case in (*dataset.training, *dataset.test) if case.name in sound][:count]
    if not cases:
        raise BadInputError(f"{dataset.root}: no sound case with a mask to draw")
    pictures = {}
    for case in cases:
        volume, mask = read_labelled_case(case, dataset)
        upright = volume.geometry.oriented("SPL")
        scan, truth = (reorient(array, volume.geometry, upright) for array in (volume.array[0], mask))
        pictures[case.name] = comparison_png(scan, {"mask": truth}, spacing=upright.spacing)
    with atomic_path(out) as temporary:
        temporary.write_bytes(contact_sheet(pictures))


def convert(dataset: Dataset, out: Path, *, fix_affine: bool = False) -> None:
    """volumes.datasets.convert.write_nnunet, with a progress bar."""
    from ..training.progress import Bar
    from ..volumes.datasets.convert import write_nnunet

    with Bar("cases", len(dataset.training) + len(dataset.test)) as bar:
        write_nnunet(dataset, out, fix_affine=fix_affine, on_case=bar.advance)


def labelled_test(dataset: Dataset) -> list[Case]:
    cases = [case for case in dataset.test if case.label is not None]
    if not cases:
        raise BadInputError(f"{dataset.root}: no labelled test case to score on")
    return cases
