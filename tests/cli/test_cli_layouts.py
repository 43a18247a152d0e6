"""Any layout, from check to a picture's mask, as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import dataset_layouts
from helpers.command_line import run_cli
from PIL import Image

pytestmark = pytest.mark.slow

PICTURES = [
    "teacher.plan.intensity=[{rule: window, low: 0, high: 255}]",
    "teacher.plan.size=[null,32,32]",
    "teacher.plan.patch=[1,32,32]",
    "teacher.training.steps=2",
]


@pytest.mark.parametrize("name", ["nnU-Net v2 raw", "EndoVis videos"])
def test_check_names_the_layout_draws_cases_and_converts(tmp_path, name):
    data = dataset_layouts.LAYOUTS[name](tmp_path / "data")
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    done = run_cli("check", "data", "--pictures", "cases.png", cwd=tmp_path, in_process=True)
    assert done.exit_code == 0, done.stderr
    assert f"{name} layout" in done.stdout and "4 cases, no fault" in done.stdout
    sheet = Image.open(tmp_path / "cases.png")
    assert sheet.format == "PNG" and sheet.width > 4 * 600 and np.asarray(sheet).std() > 10
    done = run_cli("convert", "data", "out", cwd=tmp_path, in_process=True)
    assert done.exit_code == 0 and "now nnU-Net v2 raw" in done.stdout, done.stderr
    assert run_cli("convert", "data", "out", cwd=tmp_path, in_process=True).exit_code == 3
    done = run_cli("check", "out", cwd=tmp_path, in_process=True)
    assert done.exit_code == 0 and "nnU-Net v2 raw layout" in done.stdout
    assert before == sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))


def test_check_says_what_it_looked_for_and_every_fault(tmp_path):
    done = run_cli("check", tmp_path, cwd=tmp_path, in_process=True)
    assert done.exit_code == 3 and all(name in done.stderr for name in dataset_layouts.LAYOUTS)
    data = dataset_layouts.amos(tmp_path / "data")
    for number in (1, 501):
        path = data / "imagesTr" / f"amos_{number:04d}.nii.gz"
        path.write_bytes(path.read_bytes()[:-50])
    done = run_cli("check", data, cwd=tmp_path, in_process=True)
    assert done.exit_code == 3 and "2 of 10 cases cannot be used" in done.stderr
    assert "amos_0001.nii.gz: the compressed data are damaged" in done.stdout.replace("\n", "")
    done = run_cli("check", data, "--modality", "MR", cwd=tmp_path, in_process=True)
    assert done.exit_code == 3 and "1 of 5 cases cannot be used" in done.stderr
    done = run_cli("check", data, "--modality", "PET", cwd=tmp_path, in_process=True)
    assert done.exit_code == 3 and "'PET' cannot be chosen" in done.stderr


@pytest.fixture(scope="module")
def fold(tmp_path_factory) -> Path:
    """A teacher on two of three labelled pictures, the third is the fold held out for test."""
    folder = tmp_path_factory.mktemp("pictures")
    dataset_layouts.pictures(folder / "data")
    sets = [part for override in (*PICTURES, "split.folds=3") for part in ("--set", override)]
    done = run_cli("teach", "--data", "data", *sets, "--run", "run", cwd=folder, in_process=True)
    assert done.exit_code == 0, done.stderr
    return folder


def test_a_run_keeps_its_split_and_another_follows_it(fold):
    split = json.loads((fold / "run" / "splits.json").read_text())
    assert {part: len(names) for part, names in split.items()} == {"train": 1, "validation": 1, "test": 1}
    assert {name for names in split.values() for name in names} == {"train_000", "train_001", "train_002"}
    sets = [part for override in PICTURES for part in ("--set", override)]
    done = run_cli(
        "teach", "--data", "data", *sets, "--split", "run/splits.json", "--run", "again", cwd=fold, in_process=True
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads((fold / "again" / "splits.json").read_text()) == split
    one, two = (json.loads((fold / name / "metrics.json").read_text())["test"] for name in ("run", "again"))
    assert one == two
    done = run_cli(
        "evaluate",
        "run",
        "--data",
        "data",
        "--split",
        "run/splits.json",
        "-o",
        "scores.json",
        cwd=fold,
        in_process=True,
    )
    assert done.exit_code == 0, done.stderr
    assert list(json.loads((fold / "scores.json").read_text())["cases"]) == split["test"]


def test_pictures_get_masks_of_their_size(fold):
    done = run_cli("predict", "run", "-i", "data/test/images/test_000.png", "-o", "mask.png", cwd=fold, in_process=True)
    assert done.exit_code == 0, done.stderr
    mask = Image.open(fold / "mask.png")
    assert mask.mode == "P" and mask.size == Image.open(fold / "data/test/images/test_000.png").size
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}


def test_folders_videos_and_scans_that_do_not_fit(fold):
    def predict(scans: Path, out: Path):
        return run_cli("predict", "run", "-i", scans, "-o", out, cwd=fold, in_process=True)

    assert predict(fold / "data" / "train" / "images", fold / "masks").exit_code == 0
    assert sorted(path.name for path in (fold / "masks").iterdir()) == [f"train_{i:03d}.png" for i in range(3)]
    dataset_layouts.endovis(fold / "video", training=1, test=0, frames=3)
    assert predict(fold / "video" / "seq_1" / "left_frames", fold / "frames").exit_code == 0
    assert sorted(path.name for path in (fold / "frames" / "seq_1").iterdir()) == [
        f"frame{i:03d}.png" for i in range(3)
    ]
    dataset_layouts.btcv(fold / "ct", training=1, test=0)
    refused = predict(fold / "ct" / "Training" / "img" / "img0001.nii.gz", fold / "ct.nii.gz")
    assert refused.exit_code == 3 and "expected 3" in refused.stderr
    assert not (fold / "ct.nii.gz").exists()


def test_masks_of_pictures_are_scored_by_their_class_numbers(fold):
    """The truth is coded 0, 128, 255; a folder of masks holds the numbers 0, 1, 2 that predict writes."""
    (fold / "perfect").mkdir()
    truth = np.asarray(Image.open(fold / "data" / "test" / "masks" / "test_000.png"))
    Image.fromarray(np.searchsorted((0, 128, 255), truth).astype(np.uint8)).save(fold / "perfect" / "test_000.png")
    done = run_cli("evaluate", "perfect", "--data", "data", "-o", "perfect.json", cwd=fold, in_process=True)
    assert done.exit_code == 0, done.stderr
    assert json.loads((fold / "perfect.json").read_text())["summary"]["mean"]["dice"] == 1.0


def test_a_split_of_other_data_is_refused(fold, tmp_path):
    (tmp_path / "splits.json").write_text('{"train": ["a"], "validation": ["b"], "test": []}')
    done = run_cli("teach", "--data", "data", "--split", tmp_path / "splits.json", cwd=fold, in_process=True)
    assert done.exit_code == 3 and "does not hold ['a', 'b']" in done.stderr
    done = run_cli("teach", "--data", "data", "--set", "split={folds: 3, fold: 3}", cwd=fold, in_process=True)
    assert done.exit_code == 2 and "expected 0 to folds - 1" in done.stderr
