"""Predictions of other tools as teachers: every kind of file gives the targets that its label map gives."""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers.oblique_scan import oblique_scan
from helpers.predictions import soft, write_label_map, write_nnunet, write_organs, write_probabilities
from PIL import Image

from samkd.distill.ensemble import Ensemble, Member, read_teacher
from samkd.distill.prediction_member import PredictionFolder, PredictionMember
from samkd.distill.soft_targets import cached_targets, validation_dice
from samkd.errors import BadInputError, UsageError
from samkd.training.prepared import prepare_cases
from samkd.volumes.datasets.registry import Dataset, read_dataset
from samkd.volumes.geometry import Geometry, Volume, reorient
from samkd.volumes.io.nifti import write_labels, write_scan
from samkd.volumes.io.pictures import read_picture_labels
from samkd.volumes.plan import Plan, grid
from samkd.volumes.preprocess import preprocess_labels
from samkd.volumes.resample import resample

STUDENT = Plan(
    orientation="LAI",
    spacing=(2.0, 2.0, 2.0),
    intensity=({"rule": "window", "low": 0, "high": 2},),
    patch=(16, 16, 16),
)
NAMES = {0: "background", 1: "liver", 2: "spleen"}


VOLUME, LABELS = oblique_scan()
OWN = VOLUME.geometry
ONTO = grid(STUDENT, OWN)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Two cases, a and b, of the one scan; b is a tenth brighter."""
    root = tmp_path_factory.mktemp("data")
    cases = []
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for number, name in enumerate("ab"):
        write_scan(root / "imagesTr" / f"{name}.nii.gz", Volume(VOLUME.array * (1 + number / 10), OWN))
        write_labels(root / "labelsTr" / f"{name}.nii.gz", LABELS, OWN, like=None)
        cases.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    labels = {str(value): name for value, name in NAMES.items()}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "modality": {"0": "CT"}, "training": cases}))
    return read_dataset(root)


def alone(dataset: Dataset) -> Dataset:
    """The dataset with its first case only."""
    return replace(dataset, training=dataset.training[:1])


def member(folder, dataset, **options) -> PredictionMember:
    return PredictionMember.of(PredictionFolder.read(folder), dataset, **options)


def targets(folder, dataset) -> np.ndarray:
    return member(folder, alone(dataset)).probabilities(VOLUME, ONTO, case="a")


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_all_that_is_sound_passes_the_check(dataset, tmp_path):
    write_label_map(tmp_path, "a", LABELS, OWN)
    write_nnunet(tmp_path, "b", LABELS, OWN, names=NAMES, order="SAR")
    member(tmp_path, dataset).check(dataset.training, dataset)


def test_a_label_map_lands_where_the_students_labels_lie(dataset, tmp_path):
    write_label_map(tmp_path, "a", LABELS, OWN)
    values = targets(tmp_path, dataset)
    truth = preprocess_labels(LABELS, OWN, STUDENT)
    assert values.shape == (3, *truth.shape) and values.dtype == np.float32
    np.testing.assert_allclose(values.sum(0), 1, atol=1e-5)
    for value in (1, 2):
        assert dice(values.argmax(0) == value, truth == value) > 0.95


@pytest.mark.parametrize("order", [None, "SAR"])  # nnU-Net's readers: the file's order, and its reorienting one
def test_nnunets_array_gives_its_probabilities(dataset, tmp_path, order):
    write_nnunet(tmp_path, "a", LABELS, OWN, names=NAMES, order=order)
    along = OWN.aligned(ONTO)
    expected = [resample(reorient(values, OWN, along), along, ONTO, order=1) for values in soft(LABELS, 3)]
    np.testing.assert_allclose(targets(tmp_path, dataset), expected, atol=2e-3)


def test_four_dimensions_and_a_file_for_each_organ_give_the_same(dataset, tmp_path):
    hard = np.stack([value == LABELS for value in NAMES]).astype(np.float32)
    write_label_map(tmp_path / "map", "a", LABELS, OWN)
    write_probabilities(tmp_path / "4d", "a", hard, OWN)
    write_organs(tmp_path / "organs", "a", LABELS, OWN, names=NAMES)
    expected = targets(tmp_path / "map", dataset)
    for kind in ("4d", "organs"):
        np.testing.assert_allclose(targets(tmp_path / kind, dataset), expected, atol=1e-6)


def test_another_voxel_order_and_another_grid_are_brought_onto_the_students(dataset, tmp_path):
    write_label_map(tmp_path / "own", "a", LABELS, OWN)
    expected = targets(tmp_path / "own", dataset)
    turned = OWN.oriented("RIP")
    write_label_map(tmp_path / "turned", "a", np.ascontiguousarray(reorient(LABELS, OWN, turned)), turned)
    np.testing.assert_array_equal(targets(tmp_path / "turned", dataset), expected)
    finer = OWN.resized((28, 60, 54))
    write_label_map(tmp_path / "finer", "a", resample(LABELS, OWN, finer, order=0), finer)
    values = targets(tmp_path / "finer", dataset)
    assert dice(values.argmax(0) == 1, expected.argmax(0) == 1) > 0.95
    shift = np.eye(4)
    shift[:3, 3] = (-1, -3, -2)
    larger = Geometry(OWN.affine @ shift, (16, 46, 40))  # a margin around the scan
    padded = np.zeros(larger.shape, np.uint8)
    padded[1:15, 3:43, 2:38] = LABELS
    write_label_map(tmp_path / "larger", "a", padded, larger)
    np.testing.assert_allclose(targets(tmp_path / "larger", dataset), expected, atol=1e-4)


def test_classes_are_matched_by_name_and_by_table(dataset, tmp_path):
    write_label_map(tmp_path / "own", "a", LABELS, OWN)
    expected = targets(tmp_path / "own", dataset)
    swapped = np.array([0, 2, 1], np.uint8)[LABELS]
    write_nnunet(tmp_path / "named", "a", swapped, OWN, names={0: "background", 1: "spleen", 2: "liver"})
    (tmp_path / "named" / "a.npz").unlink()
    np.testing.assert_array_equal(targets(tmp_path / "named", dataset), expected)

    parts = np.where(LABELS == 1, np.where(np.arange(36) < 8, 7, 9), LABELS)  # the liver in two
    parts[0, 0, 0] = 3
    table = {"7": "liver", "9": "liver", "2": "spleen", "*": "background"}
    write_label_map(tmp_path / "table", "a", parts, OWN)
    (tmp_path / "table" / "classes.json").write_text(json.dumps(table))
    np.testing.assert_array_equal(targets(tmp_path / "table", dataset), expected)

    organs = {1: "left_liver", 2: "right_liver", 3: "spleen", 4: "heart"}
    numbers = np.where(LABELS == 1, np.where(np.arange(36) < 8, 1, 2), np.where(LABELS == 2, 3, 0)).astype(np.uint8)
    write_organs(tmp_path / "organs", "a", numbers, OWN, names=organs)
    table = {"left_liver": "liver", "right_liver": "liver", "heart": "background"}
    (tmp_path / "organs" / "classes.json").write_text(json.dumps(table))
    np.testing.assert_array_equal(targets(tmp_path / "organs", dataset), expected)

    halves = soft(numbers, 4)
    write_nnunet(tmp_path / "npz", "a", numbers, OWN, names={0: "background", **{n: organs[n] for n in (1, 2, 3)}})
    (tmp_path / "npz" / "classes.json").write_text(json.dumps({"left_liver": "liver", "right_liver": "liver"}))
    along = OWN.aligned(ONTO)
    both = resample(reorient(halves[1] + halves[2], OWN, along), along, ONTO, order=1)
    np.testing.assert_allclose(targets(tmp_path / "npz", dataset)[1], both, atol=2e-3)


def test_nothing_of_a_pickle_is_run(dataset, tmp_path):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "it ran"),))

    folder = tmp_path / "predictions"
    write_nnunet(folder, "a", LABELS, OWN, names=NAMES)
    (folder / "a.pkl").write_bytes(pickle.dumps(Planted()))
    before = member(folder, alone(dataset)).sha256
    assert targets(folder, dataset).shape == (3, *ONTO.shape)
    (folder / "a.pkl").unlink()
    assert member(folder, alone(dataset)).sha256 == before
    np.savez(folder / "a.npz", probabilities=np.array([Planted()], dtype=object), allow_pickle=True)
    with pytest.raises(BadInputError, match="pickled objects, which could run code and are never read"):
        targets(folder, dataset)
    (folder / "a.npz").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(BadInputError, match="cannot be read as the probabilities of nnU-Net v2"):
        targets(folder, dataset)
    assert not (tmp_path / "it ran").exists()


def unequal(change):
    """Probabilities that `change` has damaged."""
    values = soft(LABELS, 3)
    change(values)
    return values


def set_nan(values):
    values[1, 2, 3, 4] = np.nan


def make_logits(values):
    values *= 7


def make_regions(values):
    values[1] += values[2]
    values[1:] *= 0.5


@pytest.mark.parametrize(
    ("change", "said"), [(set_nan, "NaN"), (make_logits, "save their softmax"), (make_regions, "sum to")]
)
def test_what_are_no_probabilities_is_refused(dataset, tmp_path, change, said):
    write_probabilities(tmp_path / "4d", "a", unequal(change), OWN)
    write_nnunet(tmp_path / "npz", "a", LABELS, OWN, names=NAMES, probabilities=unequal(change))
    for kind in ("4d", "npz"):
        with pytest.raises(BadInputError, match=said):
            targets(tmp_path / kind, dataset)


def half_the_slices(folder):
    write_label_map(folder, "a", LABELS[:7], Geometry(OWN.affine, (7, 40, 36)))


def turned_about(folder):
    straight = np.diag([4.0, 1.3, 1.1, 1.0])[[2, 1, 0, 3]]
    straight[:3, 3] = (-40, -40, 0)
    write_label_map(folder, "a", np.zeros((60, 80, 80), np.uint8), Geometry(straight, (60, 80, 80)))


def unknown_number(folder):
    write_label_map(folder, "a", np.where(LABELS == 2, 5, LABELS), OWN)


def other_names(folder):
    write_nnunet(folder, "a", LABELS, OWN, names={0: "background", 1: "liver", 2: "kidney"})


def foreground_alone(folder):
    write_probabilities(folder, "a", soft(np.where(LABELS == 2, 1, 0), 2), OWN)


def one_organ_of_two(folder):
    write_organs(folder, "a", LABELS, OWN, names={1: "liver"})


def overlapping_organs(folder):
    write_organs(folder, "a", LABELS, OWN, names={1: "liver", 2: "spleen"})
    write_label_map(folder / "a", "liver", (LABELS > 0).astype(np.uint8), OWN)


def no_label_map(folder):
    write_nnunet(folder, "a", LABELS, OWN, names=NAMES)
    (folder / "a.nii.gz").unlink()


def anothers_label_map(folder):
    write_nnunet(folder, "a", LABELS, OWN, names=NAMES)
    write_label_map(folder, "a", np.ascontiguousarray(LABELS[:, ::-1]), OWN)


def cropped_array(folder):
    write_nnunet(folder, "a", LABELS, OWN, names=NAMES)
    np.savez_compressed(folder / "a.npz", probabilities=soft(LABELS, 3)[:, 1:])


def twice(folder):
    write_label_map(folder, "a", LABELS, OWN)
    write_labels(folder / "a.nii", LABELS, OWN, like=None)


def file_and_folder(folder):
    write_label_map(folder, "a", LABELS, OWN)
    write_organs(folder, "a", LABELS, OWN, names=NAMES)


def wrong_table(folder):
    write_label_map(folder, "a", LABELS, OWN)
    (folder / "classes.json").write_text('{"1": "lever"}')


def table_of_a_list(folder):
    write_label_map(folder, "a", LABELS, OWN)
    (folder / "classes.json").write_text('["liver"]')


def nothing(folder):
    folder.mkdir()
    (folder / "a.pkl").write_bytes(b"")


def foreign(folder):
    folder.mkdir()
    (folder / "a.nrrd").write_bytes(b"")


def of_another_case(folder):
    write_label_map(folder, "c", LABELS, OWN)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (half_the_slices, r"does not lie on its scan: it leaves up to 28 mm of the scan uncovered"),
        (turned_about, r"its axes \(\w+\) are turned against those of the scan"),
        (unknown_number, r"holds the class 5; the dataset's classes are 0 background, 1 liver, 2 spleen.*classes.json"),
        (other_names, r"names kidney; the dataset's classes are .*classes.json"),
        (foreground_alone, r"holds 2 probabilities for each voxel; expected 3"),
        (one_organ_of_two, r"knows nothing of spleen"),
        (overlapping_organs, r"of its voxels belong to another organ's mask, too"),
        (no_label_map, r"no label map beside it"),
        (anothers_label_map, r"its likeliest classes are not those of its label map"),
        (cropped_array, r"of the shape \(3, 13, 40, 36\); expected \(classes, 14, 40, 36\)"),
        (twice, r"both a.nii and a.nii.gz are predictions of a"),
        (file_and_folder, r"both a.nii.gz and a are predictions of a"),
        (wrong_table, r"names lever; the dataset's classes are"),
        (table_of_a_list, r"class of the predictions"),
        (nothing, r"neither a run folder .* nor a folder of predictions; expected CASE.nii.gz"),
        (foreign, r"nor a folder of predictions.*a.nrrd: is named like NRRD"),
        (of_another_case, r"no prediction of a; a teacher needs one for each of the 1 training cases, named like"),
    ],
)
def test_a_folder_that_cannot_teach_is_refused(dataset, tmp_path, write, said):
    folder, case = tmp_path / "predictions", dataset.training[0]
    write(folder)
    with pytest.raises(BadInputError, match=said):
        member(folder, dataset).check([case], dataset)


def test_an_announced_size_is_checked_before_it_is_unpacked(dataset, tmp_path):
    """A few kilobytes that would unpack to gigabytes are refused by the head of the array alone."""
    write_nnunet(tmp_path, "a", LABELS, OWN, names=NAMES)
    np.savez_compressed(tmp_path / "a.npz", probabilities=np.zeros((3, 300, 400, 360), np.float16))
    with pytest.raises(BadInputError, match=r"of the shape \(3, 300, 400, 360\)"):
        targets(tmp_path, dataset)


def test_the_hash_is_of_the_predictions_and_their_classes(dataset, tmp_path):
    write_label_map(tmp_path, "a", LABELS, OWN)
    write_label_map(tmp_path, "b", LABELS, OWN)
    first = member(tmp_path, dataset).sha256
    write_label_map(tmp_path, "of a test case", LABELS, OWN)
    (tmp_path / "plans.json").write_text("{}")
    assert member(tmp_path, dataset).sha256 == first
    (tmp_path / "classes.json").write_text('{"1": "spleen", "2": "liver"}')
    table = member(tmp_path, dataset).sha256
    (tmp_path / "classes.json").unlink()
    write_label_map(tmp_path, "b", np.zeros_like(LABELS), OWN)
    assert len({first, table, member(tmp_path, dataset).sha256}) == 3


def test_a_picture_may_be_a_label_map(dataset, tmp_path):
    labels = LABELS[5:6]
    Image.fromarray(labels[0]).save(tmp_path / "a.png")
    _, own = read_picture_labels([tmp_path / "a.png"])
    prediction = member(tmp_path, alone(dataset)).probabilities(Volume(labels[None] * 1.0, own), own, case="a")
    np.testing.assert_array_equal(prediction.argmax(0), labels)


def test_a_scan_named_with_its_channel_is_found(dataset, tmp_path):
    write_label_map(tmp_path, "a", LABELS, OWN)
    source = replace(dataset.training[0].image, name="a_0000")
    channels = replace(dataset, training=(replace(dataset.training[0], image=source),))
    assert member(tmp_path, channels).lacks(channels.training) == []


def test_a_folder_is_one_of_an_ensemble_and_is_cached(dataset, tmp_path):
    write_label_map(tmp_path / "one", "a", LABELS, OWN)
    write_label_map(tmp_path / "two", "a", np.zeros_like(LABELS), OWN)
    first = alone(dataset)
    one, two = member(tmp_path / "one", first, weight=3), member(tmp_path / "two", first)
    both = Ensemble([one, two])
    expected = 0.75 * one.probabilities(VOLUME, ONTO, case="a") + 0.25 * two.probabilities(VOLUME, ONTO, case="a")
    np.testing.assert_allclose(both.probabilities(VOLUME, ONTO, case="a"), expected, atol=1e-6)
    assert len({both.key, Ensemble([one]).key, Ensemble([two]).key}) == 3
    prepared = prepare_cases(first.training, first, STUDENT, tmp_path / "cache", on_case=lambda name: None)
    (case,) = cached_targets(both, first.training, prepared, first, plan=STUDENT, cache=tmp_path / "cache", limit=1e9)
    np.testing.assert_allclose(np.asarray(case.soft_targets) / 255, expected, atol=1 / 255)


def test_a_folder_is_measured_where_it_has_the_validation_cases(dataset, tmp_path):
    for case in "ab":
        write_label_map(tmp_path / "all", case, LABELS, OWN)
    write_label_map(tmp_path / "some", "a", np.zeros_like(LABELS), OWN)
    teachers: list[Member] = [member(tmp_path / "all", dataset), member(tmp_path / "some", alone(dataset))]
    options = {"plan": STUDENT, "cache": tmp_path / "cache"}
    scores = validation_dice(Ensemble(teachers), dataset.training[1:], dataset, **options)
    assert list(scores) == ["1 all"] and scores["1 all"]["mean"] > 0.95
    scores = validation_dice(Ensemble(teachers), dataset.training[:1], dataset, **options)
    assert list(scores) == ["1 all", "2 some", "all together"] and scores["2 some"]["mean"] == 0
    assert validation_dice(Ensemble(teachers[1:]), dataset.training[1:], dataset, **options) == {}


def test_a_folder_cannot_be_asked_online(dataset, tmp_path):
    write_label_map(tmp_path, "a", LABELS, OWN)
    with pytest.raises(UsageError, match=r"--online: teacher .* leave --online out"):
        Ensemble([member(tmp_path, alone(dataset))]).check_online(STUDENT)


def test_a_folder_takes_a_weight(tmp_path):
    write_label_map(tmp_path / "x=y", "a", LABELS, OWN)
    teacher, weight = read_teacher(f"{tmp_path / 'x=y'}=0.7")
    assert isinstance(teacher, PredictionFolder) and list(teacher.files) == ["a"] and weight == 0.7
    assert read_teacher(str(tmp_path / "x=y"))[1] == 1.0
