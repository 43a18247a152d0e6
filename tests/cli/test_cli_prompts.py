"""Prompts on the command line: a network that paints what it is told, and a real teacher from teach to evaluate."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.command_line import run_cli
from helpers.run_configs import run_config

from samkd.distill import networks
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.base import TeacherNetwork
from samkd.training.checkpoint import save_weights
from samkd.training.run import Run
from samkd.volumes import Plan
from samkd.volumes.datasets.phantom.generate import LABELS, write_phantom

pytestmark = pytest.mark.slow

PLAN = Plan(intensity=({"rule": "window", "low": -200, "high": 250},), patch=(12, 24, 24))
LIVER = next(value for value, name in LABELS.items() if name == "liver")


class Painter(TeacherNetwork):
    """Marks the voxel of each point inside, and every voxel of each box, with its class; all else is background."""

    prompt_kinds = frozenset({"point", "box"})

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        logits = image.new_zeros(len(image), len(LABELS), *image.shape[2:])
        logits[:, 0] = 5
        if prompts is None:
            return logits
        for row, value, index in (prompts.labels == 1).nonzero().tolist():
            d, h, w = (prompts.points[row, value, index] + 0.5).floor().long().tolist()
            logits[row, value + 1, d, h, w] = 50
        for row, value in (~prompts.boxes.isnan().any(-1)).nonzero().tolist():
            low, high = (prompts.boxes[row, value] + 0.5).floor().long().view(2, 3).tolist()
            logits[(row, value + 1, *(slice(a, b + 1) for a, b in zip(low, high, strict=True)))] = 50
        return logits


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", training=2, test=1, seed=0)


@pytest.fixture
def scan(data):
    return next((data / "imagesTs").iterdir())


@pytest.fixture
def painter(tmp_path, data, monkeypatch):
    """A run folder whose network is a Painter on the scan's own voxels."""
    return make_run(tmp_path / "run", Painter(), data, monkeypatch)


def make_run(path, network, data, monkeypatch):
    labels = {str(value): name for value, name in LABELS.items()}
    run = Run.create(path, run_config(labels=labels, plan=PLAN.to_dict(), data=str(data)))
    save_weights(network, run.weights)
    monkeypatch.setattr(networks, "teacher_from_spec", lambda spec: network)
    return path


def test_points_and_boxes_reach_the_voxels_they_mean(painter, scan, tmp_path):
    image = nib.Nifti1Image.from_filename(scan)
    index = tuple(n // 3 for n in image.shape)
    x, y, z = (np.asarray(image.affine) @ (*index, 1))[:3]
    done = run_cli(
        "predict",
        painter,
        "-i",
        scan,
        "-o",
        tmp_path / "m.nii",
        "--point",
        f"{x},{y},{z}",
        "--class",
        "liver",
        in_process=True,
    )
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "m.nii").dataobj)
    assert np.argwhere(mask).tolist() == [list(index)] and mask[index] == LIVER

    i, j, k = index
    box = f"{i},{j},{k},{i + 3},{j + 2},{k + 1}"
    options = ("--box", box, "--class", "liver", "--space", "voxel")
    done = run_cli("predict", painter, "-i", scan, "-o", tmp_path / "b.nii", *options, in_process=True)
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "b.nii").dataobj)
    assert np.argwhere(mask).min(0).tolist() == [i, j, k] and np.argwhere(mask).max(0).tolist() == [i + 3, j + 2, k + 1]
    assert (mask > 0).sum() == 4 * 3 * 2

    prompts = {
        "space": "voxel",
        "classes": {"liver": {"points": [[i, j, k]]}, "spleen": {"points": [[i + 1, j, k, 1]]}},
    }
    (tmp_path / "p.json").write_text(json.dumps(prompts))
    done = run_cli(
        "predict", painter, "-i", scan, "-o", tmp_path / "f.nii", "--prompts", tmp_path / "p.json", in_process=True
    )
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "f.nii").dataobj)
    assert {LABELS[value] for value in np.unique(mask) if value} == {"liver", "spleen"} and (mask > 0).sum() == 2


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--point", "1,2", "--class", "liver"], 2, "expected x,y,z"),
        (["--point", "1,2,3"], 2, "say --class"),
        (["--point", "-1,2,3", "--class", "lung"], 2, "'lung' is unknown"),
        (["--point", "1,2,3,0", "--class", "liver"], 2, "no prompt of the kind outside point; it takes box, point"),
        (["--point", "5000,2,3", "--class", "liver"], 3, "outside the scan"),
        (["--box", "5,5,5,1,9,9", "--class", "liver"], 2, "inverted along x"),
        (["--prompts", "nowhere.json"], 3, "nowhere.json"),
    ],
)
def test_a_wrong_prompt_is_one_error_and_writes_nothing(painter, scan, tmp_path, options, code, said):
    done = run_cli("predict", painter, "-i", scan, "-o", tmp_path / "m.nii", *options, in_process=True)
    assert done.exit_code == code, done.output
    assert said in done.text
    assert not (tmp_path / "m.nii").exists()


