"""Which cases a network learns from, is steered by and is scored on: cut by patient, and never mixed."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import BadInputError, UsageError
from ..json_files import read_json
from .cases import Case, Dataset, scan_digest

PARTS = ("train", "validation", "test")
Part = tuple[Case, ...]


def split(cases: Sequence[Case], *, validation: float, seed: int, patient: str | None = None) -> tuple[Part, Part]:
    """Cut cases into training and validation, each sorted by name; all scans of a patient are on one side.

    A patient's side depends on the seed and the names alone, not on the order of the list. A `validation` fraction of
    the patients above 0 keeps at least one of two or more for validation, and one for training.
    """
    patients = _drawn(cases, seed, patient)
    count = min(max(round(validation * len(patients)), int(validation > 0)), max(len(patients) - 1, 0))
    return _joined(patients[count:]), _joined(patients[:count])


def fold(cases: Sequence[Case], *, folds: int, index: int, seed: int, patient: str | None = None) -> tuple[Part, Part]:
    """Training and held-out cases of fold `index` of `folds`; over all of them every patient is held out once.

    Raises UsageError when there are fewer patients than folds.
    """
    patients = _drawn(cases, seed, patient)
    if not 0 <= index < folds <= len(patients):
        raise UsageError(f"fold {index} of {folds}: expected one of 0 to {folds - 1}, and {folds} or more patients")
    held_out = patients[index::folds]
    return _joined([cases for cases in patients if cases not in held_out]), _joined(held_out)


def divide(
    dataset: Dataset,
    *,
    validation: float,
    seed: int,
    patient: str | None = None,
    test: float = 0.0,
    folds: int | None = None,
    index: int = 0,
) -> Dataset:
    """The dataset with its validation cases set, and with a fraction `test` of the patients of its labelled training
    cases, or with fold `index` of `folds` of them, as its only test cases. Raises BadInputError and UsageError.
    """
    labelled = [case for case in dataset.training if case.label is not None]
    tested = dataset.test
    if folds is not None:
        labelled, tested = fold(labelled, folds=folds, index=index, seed=seed, patient=patient)
    elif test > 0:
        labelled, tested = split(labelled, validation=test, seed=seed, patient=patient)
    train, steers = split(labelled, validation=validation, seed=seed, patient=patient)
    unlabelled = tuple(case for case in dataset.training if case.label is None)
    return _separate(replace(dataset, training=(*train, *unlabelled), validation=steers, test=tested), patient)


def assign(dataset: Dataset, names: Mapping[str, Sequence[str]], *, patient: str | None = None) -> Dataset:
    """The dataset cut as `names` ("train", "validation", "test": case names) say; cases not named there are left out,
    but for training cases with prompts in place of a mask: they are in no list, and stay.

    Raises BadInputError for names the dataset has not, cases without a mask, and a patient in two parts.
    """
    cases = {case.name: case for case in (*dataset.training, *dataset.validation, *dataset.test)}
    listed = [name for part in PARTS for name in names[part]]
    unknown = sorted(set(listed) - cases.keys())
    bare = sorted(name for name in listed if name in cases and cases[name].label is None)
    faults = [f"does not hold {unknown}"] if unknown else []
    faults += [f"has no mask for {bare}"] if bare else []
    if faults:
        raise BadInputError(
            f"{dataset.root}: {' and '.join(faults)}, which the split names. Give the split of this data."
        )
    parts = [tuple(cases[name] for name in sorted(names[part])) for part in PARTS]
    prompted = tuple(case for case in dataset.training if case.label is None and case.prompts is not None)
    return _separate(replace(dataset, training=parts[0] + prompted, validation=parts[1], test=parts[2]), patient)


def read_split(path: Path) -> dict[str, list[str]]:
    """Case names by part, from a splits.json. Raises BadInputError."""
    content = read_json(path)
    names: dict[str, list[str]] = {}
    for part in PARTS:
        listed = content.get(part) if isinstance(content, dict) else None
        if not isinstance(listed, list) or any(not isinstance(name, str) for name in listed):
            raise BadInputError(f'{path}: expected {{"train": [names], "validation": [names], "test": [names]}}.')
        names[part] = listed
    return names


def refuse_leaks(parts: Mapping[str, Iterable[Case]]) -> None:
    """Raises BadInputError when the same scan, byte by byte, is in two parts, whatever its name."""
    seen: dict[str, tuple[str, Case]] = {}
    for part, cases in parts.items():
        for case in cases:
            first, other = seen.setdefault(scan_digest(case), (part, case))
            if first != part:
                raise BadInputError(
                    f"{case.image.files[0]}: this {part} scan is, byte by byte, the {first} scan "
                    f"{other.image.files[0]}. Leave one of them out, or name the patient with split.patient."
                )


def _patient_of(case: Case, rule: str | None) -> str:
    """The first group of the regular expression `rule` (or all it matches) in the case's name; else the whole name."""
    if rule is None:
        return case.name
    try:
        match = re.search(rule, case.name)
    except re.error as error:
        raise UsageError(f"patient rule {rule!r}: is no regular expression ({error})") from error
    if match is None:
        raise BadInputError(f"{case.name}: the patient rule {rule!r} finds no patient in this name; correct the rule.")
    return match[1] if match.re.groups else match[0]


def _drawn(cases: Sequence[Case], seed: int, rule: str | None) -> list[list[Case]]:
    """The cases of each patient, patients in an order that the seed and their names decide."""
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        patients[_patient_of(case, rule)].append(case)
    return [patients[name] for name in sorted(patients, key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest())]


def _joined(patients: Sequence[Sequence[Case]]) -> Part:
    return tuple(sorted((case for cases in patients for case in cases), key=lambda case: case.name))


def _separate(dataset: Dataset, rule: str | None) -> Dataset:
    seen: dict[str, tuple[str, Case]] = {}
    for part, cases in (("training", dataset.training), ("validation", dataset.validation), ("test", dataset.test)):
        for case in cases:
            patient = _patient_of(case, rule)
            first, other = seen.setdefault(patient, (part, case))
            if first != part:
                raise BadInputError(
                    f"{dataset.root}: patient {patient!r} is in {first} ({other.name}) and in {part} ({case.name}). "
                    "Keep all scans of a patient in one of them."
                )
    return dataset
