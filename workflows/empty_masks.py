"""Which masks of a dataset hold nothing of its classes."""

import json
from dataclasses import replace
from pathlib import Path

from ..errors import BadInputError
from ..training.run_config import digest
from ..volumes.datasets.cases import read_case_mask
from ..volumes.datasets.parallel import in_threads
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.files import atomic_path, file_digest, make_folder
from ..volumes.json_files import read_json


def without_empty(dataset: Dataset, *, cache: Path) -> Dataset:
    """The dataset without the cases whose masks hold none of its classes; cases without a mask stay.

    What each mask holds is kept in a file of the folder `cache`, by the mask's bytes and the classes. Raises
    BadInputError when a mask cannot be read, or when nothing is left to train on.
    """
    path = cache / "empty-masks.json"
    known = _read(path)
    cases = [case for case in (*dataset.training, *dataset.validation, *dataset.test) if case.label is not None]
    keys = {case.name: _key(case, dataset) for case in cases}
    new = [case for case in cases if keys[case.name] not in known]
    for case, empty in zip(new, in_threads(lambda case: _is_empty(case, dataset), new), strict=True):
        known[keys[case.name]] = empty
    if new:
        make_folder(cache)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(known, indent=0, sort_keys=True), encoding="utf-8")

    def kept(part: tuple[Case, ...]) -> tuple[Case, ...]:
        return tuple(case for case in part if case.label is None or not known[keys[case.name]])

    training = kept(dataset.training)
    if dataset.training and not training:
        raise BadInputError(f"{dataset.root}: no training mask holds any of {list(dataset.labels.values())[1:]}")
    return replace(dataset, training=training, validation=kept(dataset.validation), test=kept(dataset.test))


def _is_empty(case: Case, dataset: Dataset) -> bool:
    return not read_case_mask(case, dataset, None).any()


def _key(case: Case, dataset: Dataset) -> str:
    assert case.label is not None
    files = [file_digest(path) for path in case.label.files]
    return digest({"files": files, "classes": dataset.labels, "merged": dataset.merged, "codes": dataset.codes})


def _read(path: Path) -> dict[str, bool]:
    """What an earlier call found; nothing where the file is missing or damaged."""
    try:
        values = read_json(path)
    except (BadInputError, OSError):
        return {}
    sound = isinstance(values, dict) and all(isinstance(value, bool) for value in values.values())
    return values if sound else {}
