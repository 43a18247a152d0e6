"""What the papers' trainings need: no validation, epochs, a longer schedule, SAM's losses, a factor on intensities."""

import json

import numpy as np
import pytest
import torch
from helpers.prompts import prompts
from helpers.teachers import tiny_teacher
from helpers.tiny_training import train

from samkd.configs.load import load_config
from samkd.configs.schema import Augmentation, Distillation, Training
from samkd.distill.losses import distance_of, probability_mse
from samkd.errors import BadInputError, UsageError
from samkd.teachers.train import teach
from samkd.training.augment import random_intensity
from samkd.training.losses import iou_loss, segmentation_loss
from samkd.training.run import Run
from samkd.training.schedule import learning_rate, steps_per_epoch, with_steps
from samkd.training.step import SupervisedStep
from samkd.workflows.data import open_dataset
from samkd.workflows.deploy import deploy

SMALL = [
    "phantom.training=3",
    "phantom.test=1",
    "teacher.plan.patch=[5,32,32]",
    "teacher.plan.size=[null,32,32]",
    "teacher.training.steps=2",
    "teacher.training.warmup=1",
    "teacher.training.batch=1",
]

# --- what the record of a run holds -----------------------------------------------------------------------------------


def test_keys_that_came_later_are_recorded_only_where_they_say_something():
    """So the hash of an earlier run, and with it the name of its folder, is what it was."""
    later = {"epochs", "schedule_steps", "focal_weight", "iou_weight"}
    plain = Training(steps=4).model_dump(mode="json")
    assert not later & plain.keys() and "intensity_scale" not in plain["augmentation"]
    said = Training(steps=4, schedule_steps=9, focal_weight=20, augmentation=Augmentation(intensity_scale=0.1))
    values = said.model_dump(mode="json")
    assert (values["schedule_steps"], values["focal_weight"]) == (9, 20)
    assert values["augmentation"]["intensity_scale"] == 0.1
    assert Training(**values) == said
    assert not {"over_classes", "hard_masks"} & Distillation().model_dump(mode="json").keys()


# --- length and schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cases", "devices", "epoch"), [(24, 1, 4), (25, 1, 5), (24, 2, 2), (1, 8, 1)])
def test_an_epoch_draws_as_many_patches_as_there_are_cases(cases: int, devices: int, epoch: int):
    settings = Training(epochs=10, batch=2, accumulate=3)
    assert steps_per_epoch(settings, cases=cases, devices=devices) == epoch
    counted = with_steps(settings, cases=cases, devices=devices)
    assert (counted.steps, counted.epochs) == (10 * epoch, 0)
    assert with_steps(counted, cases=99, devices=1) is counted


@pytest.mark.parametrize("length", ["steps=0", "epochs=3"])
def test_steps_and_epochs_are_one_of_two(length: str):
    with pytest.raises(UsageError, match="give one of the two"):
        load_config("phantom", [f"teacher.training.{length}"])


def test_a_schedule_may_be_longer_than_the_training_or_shorter():
    """MA-SAM's code stops at 300 of 400 epochs."""
    shared = {"learning_rate": 1.0, "warmup": 0, "power": 7}
    whole = [learning_rate(step, Training(steps=400, **shared)) for step in range(400)]
    cut = [learning_rate(step, Training(steps=300, schedule_steps=400, **shared)) for step in range(300)]
    assert cut == whole[:300]
    assert [learning_rate(step, Training(steps=300, schedule_steps=100, **shared)) for step in (100, 299)] == [0, 0]


# --- no validation ----------------------------------------------------------------------------------------------------


