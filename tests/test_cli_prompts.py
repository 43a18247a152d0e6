"""Prompts on the command line: a network that paints what it is told, and a real teacher from teach to evaluate."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from run_configs import run_config
from typer.testing import CliRunner

from samkd.cli.app import app
from samkd.distill import networks
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.base import TeacherNetwork
from samkd.training.checkpoint import save_weights
from samkd.training.run import Run
from samkd.volumes import Plan
from samkd.volumes.datasets.phantom.generate import LABELS, write_phantom

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


def samkd(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


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
    monkeypatch.setattr(networks, "load_network", lambda run, base: network.eval())
    return path


def test_points_and_boxes_reach_the_voxels_they_mean(painter, scan, tmp_path):
    image = nib.Nifti1Image.from_filename(scan)
    index = tuple(n // 3 for n in image.shape)
    x, y, z = (np.asarray(image.affine) @ (*index, 1))[:3]
    done = samkd(
        "predict", painter, "-i", scan, "-o", tmp_path / "m.nii", "--point", f"{x},{y},{z}", "--class", "liver"
    )
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "m.nii").dataobj)
    assert np.argwhere(mask).tolist() == [list(index)] and mask[index] == LIVER

    i, j, k = index
    box = f"{i},{j},{k},{i + 3},{j + 2},{k + 1}"
    options = ("--box", box, "--class", "liver", "--space", "voxel")
    done = samkd("predict", painter, "-i", scan, "-o", tmp_path / "b.nii", *options)
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "b.nii").dataobj)
    assert np.argwhere(mask).min(0).tolist() == [i, j, k] and np.argwhere(mask).max(0).tolist() == [i + 3, j + 2, k + 1]
    assert (mask > 0).sum() == 4 * 3 * 2

    prompts = {
        "space": "voxel",
        "classes": {"liver": {"points": [[i, j, k]]}, "spleen": {"points": [[i + 1, j, k, 1]]}},
    }
    (tmp_path / "p.json").write_text(json.dumps(prompts))
    done = samkd("predict", painter, "-i", scan, "-o", tmp_path / "f.nii", "--prompts", tmp_path / "p.json")
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
    done = samkd("predict", painter, "-i", scan, "-o", tmp_path / "m.nii", *options)
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "m.nii").exists()


def test_prompts_for_a_folder_of_scans_are_refused(painter, data, tmp_path):
    options = ("--point", "1,2,3", "--class", "liver")
    done = samkd("predict", painter, "-i", data / "imagesTr", "-o", tmp_path / "masks", *options)
    assert done.exit_code == 2 and "prompts belong to one" in " ".join(done.output.split())
    assert not (tmp_path / "masks").exists()


class Silent(Painter):
    prompt_kinds = frozenset()


def test_a_network_that_takes_no_prompts_says_so(tmp_path, scan, data, monkeypatch):
    run = make_run(tmp_path / "run", Silent(), data, monkeypatch)
    options = ("--point", "1,2,3", "--class", "liver")
    for done in (
        samkd("predict", run, "-i", scan, "-o", tmp_path / "m.nii", *options),
        samkd("evaluate", run, "--data", data, "--prompt-from-truth", "point"),
    ):
        assert done.exit_code == 2
        assert "takes no prompts" in " ".join(done.output.split())
    done = samkd("predict", run, "-i", scan, "-o", tmp_path / "m.nii")
    assert done.exit_code == 0, done.output


def test_scores_with_prompts_from_the_truth_say_so(painter, data, tmp_path):
    done = samkd("evaluate", painter, "--data", data, "--prompt-from-truth", "box", "-o", tmp_path / "box.json")
    assert done.exit_code == 0, done.output
    assert "shown a box from the truth" in " ".join(done.output.split())
    scores = json.loads((tmp_path / "box.json").read_text())
    assert scores["prompts_from_truth"] == "box"
    plain = samkd("evaluate", painter, "--data", data, "-o", tmp_path / "plain.json")
    assert plain.exit_code == 0 and "truth" not in plain.output
    without = json.loads((tmp_path / "plain.json").read_text())
    assert without["prompts_from_truth"] is None
    assert without["summary"]["mean"]["dice"] == 0 < 0.3 < scores["summary"]["mean"]["dice"]
    done = samkd("evaluate", painter, "--data", data, "--prompt-from-truth", "guess")
    assert done.exit_code == 2 and "choose point or box" in done.output


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


@pytest.mark.parametrize(("recipe", "kind"), [(SAM3D, "point"), (MEDSA, "point"), (MEDSA, "box"), (MASAM, "box")])
def test_a_real_teacher_from_training_with_prompts_to_scores(tmp_path, recipe, kind):
    sets = [part for key, value in {**TINY, **recipe}.items() for part in ("--set", f"{key}={value}")]
    run, runs = tmp_path / "run", tmp_path / "runs"
    done = samkd("teach", "--run", run, "--runs", runs, *sets)
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
        done = samkd("predict", run, "-i", scan, "-o", tmp_path / f"{name}.nii", *prompts)
        assert done.exit_code == 0, done.output
        mask = nib.Nifti1Image.from_filename(tmp_path / f"{name}.nii")
        assert mask.shape == image.shape
        assert np.abs(np.asarray(mask.affine) - np.asarray(image.affine)).max() < 1e-5
    done = samkd("evaluate", run, "--data", data, "--prompt-from-truth", kind, "-o", tmp_path / "scores.json")
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "scores.json").read_text())["cases"]) == 1
    if recipe is MASAM:
        done = samkd("predict", run, "-i", scan, "-o", tmp_path / "p.nii", "--point", "0,0,0", "--class", "liver")
        assert done.exit_code == 2 and "no prompt of the kind point; it takes box" in " ".join(done.output.split())
        masks = [np.asarray(nib.Nifti1Image.from_filename(tmp_path / name).dataobj) for name in ("auto.nii", "box.nii")]
        assert (masks[0] != masks[1]).any()
    if recipe is SAM3D:
        done = samkd("predict", run, "-i", scan, "-o", tmp_path / "b.nii", "--box", "0,0,0,9,9,9", "--class", "liver")
        assert done.exit_code == 2 and "no prompt of the kind box" in " ".join(done.output.split())
