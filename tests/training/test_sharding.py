"""Networks divided among processes (FSDP2): they learn what a whole one learns, and leave files that one can read."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import Processes, in_processes
from helpers.tiny_training import losses, train
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from samkd.configs.schema import Training
from samkd.errors import UsageError
from samkd.sam.vit import Block
from samkd.training.checkpoint import load_weights
from samkd.training.losses import segmentation_loss
from samkd.training.prepared import PreparedCase
from samkd.training.ranks import rank
from samkd.training.sharding import check_shardable, gathered_weights, whole
from samkd.training.together import Layout, together
from samkd.training.validation import grid_dice
from samkd.volumes.plan import Plan

pytestmark = pytest.mark.slow

STOPPED = 130
WHOLE = Training(steps=8, validate_every=3, accumulate=2, ema=0.9, clip_norm=0.5, learning_rate=0.02)
DIVIDED = WHOLE.model_copy(update={"batch": 1})


class TinyEncoder(torch.nn.Module):
    """SAM's blocks on the slices of a patch, the first one frozen and saved; one parameter only bright batches need."""

    saved_frozen = frozenset({"blocks.0.norm1.weight"})

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Conv3d(1, 6, 1)
        size = {"dim": 6, "heads": 2, "mlp_ratio": 2.0, "window": 0, "grid": (4, 4)}
        self.blocks = torch.nn.ModuleList(Block(**size) for _ in range(3))
        self.head = torch.nn.Linear(6, 2)
        self.bright = torch.nn.Parameter(torch.ones(2))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.tensor(2.0))
        self.blocks[0].requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(self.scale * image).permute(0, 2, 3, 4, 1)
        batch, depth = tokens.shape[:2]
        tokens = tokens.flatten(0, 1)
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if self.training else block(tokens)
        logits = self.head(tokens).unflatten(0, (batch, depth)).permute(0, 4, 1, 2, 3).contiguous()
        bright = image.mean((1, 2, 3, 4)) > 0.2
        return logits + bright.view(-1, 1, 1, 1, 1) * self.bright.view(1, 2, 1, 1, 1) if bright.any() else logits


def objective(logits, batch):
    return {"loss": segmentation_loss(logits, batch["labels"])}


def case(number: int) -> PreparedCase:
    image = np.random.default_rng(number).standard_normal((1, 6, 8, 8), dtype=np.float32)
    return PreparedCase(str(number), image, (image[0] > 0.3).astype(np.uint8), (1, 1, 1), {}, -9.0)


def validate(model: torch.nn.Module) -> dict[str, float]:
    """Of three cases: one of two processes has more to do than the other."""
    plan = Plan.from_dict({"intensity": [{"rule": "zscore"}], "patch": [4, 4, 4]})
    names = {0: "background", 1: "liver"}
    return grid_dice(model, [case(number) for number in range(3)], plan=plan, class_names=names)


def train_encoder(folder: Path, settings: Training, *, at: int = -1, in_rank: int = -1, number: int = 0):
    """The weights at the end, whole, and the scores of the best ones; a rank gets a signal in the batch `at`."""
    calls = iter(range(100))

    def interrupted(logits, batch):
        if next(calls) == at and rank() == in_rank:
            signal.raise_signal(number)
        return objective(logits, batch)

    model, _ = train(folder, settings, interrupted, validate=validate, net=TinyEncoder())
    last = {name: whole(tensor).numpy().copy() for name, tensor in model.state_dict().items()}
    load_weights(model, folder / "weights.safetensors")
    with gathered_weights(model):
        return last, validate(model)


def interrupt(folder: Path, at: int, in_rank: int, number: int) -> None:
    train_encoder(folder, DIVIDED, at=at, in_rank=in_rank, number=number)


@pytest.fixture(scope="module")
def divided(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray], dict[str, float]]:
    """The run of two processes that nothing interrupts, its last weights, and the scores of its best ones."""
    folder = tmp_path_factory.mktemp("divided") / "run"
    (one, scores), (two, other_scores) = in_processes(train_encoder, folder, DIVIDED, strategy="fsdp")
    assert scores == other_scores and all((one[name] == two[name]).all() for name in one)
    return folder, one, scores


