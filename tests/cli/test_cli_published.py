"""A published model from its file to the device: teach, predict, evaluate, distill, deploy, runtime.pyz."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.base_models import published_sam
from helpers.command_line import Outcome, run_cli

from samkd.deploy.runtime.cli import run as run_device
from samkd.errors import UsageError
from samkd.training.run import Run
from samkd.volumes.datasets.registry import read_dataset, read_labelled_case
from samkd.volumes.io.nifti import read_labels
from samkd.volumes.plan import slice_axis
from samkd.workflows.data import config_for, open_dataset
from samkd.workflows.report import pictures

SETTINGS = [
    *("teacher.backbone=vit_tiny", "teacher.plan.long_side=64", "teacher.plan.patch=[1,64,64]"),
    *("phantom={training: 3, test: 1, organs_apart: true}", "validation=0.4", "deployment.calibration=4"),
]
BOX = ["--box", "20,20,10,50,60,12", "--space", "voxel"]


def verb(*words: object, settings: list[str] = SETTINGS) -> Outcome:
    return run_cli(*words, *(part for each in settings for part in ("--set", each)), in_process=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published file sam.pth, and runs/sam, its run."""
    place = tmp_path_factory.mktemp("published")
    published_sam(place / "sam.pth", backbone="vit_tiny")
    made = verb("teach", "--teacher", "published", "--weights", place / "sam.pth", "--runs", place / "runs", "--run",
                place / "runs" / "sam")  # fmt: skip
    assert made.exit_code == 0 and "published model as it is" in made.text, made.output
    return place


def scan_of(place: Path) -> Path:
    """A test scan whose own slices are the network's."""
    run = Run.read(place / "runs" / "sam")
    cases = read_dataset(Path(run.config.data)).training
    return next(
        case.image.files[0]
        for case in cases
        if case.label is not None and slice_axis(run.plan, read_labels(case.label.files[0])[1]) == 0
    )


def test_the_run_holds_no_weights_and_is_finished(place: Path):
    run = Run.read(place / "runs" / "sam")
    assert run.finished and run.class_names == {0: "background", 1: "object"}
    assert run.metrics().trained_parameters == 0
    assert run.weights.stat().st_size < 0.1 * (place / "sam.pth").stat().st_size
    again = verb("teach", "--teacher", "published", "--weights", place / "sam.pth", "--runs", place / "runs", "--run",
                 place / "runs" / "sam")  # fmt: skip
    assert again.exit_code == 0


def test_a_box_prompts_every_slice_that_it_meets_and_a_list_its_own(place: Path, tmp_path: Path):
    run, scan, mask = place / "runs" / "sam", scan_of(place), tmp_path / "mask.nii.gz"
    assert run_cli("predict", run, "-i", scan, "-o", mask, *BOX, in_process=True).exit_code == 0
    through = read_labels(mask)[0]
    assert set(np.flatnonzero(through.any(axis=(1, 2)))) <= {10, 11, 12} and through.any()
    boxes = [[20, 20, 10, 50, 60, 10], [20, 20, 12, 50, 60, 12]]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"space": "voxel", "classes": {"object": {"boxes": boxes}}}))
    assert run_cli("predict", run, "-i", scan, "-o", mask, "--prompts", prompts, in_process=True).exit_code == 0
    listed = read_labels(mask)[0]
    np.testing.assert_array_equal(listed[[10, 12]], through[[10, 12]])
    assert not listed[11].any()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            [],
            2,
            "segments only what it is shown; give --box or --point with --class (one of object), or",
        ),
        (["--box", "900,900,900,950,950,950", "--space", "voxel"], 3, "lies outside the scan"),
        ([*BOX, "--class", "liver"], 2, "class 'liver' is unknown to this network; choose one of object"),
        ([*BOX, "--point", "30,30,11"], 2, "class 1 has 2 prompts in one patch: give points or one box a slice"),
        (["--point", "30,30,11,0", "--space", "voxel"], 2, "takes no prompt of the kind outside point"),
        ([*BOX, "--box", "1,1,12,9,9,12"], 3, "class 1 has two boxes on one slice"),
    ],
)
def test_bad_prompts(place: Path, tmp_path: Path, options: list[str], code: int, message: str):
    mask = tmp_path / "mask.nii.gz"
    outcome = run_cli("predict", place / "runs" / "sam", "-i", scan_of(place), "-o", mask, *options, in_process=True)
    assert (outcome.exit_code, mask.exists()) == (code, False), outcome.output
    assert message in outcome.text


def test_without_its_file_there_is_no_run(tmp_path: Path):
    outcome = verb("teach", "--teacher", "published", "--runs", tmp_path)
    assert outcome.exit_code == 2 and "give its file with --weights" in outcome.text
    assert not list(tmp_path.glob("teach-*"))


