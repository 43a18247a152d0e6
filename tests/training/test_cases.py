import json

import numpy as np
import pytest
from helpers import dataset_layouts

from samkd.errors import BadInputError
from samkd.training.prepared import fingerprint, prepare_case, prepare_cases
from samkd.training.split import DataSplit
from samkd.training.taught_classes import check_taught_classes
from samkd.volumes import Plan, Volume
from samkd.volumes.datasets.registry import read_dataset
from samkd.volumes.datasets.survey import absent_classes, check_dataset, ranges
from samkd.volumes.io.nifti import read_labels, read_scan, write_labels, write_scan

PLAN = Plan(size=(None, 16, 16), intensity=({"rule": "zscore"},), patch=(1, 16, 16))


@pytest.mark.parametrize("name", dataset_layouts.LAYOUTS)
def test_cases_of_every_layout_are_prepared_in_their_order(tmp_path, name):
    dataset = read_dataset(dataset_layouts.LAYOUTS[name](tmp_path / "data", training=5))
    seen = []
    result = prepare_cases(dataset.training, dataset, PLAN, tmp_path / "cache", on_case=seen.append)
    assert seen == [case.name for case in dataset.training] == [case.name for case in result]
    for case, source in zip(result, dataset.training, strict=True):
        alone = prepare_case(source, dataset, PLAN, tmp_path / "alone")
        np.testing.assert_array_equal(case.image, alone.image)
        np.testing.assert_array_equal(case.labels, alone.labels)
        assert case.labels is not None
        assert case.image.shape[0] == len(dataset.channels) and set(np.unique(case.labels)) <= set(dataset.labels)
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_one_bad_case_ends_all(tmp_path):
    dataset = read_dataset(dataset_layouts.btcv(tmp_path / "data", training=4))
    dataset.training[2].image.files[0].write_bytes(b"broken")
    with pytest.raises(BadInputError, match="img0003"):
        prepare_cases(dataset.training, dataset, PLAN, tmp_path / "cache", on_case=lambda _: None)


def test_a_fingerprint_covers_every_file(tmp_path):
    dataset = read_dataset(dataset_layouts.nnunet(tmp_path))
    case = dataset.training[0]
    assert case.label is not None and len(case.image.files) == 2
    prints = {fingerprint(case)}
    for path in (*case.image.files, *case.label.files):
        path.write_bytes(path.read_bytes() + b"\0")
        prints.add(fingerprint(case))
    assert len(prints) == 4


def test_other_codes_are_not_served_from_the_cache(tmp_path):
    root = dataset_layouts.pictures(tmp_path / "data", values=(0, 128, 255))
    case = read_dataset(root).training[0]
    before = prepare_case(case, read_dataset(root), PLAN, tmp_path / "cache").labels
    (root / "labels.json").write_text(json.dumps({"0": "background", "128": "cup", "200": "x", "255": "disc"}))
    after = prepare_case(case, read_dataset(root), PLAN, tmp_path / "cache").labels
    assert before is not None and after is not None
    np.testing.assert_array_equal(np.array([0, 1, 3])[before], after)


def test_a_split_takes_the_validation_cases_of_its_dataset_and_refuses_leaks(tmp_path):
    dataset = read_dataset(dataset_layouts.decathlon(tmp_path, training=4, test=1))
    split = DataSplit.of(dataset, validation=0.25, seed=0)
    assert split.names()["test"] == ["test_000"] and len(split.names()["validation"]) == 1
    assert list(split.describe().train) == split.names()["train"]
    dataset.test[0].image.files[0].write_bytes(dataset.training[1].image.files[0].read_bytes())
    with pytest.raises(BadInputError, match="byte by byte"):
        split.describe()


def test_a_scan_that_cannot_be_scaled_is_named(tmp_path):
    dataset = read_dataset(dataset_layouts.LAYOUTS["Medical Segmentation Decathlon"](tmp_path / "data", training=2))
    case = dataset.training[1]
    scan = read_scan(case.image.files[0], channels=len(dataset.channels))
    write_scan(case.image.files[0], Volume(np.ones_like(scan.array), scan.geometry))
    with pytest.raises(BadInputError, match="channel 0 of the scan") as refused:
        prepare_case(case, dataset, PLAN, tmp_path / "cache")
    assert str(refused.value).startswith(f"{case.image.place}: ")


def prepared_of(root, tmp_path, keep):
    dataset = read_dataset(dataset_layouts.decathlon(root))
    for case in dataset.training:
        assert case.label is not None
        mask, geometry = read_labels(case.label.files[0])
        write_labels(case.label.files[0], keep(mask), geometry, like=None)
    cases = prepare_cases(dataset.training, dataset, PLAN, tmp_path / "cache", on_case=lambda _: None)
    return dataset, cases


def test_a_class_in_no_training_mask_is_named_before_the_first_step(tmp_path, capfd):
    dataset, cases = prepared_of(tmp_path / "a", tmp_path, lambda mask: np.where(mask == 2, 0, mask))
    check_taught_classes(cases, labels=dataset.labels, root=dataset.root)
    assert "in no training mask: tumour;" in capfd.readouterr().err
    rows = check_dataset(dataset)
    assert absent_classes(dataset, rows) == ["tumour"]  # though a test mask holds it
    assert ("tumour, voxels (1 of 4 masks)", [rows[3]["label_voxels"]["tumour"]]) in ranges(dataset, rows)


def test_all_masks_empty_is_refused_before_the_first_step(tmp_path):
    dataset, cases = prepared_of(tmp_path / "a", tmp_path, lambda mask: mask * 0)
    with pytest.raises(BadInputError, match=r"all 3 training masks are empty .* organ, tumour"):
        check_taught_classes(cases, labels=dataset.labels, root=dataset.root)
    rows = check_dataset(dataset)
    assert absent_classes(dataset, rows) == ["organ", "tumour"]


def test_classes_that_are_there_are_no_matter(tmp_path, capfd):
    dataset, cases = prepared_of(tmp_path / "a", tmp_path, lambda mask: mask)
    check_taught_classes(cases, labels=dataset.labels, root=dataset.root)
    assert "warning" not in capfd.readouterr().err
    assert absent_classes(dataset, check_dataset(dataset)) == []