def test_without_validation_the_last_weights_are_kept(tmp_path):
    from safetensors.torch import load_file

    settings = Training(steps=5, validate_every=2, batch=2)
    network, result = train(tmp_path / "run", settings, validate=None)
    assert (result.best_dice, result.best_step) == (None, 5)
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and not any("dice" in row for row in rows)
    validated, _ = train(tmp_path / "other", settings)  # validation has no part in what is learned
    assert all(torch.equal(value, validated.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_run_may_train_on_every_case_and_cannot_be_packed(tmp_path):
    config = load_config("phantom", [*SMALL, "validation=0"])
    dataset = open_dataset(config, None, runs=tmp_path)
    run = teach(config, dataset, runs=tmp_path)
    assert len(run.config.cases.train) == 3 and run.config.cases.validation == ()
    metrics = Run.read(run.path).metrics()
    assert metrics.validation is None and metrics.test is not None
    with pytest.raises(BadInputError, match="trained without validation cases"):
        deploy(run, target="onnx", data=None, out=tmp_path / "package", runs=tmp_path, overrides=["validation=0"])
    assert not (tmp_path / "package").exists()
    patient = load_config("phantom", [*SMALL, "validation=0", "teacher.training.patience=2"])
    with pytest.raises(UsageError, match=r"training\.patience is 2, but there are no validation cases"):
        teach(patient, dataset, runs=tmp_path)


def test_epochs_become_steps_of_the_cases_that_are_trained_on(tmp_path):
    config = load_config("phantom", [*SMALL, "teacher.training.steps=0", "teacher.training.epochs=2", "validation=0"])
    run = teach(config, open_dataset(config, None, runs=tmp_path), runs=tmp_path)
    assert run.metrics().steps == 6 and run.config.training["steps"] == 6 and "epochs" not in run.config.training


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_focal_loss_is_sams():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    margin = logits[:, 1:] - logits[:, :1]
    truth = torch.stack([labels == 1, labels == 2], dim=1).float()
    p = margin.sigmoid()
    right = p * truth + (1 - p) * (1 - truth)
    alpha = 0.25 * truth + 0.75 * (1 - truth)
    focal = (alpha * (1 - right) ** 2 * -right.log()).mean()
    found = segmentation_loss(logits, labels, dice_weight=0, cross_entropy_weight=0, focal_weight=20)
    torch.testing.assert_close(found, 20 * focal)


def test_the_iou_loss_is_the_squared_error_of_the_masks_iou_slice_by_slice():
    labels = torch.zeros(1, 3, 2, 4, dtype=torch.long)
    labels[0, 0, 0] = 1
    logits = torch.zeros(1, 3, 3, 2, 4)
    logits[0, 1] = -1.0
    logits[0, 2] = -1.0
    logits[0, 1, 0, 0, :2] = 1.0  # half of class 1
    logits[0, 2, 1] = 1.0  # class 2 where it is not
    predicted = torch.zeros(1, 2, 3, requires_grad=True)
    truth = torch.tensor([[[0.5, 1.0, 1.0], [1.0, 0.0, 1.0]]])
    loss = iou_loss(predicted, logits, labels)
    torch.testing.assert_close(loss, truth.square().mean())
    loss.backward()
    torch.testing.assert_close(predicted.grad, -2 * truth / 6)


def test_medsa_learns_the_iou_of_its_masks_prompted_or_not():
    torch.manual_seed(0)
    model = tiny_teacher("medsa", iou_head=True)
    model.freeze_pretrained()
    image = torch.randn(1, 1, 3, 64, 64)
    step = SupervisedStep(dice_weight=0, cross_entropy_weight=0, iou_weight=1.0, network=model)
    terms = step(model, {"image": image, "labels": torch.randint(0, 4, (1, 3, 64, 64))}, 0)
    assert model.predicted_iou is not None and model.predicted_iou.shape == (1, 3, 3)
    terms["loss"].backward()
    head = model.get_submodule("mask_decoder.iou_prediction_head")
    assert all(p.grad is not None and p.grad.any() for p in list(head.parameters())[-2:])
    automatic = model.predicted_iou.detach().clone()
    model(image, prompts(points=[(0, 1, (1.0, 20.0, 20.0), 1)]))
    changed = (model.predicted_iou.detach() - automatic).abs().amax(dim=(0, 2))
    assert changed[1] > 0 and changed[0] == changed[2] == 0
    plain = tiny_teacher("medsa")
    plain(image)
    assert plain.predicted_iou is None


def test_an_iou_weight_needs_a_network_that_predicts_it(tmp_path):
    config = load_config("phantom", [*SMALL, "teacher.training.iou_weight=1"])
    with pytest.raises(UsageError, match="'masam' does not learn the IoU of its masks"):
        teach(config, open_dataset(config, None, runs=tmp_path), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_l_mse_may_be_the_mean_over_classes_and_its_target_a_mask():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 5, 3, 4, 4), torch.randn(2, 5, 3, 4, 4).softmax(1)
    total = probability_mse(logits, teacher)
    assert torch.equal(distance_of(Distillation())(logits, teacher), total)
    mean = distance_of(Distillation(over_classes="mean"))(logits, teacher)
    torch.testing.assert_close(mean, (logits.softmax(1) - teacher).square().mean())
    torch.testing.assert_close(mean, total / 5)
    mask = torch.nn.functional.one_hot(teacher.argmax(1), 5).movedim(-1, 1).float()
    hard = distance_of(Distillation(hard_masks=True))(logits, teacher)
    torch.testing.assert_close(hard, (logits.softmax(1) - mask).square().sum(1).mean())
    edged = distance_of(Distillation(hard_masks=True, boundary=2.0))(logits, teacher)
    torch.testing.assert_close(edged, distance_of(Distillation(boundary=2.0))(logits, mask))


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_intensities_may_be_multiplied_by_a_plain_factor():
    image = torch.rand(1, 4, 5, 6) + 1
    augmentation = Augmentation(intensity_scale=0.1)
    factors = [
        (random_intensity(np.random.default_rng(seed), augmentation, image.shape)(image) / image).unique()
        for seed in range(40)
    ]
    values = torch.cat([factor[:1] for factor in factors])
    assert all(factor.max() - factor.min() < 1e-6 for factor in factors)
    assert 0.9 <= values.min() < 0.92 and 1.08 < values.max() <= 1.1
