"""samkd evaluate: masks in another voxel order, and the warnings of a scan unlike the training data."""

from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import run_cli
from helpers.dataset_layouts import write_json
from helpers.packages import LABELS, Levels, infer_with, make_scan
from nibabel.funcs import as_closest_canonical
from nibabel.loadsave import load, save

from samkd.errors import BadInputError, UsageError
from samkd.volumes import Geometry, Plan, Volume
from samkd.volumes.io.nifti import read_labels, write_labels, write_scan
from samkd.volumes.pipeline import Model
from samkd.workflows import evaluate as workflow
from samkd.workflows.evaluate import evaluate

PLAN = Plan(intensity=({"rule": "window", "low": 0, "high": 100},), patch=(16, 16, 16), overlap=0.5)
MODEL = Model(
    path=Path("model"),
    plan=PLAN,
    class_names=LABELS,
    in_channels=1,
    infer=infer_with(Levels()),
    channel_names=("CT",),
    intensities=({"percentiles": [0.0] * 9, "limit": 0.5},),
)


def dataset(folder: Path, *, offset: float = 0) -> Path:
    """A Decathlon dataset of two training cases and two test cases with masks, `offset` added to every voxel."""
    for part, count in (("Tr", 2), ("Ts", 2)):
        for place in ("images", "labels"):
            (folder / f"{place}{part}").mkdir(parents=True)
        for seed in range(count):
            volume = make_scan(seed if part == "Ts" else 10 + seed)
            name = f"case_{part}_{seed}.nii.gz"
            write_scan(folder / f"images{part}" / name, Volume(volume.array + offset, volume.geometry))
            write_labels(folder / f"labels{part}" / name, MODEL.segment(volume), volume.geometry, like=None)
    names = [path.name for path in (folder / "imagesTr").iterdir()]
    write_json(
        folder / "dataset.json",
        {
            "name": "two bodies",
            "modality": {"0": "CT"},
            "labels": {str(value): name for value, name in LABELS.items()},
            "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
            "test": [f"./imagesTs/{path.name}" for path in (folder / "imagesTs").iterdir()],
        },
    )
    return folder


@pytest.fixture
def model(monkeypatch) -> Path:
    """A model by any name: the one that knows the two bodies, with a profile of its training data."""
    monkeypatch.setattr(workflow, "load_model", lambda *_, **__: MODEL)
    return Path("model.zip")


def test_a_model_is_scored_and_scans_like_its_training_data_are_no_warning(model, tmp_path, capfd):
    scores = evaluate(model, dataset(tmp_path / "data"))
    assert list(scores.cases) == ["case_Ts_0", "case_Ts_1"] and scores.summary.mean.dice == 1
    assert "warning" not in capfd.readouterr().err


def test_scans_unlike_the_training_data_are_a_warning_for_each(model, tmp_path):
    data = dataset(tmp_path / "data", offset=100)  # clipped by the window: everything as bright as the second body
    done = run_cli("evaluate", model, "--data", data, in_process=True)
    assert done.exit_code == 0, done.output
    for seed in (0, 1):
        scan = data / "imagesTs" / f"case_Ts_{seed}.nii.gz"
        assert f"warning: {scan}: channel 0: intensities unlike the training data" in done.text
    assert done.stderr.count("warning:") == 2


def test_masks_in_another_voxel_order_are_scored_in_that_of_the_scan(tmp_path):
    data = dataset(tmp_path / "data")
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (data / "labelsTs").iterdir():
        save(as_closest_canonical(load(path)), masks / path.name)  # type: ignore[arg-type]
        assert read_labels(masks / path.name)[1].axis_codes != read_labels(path)[1].axis_codes
    scores = evaluate(masks, data)
    assert scores.summary.mean.dice == 1 and scores.summary.mean.hd95_mm == 0


def test_a_mask_that_lies_elsewhere_is_refused_by_name(tmp_path):
    data = dataset(tmp_path / "data")
    for path in (data / "labelsTs").iterdir():
        labels, geometry = read_labels(path)
        affine = geometry.affine.copy()
        affine[:3, 3] += 1.0
        write_labels(tmp_path / path.name, labels, Geometry(affine, geometry.shape), like=None)
    with pytest.raises(BadInputError, match=r"case_Ts_0\.nii\.gz: this mask is not on the grid of .*imagesTs"):
        evaluate(tmp_path, data)
    assert np.any(labels)


def test_the_rules_of_a_config_and_of_the_command_line_are_followed(tmp_path):
    data = dataset(tmp_path / "data")
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (data / "labelsTs").iterdir():
        labels, geometry = read_labels(path)
        write_labels(masks / path.name, np.roll(labels, 1, axis=0), geometry, like=None)
    strict = evaluate(masks, data)
    loose = evaluate(masks, data, overrides=["evaluation.tolerance_mm=50", "evaluation.metrics=[nsd,hd95_voxels]"])
    assert strict.summary.mean.nsd is not None and strict.summary.mean.nsd < 1 == loose.summary.mean.nsd
    assert loose.summary.mean.dice == strict.summary.mean.dice and loose.summary.mean.hd95_voxels == 1
    assert loose.rules.metrics == ("nsd", "hd95_voxels")
    with pytest.raises(UsageError, match="teacher: unknown key"):
        evaluate(masks, data, overrides=["teacher.name=x"])
    with pytest.raises(UsageError, match="no class 'moon'"):
        evaluate(masks, data, overrides=["evaluation.class_tolerances_mm={moon: 2}"])
    done = run_cli(
        *("evaluate", masks, "--data", data, "--set", "evaluation.metrics=[dice,nsd]", "--cases"),
        *("-o", tmp_path / "s.csv", "-o", tmp_path / "s.tex"),
        in_process=True,
    )
    assert done.exit_code == 0, done.output
    assert "NSD" in done.stdout and "missed" in done.stdout and "case_Ts_1" in done.stdout
    assert (tmp_path / "s.csv").read_text().count("case_Ts") == 2 * (len(LABELS) - 1)
    assert "toprule" in (tmp_path / "s.tex").read_text()
    refused = run_cli("evaluate", masks, "--data", data, "-o", tmp_path / "s.xlsx", in_process=True)
    assert refused.exit_code == 2 and ".tex" in refused.text