def test_prompts_for_a_folder_of_scans_are_refused(painter, data, tmp_path):
    options = ("--point", "1,2,3", "--class", "liver")
    done = run_cli("predict", painter, "-i", data / "imagesTr", "-o", tmp_path / "masks", *options, in_process=True)
    assert done.exit_code == 2 and "prompts belong to one" in done.text
    assert not (tmp_path / "masks").exists()


def test_a_run_writes_no_mask_over_a_scan_and_goes_on_after_a_bad_one(painter, data, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in (data / "imagesTr").iterdir():
        (scans / path.name).write_bytes(path.read_bytes())
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    before = {path: path.read_bytes() for path in scans.iterdir()}
    done = run_cli("predict", painter, "-i", scans, "-o", scans, in_process=True)
    assert done.exit_code == 2 and "would overwrite the scan" in done.stderr
    assert {path: path.read_bytes() for path in scans.iterdir()} == before
    report = tmp_path / "report.json"
    done = run_cli(
        "predict", painter, "-i", scans, "-o", tmp_path / "masks", "--report", report, "--threads", 1, in_process=True
    )
    assert done.exit_code == 3 and "error: 1 of 3 scans have no mask: bad.nii.gz" in done.stderr
    assert "nothing was found" in done.stderr
    assert len(list((tmp_path / "masks").iterdir())) == 2
    content = json.loads(report.read_text())
    assert content["run"] == "run" and content["engine"].startswith("torch") and len(content["failed"]) == 1
    assert all(value > 0 for scan in content["scans"] for value in scan["seconds"].values())


class Silent(Painter):
    prompt_kinds = frozenset()


def test_a_network_that_takes_no_prompts_says_so(tmp_path, scan, data, monkeypatch):
    run = make_run(tmp_path / "run", Silent(), data, monkeypatch)
    options = ("--point", "1,2,3", "--class", "liver")
    for done in (
        run_cli("predict", run, "-i", scan, "-o", tmp_path / "m.nii", *options, in_process=True),
        run_cli("evaluate", run, "--data", data, "--prompt-from-truth", "point", in_process=True),
    ):
        assert done.exit_code == 2
        assert "takes no prompts" in done.text
    done = run_cli("predict", run, "-i", scan, "-o", tmp_path / "m.nii", in_process=True)
    assert done.exit_code == 0, done.output


def test_scores_with_prompts_from_the_truth_say_so(painter, data, tmp_path):
    done = run_cli(
        "evaluate", painter, "--data", data, "--prompt-from-truth", "box", "-o", tmp_path / "box.json", in_process=True
    )
    assert done.exit_code == 0, done.output
    assert "shown box from the truth" in done.text
    scores = json.loads((tmp_path / "box.json").read_text())
    assert scores["prompts_from_truth"] == "box"
    plain = run_cli("evaluate", painter, "--data", data, "-o", tmp_path / "plain.json", in_process=True)
    assert plain.exit_code == 0 and "truth" not in plain.output
    without = json.loads((tmp_path / "plain.json").read_text())
    assert without["prompts_from_truth"] is None
    assert without["summary"]["mean"]["dice"] == 0 < 0.3 < scores["summary"]["mean"]["dice"]
    draws = run_cli(
        *("evaluate", painter, "--data", data, "--prompt-from-truth", "box,iou=0.5,keep=box", "--repeat", "2"),
        *("-o", tmp_path / "draws.json"),
        in_process=True,
    )
    assert draws.exit_code == 0 and "repetitions" in draws.stdout and "±" in draws.stdout, draws.output
    one, two = json.loads((tmp_path / "draws.json").read_text())["repetitions"]
    assert one["summary"]["mean"]["dice"] != two["summary"]["mean"]["dice"] < scores["summary"]["mean"]["dice"]
    alone = run_cli("evaluate", painter, "--data", data, "--repeat", "2", in_process=True)
    assert alone.exit_code == 2 and "needs --prompt-from-truth" in alone.text
    done = run_cli("evaluate", painter, "--data", data, "--prompt-from-truth", "guess", in_process=True)
    assert done.exit_code == 2 and "choose point, points:N, box" in done.text


TINY = {
    "phantom.training": 3,
    "phantom.test": 1,
    "teacher.training.steps": 3,
    "teacher.training.validate_every": 3,
}
SAM3D = {
    "teacher.name": "sam3d",
    "teacher.plan.size": "[16,16,16]",
    "teacher.plan.patch": "[16,16,16]",
    "teacher.prompts": "{kind: points, count: 3, share: 0.9}",
}
MEDSA = {
    "teacher.name": "medsa",
    "teacher.plan.size": "[6,32,32]",
    "teacher.plan.patch": "[4,32,32]",
    "teacher.prompts": "{kind: box, overlap: 0.75, share: 0.9}",
}


MASAM = {
    "teacher.name": "masam",
    "teacher.options": "{decoder: multi_scale, adapters: after}",
    "teacher.plan.size": "[6,32,32]",
    "teacher.plan.patch": "[5,32,32]",
    "teacher.prompts": "{kind: box, relax: 0.05, share: 0.9}",
}


@pytest.mark.parametrize(("config", "kind"), [(SAM3D, "point"), (MEDSA, "point"), (MEDSA, "box"), (MASAM, "box")])
def test_a_real_teacher_from_training_with_prompts_to_scores(tmp_path, config, kind):
    sets = [part for key, value in {**TINY, **config}.items() for part in ("--set", f"{key}={value}")]
    run, runs = tmp_path / "run", tmp_path / "runs"
    done = run_cli("teach", "--run", run, "--runs", runs, *sets, in_process=True)
    assert done.exit_code == 0, done.output
    assert (Run.read(run).config.objective.prompts or {})["share"] == 0.9
    data = next((runs / "data").iterdir())
    scan = next((data / "imagesTs").iterdir())
    image = nib.Nifti1Image.from_filename(scan)
    index = [n // 2 for n in image.shape]
    if kind == "point":
        place = ",".join(map(str, (np.asarray(image.affine) @ (*index, 1))[:3]))
        options = ("--point", place)
    else:
        options = ("--box", ",".join(map(str, [*(n - 5 for n in index), *(n + 5 for n in index)])), "--space", "voxel")
    for name, prompts in (("auto", ()), (kind, (*options, "--class", "liver"))):
        done = run_cli("predict", run, "-i", scan, "-o", tmp_path / f"{name}.nii", *prompts, in_process=True)
        assert done.exit_code == 0, done.output
        mask = nib.Nifti1Image.from_filename(tmp_path / f"{name}.nii")
        assert mask.shape == image.shape
        assert np.abs(np.asarray(mask.affine) - np.asarray(image.affine)).max() < 1e-5
    done = run_cli(
        "evaluate", run, "--data", data, "--prompt-from-truth", kind, "-o", tmp_path / "scores.json", in_process=True
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "scores.json").read_text())["cases"]) == 1
    if config is MASAM:
        done = run_cli(
            "predict",
            run,
            "-i",
            scan,
            "-o",
            tmp_path / "p.nii",
            "--point",
            "0,0,0",
            "--class",
            "liver",
            in_process=True,
        )
        assert done.exit_code == 2 and "no prompt of the kind point; it takes box" in done.text
        masks = [np.asarray(nib.Nifti1Image.from_filename(tmp_path / name).dataobj) for name in ("auto.nii", "box.nii")]
        assert (masks[0] != masks[1]).any()
    if config is SAM3D:
        done = run_cli(
            "predict",
            run,
            "-i",
            scan,
            "-o",
            tmp_path / "b.nii",
            "--box",
            "0,0,0,9,9,9",
            "--class",
            "liver",
            in_process=True,
        )
        assert done.exit_code == 2 and "no prompt of the kind box" in done.text