def test_it_is_evaluated_with_prompts_only(place: Path, tmp_path: Path):
    run, data = place / "runs" / "sam", Run.read(place / "runs" / "sam").config.data
    refused = run_cli("evaluate", run, "--data", data, in_process=True)
    assert refused.exit_code == 2 and "--prompt-from-truth boxes" in refused.text
    scored = run_cli("evaluate", run, "--data", data, "--prompt-from-truth", "boxes", "-o", tmp_path / "scores.json",
                     in_process=True)  # fmt: skip
    assert scored.exit_code == 0, scored.output
    assert json.loads((tmp_path / "scores.json").read_text())["prompts_from_truth"] == "boxes"


@pytest.mark.slow
def test_a_report_shows_it_boxes_and_draws_them(place: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run.read(place / "runs" / "sam")
    dataset = open_dataset(config_for(None, run, []), Path(str(run.config.data)), runs=place / "runs")
    case = dataset.training[0]
    _, truth = read_labelled_case(case, dataset)
    drawn: dict[str, np.ndarray] = {}
    monkeypatch.setattr(pictures, "comparison_png", lambda scan, masks, *, spacing: drawn.update(masks) or b"")
    package: Any = SimpleNamespace(mask=lambda case: truth)
    pictures.comparison_pictures({"teacher": run}, [case], dataset, packages={"package": package}, pretrained_path=None)
    assert list(drawn) == ["truth", "boxes", "teacher", "package"]
    slices = [set(np.flatnonzero(drawn[name].any(axis=(1, 2)))) for name in ("truth", "boxes", "teacher")]
    assert slices[0] == slices[1] and slices[2] and slices[2] <= slices[0]
    rows = np.flatnonzero(drawn["truth"].any(axis=(0, 2)))
    assert set(rows[[0, -1]]) <= set(np.flatnonzero(drawn["boxes"].any(axis=(0, 2))))


@pytest.mark.slow
def test_it_teaches_with_boxes_from_the_masks(place: Path, tmp_path: Path):
    small = ["student.plan.spacing=[16,16,16]", "student.plan.patch=[32,32,64]", "student.plan.overlap=0"]
    small += ["student.training.steps=1", *SETTINGS]
    words = ["distill", "--teacher", place / "runs" / "sam", "--lambda", "0.5", "--no-control", "--runs", tmp_path]
    taught = verb(*words, settings=small)
    assert taught.exit_code == 0, taught.output
    assert len(list((tmp_path / "cache" / "targets").glob("*/*.targets"))) > 3  # one for each mask, not for each scan
    online = verb(*words, "--online", settings=small)
    assert online.exit_code == 2 and "finds nothing without prompts; leave --online out" in online.text


@pytest.mark.slow
def test_its_package_gives_the_same_masks(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pytest.importorskip("openvino")
    run, package, scan = place / "runs" / "sam", tmp_path / "package", scan_of(place)
    packed = verb("deploy", run, "--precision", "fp32", "--out", package, "--runs", place / "runs")
    assert packed.exit_code == 0, packed.output
    support = json.loads((package / "manifest.json").read_text())["prompts"]
    assert support == {"decoder": "model.decoder.xml", "kinds": ["box", "point"], "points": 1, "required": True}
    masks = {}
    for model in (run, package):
        mask = tmp_path / f"{model.name}.nii.gz"
        assert run_cli("predict", model, "-i", scan, "-o", mask, *BOX, in_process=True).exit_code == 0
        masks[model.name] = read_labels(mask)[0]
    assert (masks["sam"] == masks["package"]).mean() > 0.9999 and masks["sam"].any()
    assert run_device(["verify", "--package", str(package)]) == 0
    with pytest.raises(UsageError, match="segments only what it is shown"):
        run_device(["predict", "--package", str(package), str(scan), "-o", str(tmp_path / "none.nii.gz")])

    line = json.dumps({"space": "voxel", "classes": {"object": {"boxes": [[20, 20, 10, 50, 60, 12]]}}})
    both = json.dumps({"space": "voxel", "classes": {"object": {"boxes": [[20, 20, 10, 50, 60, 12]],
                                                                "points": [[30, 30, 11]]}}})  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{line}\n{both}\n".encode())))
    capsys.readouterr()
    clicked = tmp_path / "clicked.nii.gz"
    assert run_device(["prompt", "--package", str(package), str(scan), "-o", str(clicked)]) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["volumes_ml"] == {"object": 0.0} and second["volumes_ml"]["object"] > 0
    assert "a point beside a box" in third["error"]
    np.testing.assert_array_equal(read_labels(clicked)[0], masks["package"])
