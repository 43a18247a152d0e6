"""A teacher that adapts a published file: what its run keeps, and how it is put together again."""

import json

import pytest
import torch
from helpers.command_line import run_cli
from safetensors.torch import load_file
from torch import nn

from samkd.configs.load import load_config
from samkd.distill.networks import load_network
from samkd.errors import BadInputError, IntegrityError
from samkd.evaluation.records import CaseScores
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder
from samkd.teachers.train import teach
from samkd.volumes.datasets.phantom.generate import write_phantom
from samkd.volumes.datasets.registry import read_dataset

pytestmark = pytest.mark.slow

SMALL = [
    "phantom.training=3",
    "phantom.test=1",
    "teacher.plan.size=[null,32,32]",
    "teacher.plan.patch=[3,32,32]",
    "teacher.training.steps=2",
    "teacher.training.batch=1",
    "teacher.training.validate_every=2",
]


def published(path, seed: int):
    """A file with the keys and shapes of SAM's, at the size of vit_tiny_p8."""
    torch.manual_seed(seed)
    backbone = get_backbone("vit_tiny_p8")
    sam = nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(backbone, image_size=(64, 64)),
            "prompt_encoder": build_prompt_encoder(backbone, image_size=(64, 64)),
            "mask_decoder": MaskDecoder(backbone.decoder, channels=backbone.out_chans, masks=4, stages=2),
        }
    )
    torch.save(sam.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    config = load_config("phantom", SMALL)
    dataset = read_dataset(write_phantom(root / "data", training=3, test=1, seed=0))
    base = published(root / "sam.pth", seed=0)
    return teach(config, dataset, runs=root / "runs", weights=base), base


def test_the_run_keeps_what_was_tuned_and_the_hash_of_the_base(taught):
    run, base = taught
    kept = load_file(run.weights)
    frozen = [name for name in kept if name.startswith("image_encoder.") and (".attn.proj." in name or ".mlp." in name)]
    assert frozen == [] and any("adapter1" in name for name in kept) and any("mask_decoder" in name for name in kept)
    state = load_file(run.state)
    assert not any(".mlp." in name and "image_encoder" in name for name in state)
    assert run.config.objective.pretrained.name == "sam.pth"
    report = json.loads((run.path / "pretrained.json").read_text())
    assert report["variant"] == "vit_tiny_p8" and "image_encoder.pos_embed" in report["interpolated"]
    network = load_network(run)
    theirs = torch.load(base, weights_only=True)
    key = "image_encoder.blocks.0.mlp.lin1.weight"
    assert torch.equal(network.get_parameter(key), theirs[key])


def test_another_base_is_refused_and_a_moved_one_can_be_named(taught, tmp_path):
    run, base = taught
    with pytest.raises(IntegrityError, match=r"other\.pth: not the weights that .* adapts \(sam\.pth, sha256"):
        load_network(run, pretrained_path=published(tmp_path / "other.pth", seed=1))
    moved = tmp_path / "moved.pth"
    moved.write_bytes(base.read_bytes())
    again = load_network(run, pretrained_path=moved).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in load_network(run).state_dict().items())
    with pytest.raises(BadInputError, match=r"gone\.pth: .* adapts this file .* --weights"):
        load_network(run, pretrained_path=tmp_path / "gone.pth")


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def moved(taught, tmp_path):
    """The run, and its base where the run does not look for it."""
    run, base = taught
    base.rename(tmp_path / "moved.pth")
    yield run, tmp_path / "moved.pth"
    (tmp_path / "moved.pth").rename(base)


def test_predict_and_evaluate_find_a_moved_base(moved, tmp_path):
    run, base = moved
    data = run.path.parent.parent / "data"
    scan = next((data / "imagesTs").iterdir())
    predict = ("predict", run.path, "-i", scan, "-o", tmp_path / "mask.nii.gz")
    done = run_cli(*predict, in_process=True)
    assert done.exit_code == 3 and "say where it is: --weights" in done.text
    done = run_cli(*predict, "--weights", published(tmp_path / "other.pth", seed=1), in_process=True)
    assert done.exit_code == 4 and "other.pth: not the weights that" in done.text
    assert not (tmp_path / "mask.nii.gz").exists()
    assert run_cli(*predict, "--weights", base, in_process=True).exit_code == 0
    scores = tmp_path / "scores.json"
    done = run_cli("evaluate", run.path, "--data", data, "--weights", base, "-o", scores, in_process=True)
    assert done.exit_code == 0, done.output
    assert CaseScores.from_json(json.loads(scores.read_text())) == run.metrics().test


def test_distill_finds_the_moved_base_of_its_teacher(moved, tmp_path):
    run, base = moved
    sets = ["student.plan.spacing=[12,12,12]", "student.plan.patch=[32,32,64]", "student.training.steps=1"]
    distill = ["distill", "--teacher", run.path, "--runs", tmp_path / "runs", "--no-control"]
    distill += [part for override in sets for part in ("--set", override)]
    done = run_cli(*distill, in_process=True)
    assert done.exit_code == 3 and "say where it is: --weights" in done.text
    done = run_cli(*distill, "--weights", published(tmp_path / "other.pth", seed=1), in_process=True)
    assert done.exit_code == 4 and "not the weights that" in done.text
    done = run_cli(*distill, "--weights", base, in_process=True)
    assert done.exit_code == 0, done.text
    student = next((tmp_path / "runs").glob("distill-*"))
    data = run.path.parent.parent / "data"
    done = run_cli("evaluate", student, "--data", data, "--weights", base, in_process=True)
    assert done.exit_code == 2 and "this run adapts no published weights; leave --weights out" in done.text
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "manifest.json").write_text("{}")
    done = run_cli("evaluate", tmp_path / "package", "--data", data, "--weights", base, in_process=True)
    assert done.exit_code == 2 and "a package holds all its weights; leave --weights out" in done.text
    done = run_cli("evaluate", data / "labelsTs", "--data", data, "--weights", base, in_process=True)
    assert done.exit_code == 2 and "takes neither prompts nor --weights" in done.text
