"""samkd distill from a folder of predictions, end to end on a tiny phantom, in this process."""

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.predictions import soft, write_label_map, write_nnunet, write_probabilities
from helpers.runs import TINY, run_verb, runs_of

from samkd.configs.load import load_config
from samkd.training.run import Run
from samkd.volumes.datasets.registry import Dataset, read_labelled_case
from samkd.workflows.data import open_dataset
from samkd.workflows.report.runs import runs_before

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return open_dataset(load_config("phantom", TINY), None, runs=tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def predictions(tmp_path_factory, dataset) -> Path:
    """The truth of every training case as nnU-Net would write it."""
    folder = tmp_path_factory.mktemp("predictions")
    for case in dataset.training:
        volume, mask = read_labelled_case(case, dataset)
        write_nnunet(folder, case.name, mask, volume.geometry, names=dataset.labels)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset, predictions) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = distill(dataset, predictions, "--lambda", 0.5, runs=folder)
    assert done.exit_code == 0, done.output
    measured = rf"teacher 1 {predictions.name}: Dice 0\.9\d+ on the student's 1 validation cases"
    assert re.search(measured, done.text), done.text  # the truth, resampled linearly for nearest
    return folder


def distill(dataset, teacher, *options, runs):
    return run_verb("distill", "-c", "phantom", "--data", dataset.root, "--teacher", teacher, *options, runs=runs)


def test_the_run_keeps_the_hash_of_the_predictions(runs, predictions):
    (student,), (control,) = runs_of(runs, "distill"), runs_of(runs, "control")
    (record,) = student.config.objective.teachers
    assert record.run == predictions.name and record.predictions and len(record.sha256) == 64
    assert Run.read(student.path).config == student.config and control.config.objective.teachers == ()
    assert list(runs_before(student, runs)) == ["student without teacher", "student with teacher"]


def test_the_same_predictions_are_the_same_run_and_others_another(runs, predictions, dataset, tmp_path):
    shutil.copytree(predictions, tmp_path / "copy" / predictions.name)
    copy = tmp_path / "copy" / predictions.name
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/weights.safetensors")}
    done = distill(dataset, copy, "--lambda", 0.5, runs=runs)
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/weights.safetensors")} == before
    for path in copy.glob("*.npz"):
        path.unlink()
    done = distill(dataset, copy, "--lambda", 0.5, "--no-control", runs=runs)
    assert done.exit_code == 0, done.output
    assert len(runs_of(runs, "distill")) == 2


def test_a_folder_teaches_beside_a_run_and_without_validation_cases(runs, dataset, tmp_path):
    (control,) = runs_of(runs, "control")
    for case in dataset.training:
        if case.name not in control.config.cases.validation:
            volume, mask = read_labelled_case(case, dataset)
            write_label_map(tmp_path / "half", case.name, mask, volume.geometry)
    options = ("--teacher", f"{tmp_path / 'half'}=3", "--lambda", 0.5, "--no-control")
    done = distill(dataset, control.path, *options, runs=tmp_path)
    assert done.exit_code == 0, done.output
    assert (
        "teacher 2 half: not measured, for it has no prediction of 1 of the student's 1 validation cases" in done.text
    )
    (student,) = runs_of(tmp_path, "distill")
    assert [(one.share, one.predictions) for one in student.config.objective.teachers] == [(0.25, False), (0.75, True)]


def without_a_case(folder, dataset):
    for case in dataset.training[:2]:  # one of them at least is for training
        (folder / f"{case.name}.nii.gz").unlink()
        (folder / f"{case.name}.npz").unlink()


def with_nan(folder, dataset):
    for case in dataset.training[-2:]:
        volume, mask = read_labelled_case(case, dataset)
        values = soft(mask, len(dataset.labels))
        values[0, 0, 0, 0] = np.nan
        write_probabilities(folder, case.name, values, volume.geometry)
        (folder / f"{case.name}.npz").unlink()


def with_a_pickle_for_an_array(folder, dataset):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "it ran"),))

    for case in dataset.training:
        (folder / f"{case.name}.npz").write_bytes(pickle.dumps(Planted()))


def with_another_class(folder, dataset):
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "lung": 1}}')


@pytest.mark.parametrize(
    ("damage", "options", "code", "said"),
    [
        (without_a_case, (), 3, "a teacher needs one for each of the 4 training cases"),
        (with_nan, (), 3, "NaN"),
        (with_a_pickle_for_an_array, (), 3, "cannot be read as the probabilities of nnU-Net v2"),
        (with_another_class, (), 3, "names lung"),
        (None, ("--online",), 2, "is a folder of predictions"),
    ],
)
def test_a_folder_that_cannot_teach_ends_before_any_training(
    dataset, predictions, tmp_path, damage, options, code, said
):
    folder = tmp_path / "damaged"
    shutil.copytree(predictions, folder)
    if damage:
        damage(folder, dataset)
    done = distill(dataset, folder, *options, runs=tmp_path / "runs")
    assert done.exit_code == code, done.output
    assert said in done.text and not (folder / "it ran").exists()
    assert not list((tmp_path / "runs").glob("control-*")) and not list((tmp_path / "runs").glob("distill-*"))


def test_a_folder_alone_names_neither_config_nor_data(predictions, tmp_path):
    done = run_verb("distill", "--teacher", predictions, runs=tmp_path)
    assert done.exit_code == 2, done.output
    assert "a folder of predictions names neither config nor data; give --config NAME" in done.text
    (tmp_path / "empty").mkdir()
    done = run_verb("distill", "-c", "phantom", "--teacher", tmp_path / "empty", runs=tmp_path)
    assert done.exit_code == 3 and "neither a run folder (no config.yaml) nor a folder of predictions" in done.text