@pytest.mark.parametrize("strategy", ["alone", "ddp"])
def test_a_divided_network_learns_what_a_whole_one_learns(tmp_path, divided, strategy):
    """Accumulation, clipping, averaging, recomputed blocks, frozen parameters and a branch that few batches take."""
    folder, weights, _ = divided
    if strategy == "alone":
        expected, _ = train_encoder(tmp_path / "run", WHOLE)
    else:
        expected, _ = in_processes(train_encoder, tmp_path / "run", DIVIDED)[0]
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(folder), rtol=1e-5)
    for name, values in expected.items():
        if name.endswith("qkv.bias"):  # a softmax does not depend on the keys' bias: its gradient is noise
            values[6:12] = weights[name][6:12]
        np.testing.assert_allclose(weights[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (weights["bright"] != 1).all() and (weights["unused"] == 1).all()


def test_one_process_reads_the_weights_of_a_divided_run_and_scores_exactly_the_same(divided):
    folder, _, scores = divided
    alone = TinyEncoder()
    load_weights(alone, folder / "weights.safetensors")
    assert validate(alone) == scores
    names = load_file(folder / "weights.safetensors").keys()
    assert "blocks.0.norm1.weight" in names and "blocks.0.norm2.weight" not in names
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["last.safetensors"]


@pytest.mark.parametrize(("in_rank", "number"), [(1, signal.SIGTERM), (0, signal.SIGKILL)])
def test_a_divided_run_that_is_stopped_or_killed_resumes_to_the_last_bit(tmp_path, divided, in_rank, number):
    ended = Processes(interrupt, tmp_path / "run", 13, in_rank, number, strategy="fsdp").ended()
    if number == signal.SIGTERM:
        assert [each.exit_code for each in ended] == [STOPPED, STOPPED]
    else:
        assert ended[in_rank].exit_code == -number and ended[1 - in_rank].exit_code == 1
        assert f"process {in_rank} (pid" in ended[1 - in_rank].value and "was killed" in ended[1 - in_rank].value
    in_processes(train_encoder, tmp_path / "run", DIVIDED, strategy="fsdp")
    first, second = (load_file(folder / "state" / "last.safetensors") for folder in (divided[0], tmp_path / "run"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert losses(divided[0]) == losses(tmp_path / "run")


def test_one_process_goes_on_with_a_divided_run(tmp_path, divided):
    """Its state is whole, and says nothing of how many wrote it."""
    shutil.copytree(divided[0], tmp_path / "run")
    last, _ = train_encoder(tmp_path / "run", DIVIDED)
    assert all((last[name] == values).all() for name, values in divided[1].items())


def test_blocks_that_share_parameters_are_refused():
    def shared(change) -> TinyEncoder:
        encoder = TinyEncoder()
        change(encoder, *list(encoder.blocks)[1:])
        return encoder

    check_shardable(TinyEncoder(), name="tiny")
    with pytest.raises(UsageError, match="blocks of tiny share 2 parameters"):
        check_shardable(shared(lambda _, one, two: setattr(two, "norm1", one.norm1)), name="tiny")
    with pytest.raises(UsageError, match="take --strategy ddp"):
        check_shardable(shared(lambda encoder, one, _: setattr(encoder.head, "bias", one.norm1.bias)), name="tiny")


@pytest.mark.parametrize("option", ["planned", "compiled"])
def test_a_divided_network_is_neither_planned_nor_compiled(option):
    with pytest.raises(UsageError, match="leave these out, or take --strategy ddp"):
        check_shardable(TinyEncoder(), name="tiny", **{option: True})


def test_one_process_has_nobody_to_divide_a_network_with():
    with pytest.raises(UsageError, match="--devices 2 or more"), together(Layout(strategy="fsdp")):
        pass
