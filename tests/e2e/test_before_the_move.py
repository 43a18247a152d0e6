"""Runs and packages that the last commit before the move of the tree wrote still load, and give the same masks.

They are made here by that commit itself, taken out of the repository's history: nothing binary is kept in git.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.command_line import run_cli

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "1095ebd"
SMALL = ["--set", "phantom.training=2", "--set", "phantom.test=1", "--set", "student.training.steps=2"]

pytestmark = pytest.mark.slow


def run(source: Path, *arguments: object, cwd: Path) -> None:
    """Run a command line of samkd of the sources in `source`/samkd."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", "from samkd.cli import main; main()", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """A folder with the sources of that commit as `samkd`, a run in runs/control and its package in `package`."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", BEFORE]
    try:
        archive = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"commit {BEFORE} is not in this copy's history (a shallow clone, or no git)")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as sources:
        sources.extractall(folder / "samkd", filter="data")
    run(folder, "distill", "--config", "phantom", "--lambda", 1, "--run", "runs/control", *SMALL, cwd=folder)
    options = ["--max-drop", 1, "--set", "deployment.calibration=2", "--out", "package"]
    run(folder, "deploy", "runs/control", *options, cwd=folder)
    return folder


@pytest.mark.parametrize("model", ["runs/control", "package.zip"])
def test_masks_of_an_older_model_are_the_same(before, model, tmp_path):
    (scan,) = sorted((before / "runs").glob("data/*/imagesTs/*.nii.gz"))
    run(before, "predict", before / model, "-i", scan, "-o", tmp_path / "then.nii.gz", cwd=tmp_path)
    now = run_cli("predict", before / model, "-i", scan, "-o", tmp_path / "now.nii.gz", in_process=True)
    assert now.exit_code == 0, now.output
    then, now = (nibabel.load(tmp_path / name) for name in ("then.nii.gz", "now.nii.gz"))
    assert np.array_equal(np.asarray(then.dataobj), np.asarray(now.dataobj))  # type: ignore[attr-defined]
    assert np.array_equal(then.affine, now.affine)  # type: ignore[attr-defined]
    assert len(np.unique(np.asarray(now.dataobj))) > 1  # type: ignore[attr-defined]
