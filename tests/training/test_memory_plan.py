"""Training within a budget of memory: the same loss and gradients, the plan's arithmetic, and what happens without."""

import json
import re
import signal

import numpy as np
import pytest
import torch
from helpers.processes import in_processes
from helpers.tiny_training import cross_entropy, losses, train
from torch import nn

from samkd.configs.schema import Distillation, Training
from samkd.distill.losses import distance_of, distillation_loss
from samkd.errors import BadInputError
from samkd.sam.prompt_tensors import Prompts
from samkd.students import build_student
from samkd.teachers import build_teacher
from samkd.training import memory_probe
from samkd.training.interrupt import Stopped
from samkd.training.losses import segmentation_loss
from samkd.training.memory_plan import ROOM, StepMemory, plans
from samkd.training.memory_planner import AUTO
from samkd.training.micro_batches import MicroBatches, checkpoint_switches, needs_whole_batch, switch_checkpointing
from samkd.training.peak_memory import additional_peak, is_out_of_memory
from samkd.training.step import SupervisedStep

PATCH = (8, 32, 32)
CHANNELS = 128  # 8192 voxels x 128 channels x 4 bytes: 4.2 MB for each of a sample's maps
BATCH = 12


def plain_network(channels: int = 4) -> nn.Sequential:
    """Nothing in it is random, and no sample's part depends on the others."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, channels, 1), nn.ReLU(), nn.GroupNorm(2, channels), nn.Conv3d(channels, 2, 1))


def objective(logits, batch):
    return {"loss": segmentation_loss(logits, batch["labels"])}


def gradients(network: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True))


def hard_objective(logits, labels, teacher):
    """Everything whose sums run over a batch: Dice with the labels, and to a teacher with classes of equal weight."""
    settings = Distillation(dice=1.0, balance_classes=True)
    return distillation_loss(logits, labels, teacher, lambda_=0.5, distance=distance_of(settings))["loss"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_gradients_of_micro_batches_are_those_of_the_whole_batch(size):
    """Samples of very different classes, so that a Dice of each part would be another loss."""
    torch.manual_seed(1)
    network, image = plain_network(), torch.randn(5, 1, 4, 6, 6)
    labels = (torch.rand(5, 4, 6, 6) < torch.tensor([0.9, 0.01, 0.5, 0.0, 0.2])[:, None, None, None]).long()
    teacher = torch.randn(5, 2, 4, 6, 6).softmax(1)
    expected = hard_objective(network(image), labels, teacher)
    loss = hard_objective(MicroBatches(network, size)(image), labels, teacher)
    torch.testing.assert_close(loss, expected)
    whole = gradients(network, expected)
    for one, two in zip(gradients(network, loss), whole, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    parts = sum(hard_objective(network(image[[i]]), labels[[i]], teacher[[i]]) for i in range(5)) / 5
    assert (parts - expected).abs().item() > 0.01


def test_prompts_go_with_their_samples():
    class Shown(nn.Module):
        def forward(self, image, prompts):
            return image * prompts.labels.float().reshape(-1, 1, 1, 1, 1)

    labels = torch.arange(5)[:, None, None]
    prompts = Prompts(torch.zeros(5, 1, 1, 3), labels, torch.zeros(5, 1, 6))
    image = torch.ones(5, 1, 1, 1, 1, requires_grad=True)
    assert MicroBatches(Shown(), 2)(image, prompts).flatten().tolist() == [0, 1, 2, 3, 4]


def test_every_part_draws_once_and_its_second_pass_draws_the_same():
    torch.manual_seed(0)
    image = torch.ones(4, 1, 8, 8, 8, requires_grad=True)
    result = MicroBatches(nn.Dropout(0.5), 1)(image)
    result.sum().backward()
    assert image.grad is not None and torch.equal(image.grad, result.detach())  # both are the masks
    assert not torch.equal(result[0], result[1])


def test_what_looks_at_the_whole_batch_is_not_divided():
    step = SupervisedStep(dice_weight=1, cross_entropy_weight=1)
    assert needs_whole_batch(plain_network(), step) is None
    norms = nn.Sequential(nn.BatchNorm3d(1))
    assert "batch norms" in str(needs_whole_batch(norms, step))
    assert needs_whole_batch(norms.eval(), step) is None
    assert "IoU" in str(
        needs_whole_batch(plain_network(), SupervisedStep(dice_weight=1, cross_entropy_weight=1, iou_weight=1))
    )


def switched(network: nn.Module, image: torch.Tensor, on: bool) -> list[torch.Tensor]:
    """The gradients of a step whose activations are kept, or computed again."""
    assert checkpoint_switches(network)
    switch_checkpointing(network, on)
    torch.manual_seed(1)
    return gradients(network.train(), network(image).square().mean())


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_activations_that_are_computed_again_change_no_bit_and_take_less_memory():
    network = build_teacher("masam", backbone="vit_tiny_p8", in_channels=1, num_classes=2, patch=(3, 64, 64))
    image, results = torch.randn(1, 1, 3, 64, 64), []
    kept, again = (
        additional_peak(lambda on=on: results.append(switched(network, image, on)), torch.device("cpu"))
        for on in (False, True)
    )
    assert same(*results) and again < 0.95 * kept


@pytest.mark.slow
def test_activations_of_a_swin_transformer_that_are_computed_again_change_no_bit():
    network = build_student("swinunetr-tiny", in_channels=1, num_classes=2, patch=(32, 32, 64))
    image = torch.randn(1, 1, 32, 32, 64)
    assert same(switched(network, image, False), switched(network, image, True))


def test_the_peak_counts_what_lives_at_once_and_nothing_that_was_there_before():
    before = torch.zeros(1000)

    def work():
        first = torch.zeros(1_000_000)
        second = first + before[0]
        del first
        return second * 2

    assert additional_peak(work, torch.device("cpu")) == pytest.approx(8e6, rel=0.01)


def test_the_fastest_plan_comes_first_and_peaks_are_linear():
    kept = StepMemory(checkpointing=False, fixed=10, per_sample=6, per_logits=1, single=16, update=12)
    again = StepMemory(checkpointing=True, fixed=10, per_sample=2, per_logits=1, single=12, update=12)
    every = plans([kept, again], batch=4, divisible=True, accumulate=1, precision="32-true", budget=1)
    assert [(plan.checkpointing, plan.micro_batch, plan.predicted) for plan in every] == [
        (False, 4, 38),
        (False, 2, 26),
        (False, 1, 20),
        (True, 4, 22),
        (True, 2, 18),
        (True, 1, 16),
    ]
    assert [plan.extra_passes for plan in every] == [0, 0.5, 0.75, 1, 1.5, 1.75]
    assert [
        plan.micro_batch for plan in plans([kept], batch=4, divisible=False, accumulate=1, precision="", budget=1)
    ] == [4]
    costs = {"checkpointing": False, "fixed": 1, "per_sample": 1, "per_logits": 0}
    assert StepMemory(**costs, single=2, update=12).peak(batch=1, micro_batch=1) == 12
    alone = StepMemory(**costs, single=8, update=0)  # one sample alone takes more than six at once
    assert [alone.peak(batch=7, micro_batch=size) for size in (1, 2, 3, 4, 7)] == [8, 8, 8, 5, 8]


SETTINGS = Training(steps=4, validate_every=2, batch=3, learning_rate=0.02, ema=0.5)


def test_a_budget_that_is_large_enough_changes_no_bit(tmp_path):
    """With dropout, batch norms and an average: neither draws nor weights nor statistics know of the measured steps."""

    def run(folder, vram):
        torch.manual_seed(7)
        norm = nn.BatchNorm3d(4)
        net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), norm, nn.Dropout(0.2), nn.Conv3d(4, 2, 1))
        train(tmp_path / folder, SETTINGS, objective, net=net, vram=vram)
        return [*net.state_dict().values()], torch.rand(1)

    (plain, drawn), (planned, drawn_with_plan) = run("plain", None), run("planned", AUTO)
    assert all(torch.equal(one, two) for one, two in zip(plain, planned, strict=True)) and torch.equal(
        drawn, drawn_with_plan
    )
    assert losses(tmp_path / "plain") == losses(tmp_path / "planned")
    states = [(tmp_path / name / "state" / "last.safetensors").read_bytes() for name in ("plain", "planned")]
    assert len(states[0]) == pytest.approx(len(states[1]), abs=64)


def large(folder, vram=None, *, batch=BATCH, objective=objective, net=None, **settings):
    settings = Training(steps=3, validate_every=3, batch=batch, learning_rate=0.02, **settings)
    return train(folder, settings, objective, net=net or plain_network(CHANNELS), vram=vram, patch=PATCH)


def plan_of(folder) -> dict:
    return json.loads((folder / "memory.json").read_text())["plan"]


@pytest.fixture
def tensors_alone(monkeypatch):
    """Budgets are of what a step's tensors take, whatever else this process holds."""
    monkeypatch.setattr(memory_probe, "memory_in_use", lambda device: 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a plan, and one with the plan that a budget of all memory has for it."""
    folder = tmp_path_factory.mktemp("memory")
    large(folder / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_probe, "memory_in_use", lambda device: 0.0)
        large(folder / "auto", AUTO)
    return folder


def budget_for(whole, micro_batch: int) -> float:
    """The bytes of tensors that are enough for micro-batches of so many samples, and not for one sample more."""
    (cost,) = json.loads((whole / "auto" / "memory.json").read_text())["costs"]
    return (cost["fixed"] + cost["per_sample"] * (micro_batch + 0.5) + cost["per_logits"] * BATCH) / ROOM


def test_all_memory_means_the_batch_in_one_and_its_peak_is_predicted(whole):
    plan = plan_of(whole / "auto")
    assert (plan["batch"], plan["micro_batch"], plan["checkpointing"]) == (BATCH, BATCH, False)
    assert plan["predicted"] == pytest.approx(plan["measured"], rel=0.01)
    assert losses(whole / "plain") == losses(whole / "auto")


def test_a_smaller_budget_divides_the_batch_and_learns_the_same(whole, tmp_path, tensors_alone):
    budget = budget_for(whole, 3)
    large(tmp_path / "run", budget)
    plan = plan_of(tmp_path / "run")
    assert plan["micro_batch"] == 3 and plan["measured"] <= budget
    assert plan["predicted"] == pytest.approx(plan["measured"], rel=0.03)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole / "plain"), rtol=1e-5)


def test_a_budget_below_every_plan_is_refused_with_the_one_that_works(tmp_path):
    with pytest.raises(BadInputError, match="the smallest budget that works is --vram") as caught:
        large(tmp_path / "small", 1e8)
    assert caught.value.exit_code == 3
    number = re.search(r"--vram ([\d.]+)G", str(caught.value))
    assert number
    large(tmp_path / "named", float(number[1]) * 1e9)
    assert plan_of(tmp_path / "named")["measured"] <= float(number[1]) * 1e9


class FailsOnce(nn.Sequential):
    """Raises `error` in the forward pass of one call."""

    def __init__(self, *layers, at: int, error: Exception) -> None:
        super().__init__(*layers)
        self.calls, self.at, self.error, self.seen = 0, at, error, []

    def forward(self, input):
        self.calls += 1
        if self.training and self.calls == self.at:
            raise self.error
        return super().forward(input)


def test_a_step_that_runs_out_of_memory_is_repeated_with_a_smaller_plan(whole, tmp_path, capfd):
    """The same batches again, and the loss curve of a run that had enough."""
    network = FailsOnce(*plain_network(CHANNELS), at=-1, error=torch.OutOfMemoryError("CUDA out of memory."))
    images = []

    def counted(logits, batch):
        images.append(batch["image"].sum().item())
        if len(images) == measured + 2:
            network.at = network.calls + 1  # in the forward pass of the third step
        return objective(logits, batch)

    measured = 5  # the steps that are measured before training
    large(tmp_path / "run", AUTO, objective=counted, net=network)
    plan = plan_of(tmp_path / "run")
    assert plan["micro_batch"] == BATCH // 2
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole / "plain"), rtol=1e-5)
    assert len(losses(tmp_path / "run")) == 3
    words = " ".join(capfd.readouterr().err.split())
    assert "memory was too small for a step" in words and "repeated with 2 micro-batches of 6" in words


def train_together(folder, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_probe, "memory_in_use", lambda device: 0.0)
        large(folder, budget, batch=BATCH // 2)


@pytest.mark.slow
def test_two_processes_in_micro_batches_learn_what_one_learns(whole, tmp_path):
    """Each has half of the batch; the budget is too small for that half at once."""
    in_processes(train_together, tmp_path / "run", budget_for(whole, 2))
    plan = plan_of(tmp_path / "run")
    assert plan["batch"] == BATCH // 2 and plan["micro_batch"] < BATCH // 2
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole / "plain"), rtol=1e-5)


def test_without_a_plan_too_little_memory_is_one_clear_error(tmp_path):
    network = FailsOnce(*plain_network(), at=2, error=MemoryError())
    with pytest.raises(BadInputError, match=r"step 2 .*give --vram auto") as caught:
        train(tmp_path / "run", SETTINGS, objective, net=network)
    assert caught.value.exit_code == 3


def test_with_no_smaller_plan_left_the_error_says_so(tmp_path):
    network = FailsOnce(*plain_network(), at=-1, error=MemoryError())

    def fail(logits, batch):
        network.at = network.calls + 1
        return objective(logits, batch)

    with pytest.raises(BadInputError, match=r"no plan takes less|no training step fits"):
        train(tmp_path / "run", SETTINGS.model_copy(update={"batch": 1}), fail, net=network, vram=AUTO)


def test_only_too_little_memory_is_taken_for_it():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("can't allocate memory: y"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


def test_a_run_that_goes_on_keeps_its_plan_to_the_last_bit(whole, tmp_path, tensors_alone):
    budget = budget_for(whole, 3)
    one, _ = large(tmp_path / "whole", budget)
    calls = iter(range(100))

    def interrupt(logits, batch):
        if len(logits) == BATCH and next(calls) == 2:  # after the plan's own measured step
            signal.raise_signal(signal.SIGINT)
        return objective(logits, batch)

    with pytest.raises(Stopped):
        large(tmp_path / "torn", budget, objective=interrupt)
    kept = (tmp_path / "torn" / "memory.json").read_text()
    two, _ = large(tmp_path / "torn", budget)
    assert (tmp_path / "torn" / "memory.json").read_text() == kept
    assert plan_of(tmp_path / "torn")["micro_batch"] == 3
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("text", ["[", '{"vram": null, "device": "CPU", "costs": [], "plan": {"batch": 3}}'])
def test_a_kept_plan_that_is_none_is_made_anew(tmp_path, text):
    train(tmp_path / "run", SETTINGS.model_copy(update={"steps": 1}), cross_entropy, vram=AUTO)
    (tmp_path / "run" / "memory.json").write_text(text)
    train(tmp_path / "run", SETTINGS.model_copy(update={"steps": 1}), cross_entropy, vram=AUTO)
    assert plan_of(tmp_path / "run")["batch"] == SETTINGS.batch
