"""A teacher that goes on from a run: of other classes, and with the encoder held."""

import json

import pytest
import torch
from safetensors.torch import load_file

from samkd.configs.load import load_config
from samkd.distill.networks import load_network
from samkd.teachers.train import teach
from samkd.training.interrupt import Stopped
from samkd.training.run import Run
from samkd.workflows.data import open_dataset

pytestmark = pytest.mark.slow

SMALL = [
    "phantom.training=3",
    "phantom.test=1",
    "teacher.plan.spacing=[16, 16, 16]",
    "teacher.plan.patch=[16, 24, 16]",
    "teacher.options.decoder_channels=8",
    "teacher.training.steps=4",
    "teacher.training.validate_every=2",
    "teacher.training.warmup=1",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A network of the six organs, and one of any organ that starts from it."""
    root = tmp_path_factory.mktemp("start")
    first = load_config("phantom-sam3d", [*SMALL, "teacher.prompts.kind=none"])
    six = teach(first, open_dataset(first, None, runs=root), runs=root, run=root / "six")
    second = load_config("phantom-organ", SMALL)
    organ = teach(second, open_dataset(second, None, runs=root), runs=root, run=root / "organ", start=six.path)
    return six, organ


def test_a_held_encoder_stays_as_it_was_and_is_part_of_the_run(runs):
    six, organ = runs
    before, after = load_file(six.weights), load_file(organ.weights)
    assert before.keys() == after.keys()
    encoder = [name for name in before if name.startswith("image_encoder.")]
    assert encoder and all(torch.equal(before[name], after[name]) for name in encoder)
    rest = [name for name in before if name not in encoder and before[name].shape == after[name].shape]
    unchanged = {name for name in rest if torch.equal(before[name], after[name])}
    # The authors build these and never call them (teachers/sam3d_prompts.py).
    assert {name for name in unchanged if "cross_attn_token_to_image" not in name and "mask_decoder" in name} == set()
    assert organ.metrics().trained_parameters == sum(after[name].numel() for name in after if name not in encoder)
    network = load_network(organ)
    assert all(torch.equal(value, after[name]) for name, value in network.state_dict().items())


def test_an_interrupted_run_with_a_held_encoder_ends_with_the_same_weights(runs, tmp_path, monkeypatch):
    six, organ = runs
    config = load_config("phantom-organ", SMALL)
    dataset = open_dataset(config, None, runs=six.path.parent)

    def again() -> Run:
        return teach(config, dataset, runs=tmp_path, run=tmp_path / "cut", start=six.path)

    log = Run.log

    def cut(self, entry):
        log(self, entry)
        if entry["step"] == 3:  # the state is that of step 2
            raise Stopped("the power fails")

    monkeypatch.setattr(Run, "log", cut)
    with pytest.raises(Stopped):
        again()
    monkeypatch.undo()
    done = again()
    theirs, ours = load_file(organ.weights), load_file(done.weights)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    steps = [json.loads(line)["step"] for line in (done.path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
