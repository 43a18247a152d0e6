"""The command line as a user meets it: processes, exit codes, messages."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import run_cli

from samkd.distill.networks import load_network
from samkd.evaluation.scores import case_scores
from samkd.training.run import Run
from samkd.training.trainer import score_scans
from samkd.volumes import Volume
from samkd.volumes.datasets.registry import read_dataset
from samkd.volumes.io.nifti import read_scan, write_scan

pytestmark = pytest.mark.slow

HEAVY = ("torch", "monai", "numpy", "nibabel", "openvino", "lightning", "pydantic")
TINY = [
    "phantom.training=3",
    "phantom.test=1",
    "teacher.plan.size=[null,32,32]",
    "teacher.plan.patch=[5,32,32]",
    "teacher.training.steps=2",
    "student.plan.spacing=[12,12,12]",
    "student.plan.patch=[32,32,64]",
    "student.training.steps=2",
    "student.training.batch=1",
    "deployment.precision=fp32",
]
SETS = [part for override in TINY for part in ("--set", override)]


def test_help_lists_the_verbs_without_importing_anything_heavy(tmp_path):
    program = (
        "import sys\nfrom samkd.cli.app import app\ntry:\n    app(['--help'], prog_name='samkd')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    for verb in (
        "teach",
        "distill",
        "deploy",
        "predict",
        "evaluate",
        "report",
        "bench",
        "info",
        "check",
        "convert",
        "doctor",
        "demo",
    ):
        assert verb in done.stdout
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["teach", "--set", "teacher.training.stepz=1", "--set", "seeds=2"], 2, "2 fault(s)"),
        (["teach", "--config", "nowhere"], 2, "is no config"),
        (["teach", "--config", "hippocampus"], 2, "give --data DIR"),
        (["teach", "--data", "nowhere"], 3, "dataset.json"),
        (["teach", *SETS, "--teacher", "nobody"], 2, "nobody"),
        (["teach", *SETS, "--backbone", "vit_xxl"], 2, "vit_xxl"),
        (["distill"], 3, "no finished teach run"),
        (["distill", "--lambda", "1.5"], 2, "less than or equal to 1"),
        (["distill", "--teacher", "nowhere"], 3, "not a run folder"),
        (["deploy"], 3, "no finished distill run"),
        (["check", "nowhere"], 3, "dataset.json"),
        (["predict", "nowhere", "-i", "scan.nii.gz", "-o", "mask.nii.gz"], 3, "scan.nii.gz"),
        (["bench", "nowhere", "--shape", "12x"], 2, "slices x rows x columns"),
        (["bench", "packages", "nowhere", "--shape", "12x"], 2, "slices x rows x columns"),
        (["bench", "--shape", "12x", "nowhere"], 2, "slices x rows x columns"),
        (["bench", "nowhere"], 3, "is no package"),
        (["bench", "teacher", "--backbone", "vit_xxl"], 2, "vit_xxl"),
        (["bench", "--backbone", "vit_xxl", "teacher"], 2, "vit_xxl"),
        (["bench", "distill"], 2, "name the runs that teach"),
        (["bench", "distill", "nowhere"], 3, "not a run folder"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_leaves_nothing_behind(tmp_path, arguments, code, said):
    done = run_cli(*arguments, cwd=tmp_path, in_process=True)
    assert done.exit_code == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts] == []


@pytest.mark.parametrize(("arguments", "code"), [(["teach", "--config", "nowhere"], 2), (["check", "nowhere"], 3)])
def test_a_wrong_call_in_a_process_of_its_own_ends_with_the_code_alone(tmp_path, arguments, code):
    done = run_cli(*arguments, cwd=tmp_path)
    assert done.exit_code == code and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A whole session on a tiny phantom: teacher, control, student, package."""
    folder = tmp_path_factory.mktemp("session")
    for arguments in (["teach", *SETS], ["distill", "--lambda", "0.5"], ["deploy", "--target", "openvino"]):
        extra = ["--max-drop", "1"] if arguments[0] == "deploy" else []
        done = run_cli(*arguments, *extra, cwd=folder)
        assert done.exit_code == 0, done.stderr
    return folder


def test_the_session_leaves_complete_runs(finished):
    runs = {path.name.split("-")[0]: path for path in (finished / "runs").glob("*-phantom-*")}
    assert set(runs) == {"teach", "control", "distill"}
    for path in runs.values():
        assert {"config.yaml", "weights.safetensors", "state", "log.jsonl", "metrics.json"} <= {
            entry.name for entry in path.iterdir()
        }
        metrics = json.loads((path / "metrics.json").read_text())
        assert metrics["steps"] == 2
        assert len(metrics["test"]["cases"]) == 1
    assert not list(finished.rglob("*.tmp-*"))


def test_a_run_knows_its_training_data_and_its_package_knows_them_from_it(finished, tmp_path):
    run = next((finished / "runs").glob("distill-*"))
    profile = Run.read(run).intensities()
    assert len(profile) == 1
    manifest = next((finished / "runs" / "packages").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["intensities"] == profile
    scan = read_scan(next((finished / "runs" / "data").rglob("imagesTs/*.nii.gz")))
    write_scan(tmp_path / "usual.nii.gz", scan)
    write_scan(tmp_path / "shifted.nii.gz", Volume(scan.array + 300, scan.geometry))
    for name, warned in (("usual", False), ("shifted", True)):
        done = run_cli(
            "predict",
            str(run),
            "-i",
            str(tmp_path / f"{name}.nii.gz"),
            "-o",
            str(tmp_path / "m.nii.gz"),
            in_process=True,
        )
        assert done.exit_code == 0 and ("intensities unlike the training data" in done.stderr) == warned
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "intensities.json").write_text('[{"percentiles": [3, 2, 1], "limit": 0}]')
    done = run_cli(
        "predict", str(copy), "-i", str(tmp_path / "usual.nii.gz"), "-o", str(tmp_path / "n.nii.gz"), in_process=True
    )
    assert done.exit_code == 3 and "intensities.json: holds no percentiles" in " ".join(done.stderr.split())


