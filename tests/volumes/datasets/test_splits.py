import json
import shutil
from pathlib import Path

import pytest
from helpers import dataset_layouts

from samkd.errors import BadInputError, UsageError
from samkd.volumes.datasets.cases import Case
from samkd.volumes.datasets.registry import read_dataset
from samkd.volumes.datasets.splits import assign, divide, fold, read_split, refuse_leaks, split
from samkd.volumes.io.scans import Source


def cases(count: int, *, visits: int = 1) -> list[Case]:
    """`visits` scans of each of `count` patients, named p07_v0."""
    names = [f"p{i:02d}_v{v}" if visits > 1 else f"case{i:02d}" for i in range(count) for v in range(visits)]
    return [Case(Source(name, (Path(f"{name}.nii"),)), None) for name in names]


def names(part) -> list[str]:
    return [case.name for case in part]


def test_split_is_seeded_and_blind_to_the_order():
    train, validation = split(cases(20), validation=0.2, seed=1)
    assert (len(train), len(validation)) == (16, 4)
    assert {*names(train), *names(validation)} == set(names(cases(20)))
    assert split(cases(20)[::-1], validation=0.2, seed=1) == (train, validation)
    assert split(cases(20), validation=0.2, seed=2) != (train, validation)
    assert names(validation) == sorted(names(validation))


def test_a_seed_keeps_the_cases_it_always_had():
    """Runs made before splits went by patient are continued: a case is its own patient by default."""
    assert names(split(cases(10), validation=0.3, seed=0)[1]) == ["case07", "case08", "case09"]


@pytest.mark.parametrize(
    "count, validation, sizes",
    [(2, 0.01, (1, 1)), (2, 0.99, (1, 1)), (1, 0.5, (1, 0)), (0, 0.5, (0, 0)), (10, 0.0, (10, 0)), (10, 0.25, (8, 2))],
)
def test_split_sizes(count, validation, sizes):
    assert tuple(len(part) for part in split(cases(count), validation=validation, seed=0)) == sizes


def test_all_scans_of_a_patient_are_on_one_side():
    for seed in range(20):
        train, validation = split(cases(7, visits=3), validation=0.3, seed=seed, patient=r"p(\d+)_")
        assert (len(train), len(validation)) == (15, 6)
        assert not {name[:3] for name in names(train)} & {name[:3] for name in names(validation)}
    whole = split(cases(7, visits=3), validation=0.3, seed=0, patient=r"p\d+_")
    assert whole[0] and not {name[:3] for name in names(whole[0])} & {name[:3] for name in names(whole[1])}


def test_a_patient_rule_must_be_one_and_match():
    with pytest.raises(UsageError, match="no regular expression"):
        split(cases(3), validation=0.5, seed=0, patient="(")
    with pytest.raises(BadInputError, match="case00: the patient rule 'p' finds no patient"):
        split(cases(3), validation=0.5, seed=0, patient="p")


def test_folds_hold_every_patient_out_once():
    result = [fold(cases(11, visits=2), folds=5, index=i, seed=3, patient=r"(p\d+)") for i in range(5)]
    held_out = [name for _, part in result for name in names(part)]
    assert sorted(held_out) == sorted(names(cases(11, visits=2)))
    for train, part in result:
        assert not {name[:3] for name in names(train)} & {name[:3] for name in names(part)}
        assert len(train) + len(part) == 22 and len(part) in (4, 6)
    with pytest.raises(UsageError, match="fold 5 of 5"):
        fold(cases(11), folds=5, index=5, seed=0)
    with pytest.raises(UsageError, match="4 or more patients"):
        fold(cases(3), folds=4, index=0, seed=0)


def test_divide_takes_test_cases_from_the_labelled_ones(tmp_path):
    dataset = read_dataset(dataset_layouts.btcv(tmp_path, training=10, test=1))
    assert names(dataset.test) == ["img0061"] and dataset.test[0].label is None
    cut = divide(dataset, validation=0.25, seed=0, test=0.2)
    assert (len(cut.training), len(cut.validation), len(cut.test)) == (6, 2, 2)
    everyone = [*names(cut.training), *names(cut.validation), *names(cut.test)]
    assert sorted(everyone) == names(dataset.training) and all(case.label for case in cut.test)
    tested = [name for i in range(5) for name in names(divide(dataset, validation=0.25, seed=0, folds=5, index=i).test)]
    assert sorted(tested) == names(dataset.training)
    same = divide(dataset, validation=0.25, seed=0)
    assert same.test == dataset.test and (same.training, same.validation) == split(
        dataset.training, validation=0.25, seed=0
    )


def test_a_patient_in_training_and_test_is_refused(tmp_path):
    dataset = read_dataset(dataset_layouts.decathlon(tmp_path, training=3, test=1))
    with pytest.raises(BadInputError, match=r"patient '0' is in .* and in test \(test_000\)"):
        divide(dataset, validation=0.3, seed=0, patient=r"(\d)$")


def test_a_split_file_fixes_the_cases(tmp_path):
    dataset = read_dataset(dataset_layouts.btcv(tmp_path / "data", training=4, test=1))
    path = tmp_path / "splits.json"
    wanted = {"train": ["img0004", "img0001"], "validation": ["img0002"], "test": ["img0003"]}
    path.write_text(json.dumps(wanted))
    cut = assign(dataset, read_split(path))
    assert names(cut.training) == ["img0001", "img0004"] and names(cut.test) == ["img0003"]
    for change, part in (
        ({"test": ["img0009"]}, r"does not hold \['img0009'\]"),
        ({"test": ["img0061"]}, r"has no mask for \['img0061'\]"),
        ({"test": ["img0001"]}, "patient 'img0001' is in training"),
    ):
        with pytest.raises(BadInputError, match=part):
            assign(dataset, {**wanted, **change})
    for content in ("[]", "{}", '{"train": [1], "validation": [], "test": []}', "{"):
        path.write_text(content)
        with pytest.raises(BadInputError, match=r"splits\.json"):
            read_split(path)


def test_the_same_bytes_in_two_parts_are_a_leak(tmp_path):
    dataset = read_dataset(dataset_layouts.decathlon(tmp_path, training=2, test=1))
    refuse_leaks({"train": dataset.training, "test": dataset.test})
    shutil.copy(dataset.training[0].image.files[0], dataset.test[0].image.files[0])
    with pytest.raises(
        BadInputError, match=r"test_000\.nii\.gz: this test scan is, byte by byte, the train scan .*case_000"
    ):
        refuse_leaks({"train": dataset.training, "test": dataset.test})