def test_the_control_is_reused_not_repeated(finished):
    control = next((finished / "runs").glob("control-*/log.jsonl"))
    before = control.stat().st_mtime_ns
    done = run_cli("distill", "--lambda", "0.5", cwd=finished, in_process=True)
    assert done.exit_code == 0, done.stderr
    assert control.stat().st_mtime_ns == before
    assert len(list((finished / "runs").glob("control-*"))) == 1


def test_run_and_package_predict_the_same_mask_on_the_scans_own_grid(finished, tmp_path):
    import numpy as np
    from nibabel.nifti1 import Nifti1Image

    student = next((finished / "runs").glob("distill-*"))
    package = next((finished / "runs" / "packages").glob("*/manifest.json")).parent
    scan = next((finished / "runs" / "data").glob("*/imagesTs/*.nii.gz"))
    for name, model in (("run", student), ("package", package)):
        done = run_cli("predict", model, "-i", scan, "-o", tmp_path / f"{name}.nii.gz", cwd=tmp_path, in_process=True)
        assert done.exit_code == 0, done.stderr
    source = Nifti1Image.from_filename(scan)
    masks = [Nifti1Image.from_filename(tmp_path / f"{name}.nii.gz") for name in ("run", "package")]
    for mask in masks:
        assert mask.shape == source.shape
        assert np.abs(np.asarray(mask.affine) - np.asarray(source.affine)).max() < 1e-5
    one, two = (np.asarray(mask.dataobj) for mask in masks)
    assert (one == two).mean() > 0.999


def test_report_compares_all_four(finished):
    done = run_cli("report", cwd=finished, in_process=True)
    assert done.exit_code == 0, done.stderr
    html = (finished / "runs" / "report.html").read_text()
    for column in ("teacher", "student without teacher", "student with teacher", "package"):
        assert column in html and column.split()[-1] in done.stdout
    assert "data:image/png;base64," in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_a_run_folder_of_another_config_is_refused(finished):
    run = next((finished / "runs").glob("teach-*"))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*"))
    done = run_cli("teach", *SETS, "--set", "seed=9", "--run", run, cwd=finished, in_process=True)
    assert done.exit_code == 3
    assert "from another config" in done.stderr and "seed" in done.stderr
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*"))


def test_evaluating_a_folder_of_masks_scores_the_truth_as_perfect(finished, tmp_path):
    data = next((finished / "runs" / "data").glob("phantom-*"))
    shutil.copytree(data / "labelsTs", tmp_path / "masks")
    done = run_cli(
        "evaluate", tmp_path / "masks", "--data", data, "-o", tmp_path / "scores.json", cwd=tmp_path, in_process=True
    )
    assert done.exit_code == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["summary"]["mean"]["dice"] == 1.0


def test_check_accepts_the_phantom_and_names_a_broken_case(finished, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(next((finished / "runs" / "data").glob("phantom-*")), data)
    done = run_cli("check", data, cwd=tmp_path, in_process=True)
    assert done.exit_code == 0, done.stderr
    assert "no fault" in done.stdout
    broken = sorted((data / "imagesTr").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-100])
    done = run_cli("check", data, cwd=tmp_path, in_process=True)
    assert done.exit_code == 3
    assert "1 of 4 cases cannot be used" in done.stderr


def test_two_processes_train_together(tmp_path):
    """One of them writes and prints, and the scores are those of a single process with the same weights."""
    done = run_cli("teach", *SETS, "--set", "phantom.test=3", "--devices", 2, cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("liver") == 1 and done.stderr.count("validation Dice") == 1
    run = Run.read(next((tmp_path / "runs").glob("teach-*")))
    assert [entry["step"] for entry in run.history()] == [1, 2]
    dataset = read_dataset(Path(run.config.data))
    with contextlib.chdir(tmp_path):
        alone = score_scans(load_network(run), dataset.test, dataset, plan=run.plan, title="")
    scores = run.metrics().test
    assert scores is not None and len(alone) == 3
    assert case_scores(alone).to_json() == scores.to_json()


def test_an_unwritable_run_root_is_one_clear_error(tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    done = run_cli("teach", *SETS, cwd=tmp_path, in_process=True)
    assert done.exit_code == 3
    assert "Traceback" not in done.stderr and "runs" in done.stderr


def test_every_teacher_says_the_patch_of_its_paper():
    """`samkd info` builds each teacher for it."""
    from samkd.teachers import PAPER_PATCHES, TEACHERS

    assert set(PAPER_PATCHES) == set(TEACHERS)


def test_info_counts_what_the_papers_count(tmp_path):
    rows = json.loads(run_cli("info", "--json", "--classes", "13", cwd=tmp_path, in_process=True).stdout)
    result = {(row["name"], row["backbone"]): (row["parameters"], row["tuned"]) for row in rows}
    assert result["masam", "vit_h"] == (729_864_857, 96_811_929)  # Chen et al. 2023: 12 organs, about 97 M tuned
    assert {name for name, _ in result} >= {"masam", "medsa", "autosam", "sam3d", "swinunetr-tiny", "swinunetr-small"}
