"""Prompts in training as the papers have them: on every slice, boxes of whole cases, positive points, kinds mixed."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.prompts import prompts
from helpers.teachers import tiny_teacher

from samkd.configs.load import load_config
from samkd.configs.schema import Augmentation, PromptTraining
from samkd.errors import UsageError
from samkd.sam.prompt_encoder import SAMPromptEncoder
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.train import teach
from samkd.training.case_boxes import CaseBoxes
from samkd.training.patches import PatchBatches
from samkd.training.predictor import make_predictor
from samkd.training.prepared import PreparedCase
from samkd.training.prompt_sampling import PromptSampler, box_prompts, point_prompts
from samkd.training.prompts_per_slice import (
    boxes_as_corners,
    slice_boxes_as_points,
    slice_points,
    slice_prompts_of_a_user,
    with_slice_clicks,
)
from samkd.volumes.geometry import Geometry
from samkd.volumes.prompts import ClassPrompts, ScanPrompts
from samkd.volumes.sliding_window import sliding_window
from samkd.workflows.data import open_dataset
from samkd.workflows.evaluate import evaluate


def labels() -> np.ndarray:
    """[1, 6, 12, 14]: class 1 on the slices 1 to 3, class 2 on slice 3 alone."""
    truth = np.zeros((1, 6, 12, 14), np.int16)
    truth[0, 1:4, 2:8, 3:9] = 1
    truth[0, 3, 9:11, 10:13] = 2
    return truth


def sampler(classes: int = 3, **settings: Any) -> PromptSampler:
    return PromptSampler(settings=PromptTraining(**settings), num_classes=classes, seed=0)


# --- every slice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
def test_every_slice_that_holds_a_class_has_points_of_its_own(positive: bool):
    truth, seen = labels(), []
    for seed in range(30):
        drawn = slice_points(np.random.default_rng(seed), truth, classes=3, count=3, positive=positive)
        assert drawn.points.shape == (1, 2, 18, 3)
        for value, slices in ((1, [1, 2, 3]), (2, [3])):
            given = drawn.labels[0, value - 1] >= 0
            places = drawn.points[0, value - 1, given].astype(int)
            assert places[:, 0].tolist() == np.repeat(slices, 3).tolist()
            inside = truth[0][tuple(places.T)] == value
            np.testing.assert_array_equal(inside, drawn.labels[0, value - 1, given] == 1)
            seen += drawn.labels[0, value - 1, given].reshape(-1, 3)[:, 1:].ravel().tolist()
    assert np.mean(seen) == 1 if positive else 0.35 < np.mean(seen) < 0.65


def test_clicks_correct_every_slice():
    truth = labels()
    prediction = truth.copy()
    prediction[0, 1:3, 2:4] = 0  # class 1: two rows missed on two slices
    first = slice_points(np.random.default_rng(0), truth, classes=3, count=1, positive=False)
    clicked = with_slice_clicks(np.random.default_rng(0), first, truth, prediction)
    added = clicked.labels[0, :, 6:]
    assert added[0].tolist() == [-1, 1, 1, -1, -1, -1] and (added[1] == -1).all()
    assert set(clicked.points[0, 0, [7, 8], 1].tolist()) <= {2.0, 3.0}


@pytest.mark.parametrize("overlap", [0.5, 1.0])
def test_every_slice_has_a_box_of_its_own_as_two_corners(overlap: float):
    truth = labels()
    drawn = slice_boxes_as_points(np.random.default_rng(1), truth, classes=3, overlap=overlap, relax=0.0)
    assert np.isnan(drawn.boxes).all() and drawn.labels[0, 0].tolist() == [-1, -1, 2, 3, 2, 3, 2, 3, -1, -1, -1, -1]
    low, high = drawn.points[0, 0, 2, 1:], drawn.points[0, 0, 3, 1:]
    common = np.minimum(high, [7, 8]) - np.maximum(low, [2, 3]) + 1
    assert np.prod(common) / 36 == pytest.approx(overlap, abs=1e-5)
    if overlap == 1:
        assert drawn.points[0, 1, 6:8].tolist() == [[3, 9, 10], [3, 10, 12]]


def test_a_user_gives_every_slice_its_deepest_pixel_or_its_box():
    points = slice_prompts_of_a_user("point", labels()[0], classes=3)
    assert points.labels.tolist() == [[-1, 1, 1, 1, -1, -1], [-1, -1, -1, 1, -1, -1]]
    assert points.points[0, 1].tolist() == [1, 4, 5]
    boxes = slice_prompts_of_a_user("box", labels()[0], classes=3)
    cut = boxes_as_corners(boxes.within(np.array([[2, 0, 4]]), (3, 12, 14)), depth=3)  # slices 2 to 4, columns from 4
    drawn = cut.labels[0, 0] >= 0
    assert cut.labels[0, 0, drawn].tolist() == [2, 3, 2, 3] and np.isnan(cut.boxes).all()
    assert cut.points[0, 0, drawn].tolist() == [[0, 2, 0], [0, 7, 4], [1, 2, 0], [1, 7, 4]]  # from 3 to 8: cut at 4


def test_a_network_of_own_slices_is_shown_a_users_boxes_slice_by_slice():
    """Boxes on the command line and boxes from the labels reach it as the same corners; other networks see the hull."""

    class Recorder(torch.nn.Module):
        prompts_per_slice = True

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[Prompts] = []

        def forward(self, image: torch.Tensor, prompts: Prompts) -> torch.Tensor:
            self.seen.append(prompts)
            return torch.zeros(len(image), 2, *image.shape[2:])

    network, patch = Recorder(), (3, 20, 20)
    boxes = ((2, 3, 0, 9, 11, 0), (4, 5, 1, 6, 7, 1), (10, 10, 5, 12, 14, 5))
    grid = Geometry(np.eye(4), (6, 20, 20))
    placed = ScanPrompts({1: ClassPrompts(boxes=boxes)}, "voxel").onto(grid, scan=grid, classes=2)
    image = np.zeros((1, 6, 20, 20), np.float32)
    sliding_window(image, patch, 0.0, make_predictor(network), num_classes=2, prompts=placed)
    shown = [(label, tuple(point)) for seen in network.seen for label, point in _points(seen)]
    first = [(2, (0, 3, 2)), (3, (0, 11, 9)), (2, (1, 5, 4)), (3, (1, 7, 6))]
    assert shown == [*first, (2, (2, 10, 10)), (3, (2, 14, 12))]
    network.seen.clear()
    network.prompts_per_slice = False
    sliding_window(image, patch, 0.0, make_predictor(network), num_classes=2, prompts=placed)
    assert network.seen[0].boxes[0, 0].tolist() == [0, 3, 2, 1, 11, 9] and (network.seen[0].labels < 0).all()


def _points(prompts: Prompts) -> list[tuple[int, list[float]]]:
    """Label and place of every point of all samples of a batch for the first class, in order."""
    kept = prompts.labels[:, 0] >= 0
    return list(zip(prompts.labels[:, 0][kept].tolist(), prompts.points[:, 0][kept].tolist(), strict=True))


def test_a_slice_of_medsa_knows_its_own_prompts_as_sam_does_a_pictures():
    model = tiny_teacher("medsa", patch=(4, 64, 64), slice_prompts="own").eval()
    assert model.prompts_per_slice
    encoder = model.prompt_encoder
    assert isinstance(encoder, SAMPromptEncoder)
    points = torch.tensor([[[1.0, 10.0, 20.0], [1.0, 12.0, 22.0], [3.0, 30.0, 40.0]]])
    tokens = model.slice_prompts.of_own_slice(encoder, points, torch.tensor([[1, 0, 1]]), None, 4)
    assert tokens.shape == (4, 3, 128)
    two, _ = encoder((torch.tensor([[[20.0, 10.0], [22.0, 12.0]]]), torch.tensor([[1, 0]])), None, None)
    one, _ = encoder((torch.tensor([[[40.0, 30.0]]]), torch.tensor([[1]])), None, None)
    nothing = encoder.not_a_point_embed.weight.expand(3, -1)
    torch.testing.assert_close(tokens[1], two[0])
    torch.testing.assert_close(tokens[3], torch.cat([one[0, :1], nothing[:2]]))
    torch.testing.assert_close(tokens[0], nothing)
    corners = torch.tensor([[[2.0, 4.0, 6.0], [2.0, 30.0, 50.0]]])
    boxed = model.slice_prompts.of_own_slice(encoder, corners, torch.tensor([[2, 3]]), None, 4)
    box, _ = encoder(None, torch.tensor([[6.0, 4.0, 50.0, 30.0]]), None)
    torch.testing.assert_close(boxed[2], box[0])
    spanning = model.slice_prompts.of_own_slice(
        encoder, corners[:, :0], torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[1.0, 4, 6, 2, 30, 50]]), 4
    )
    torch.testing.assert_close(spanning[1:3], box.expand(2, -1, -1))


def test_medsa_takes_other_numbers_of_prompts_on_every_slice_and_decodes_each_alone():
    torch.manual_seed(0)
    model = tiny_teacher("medsa", patch=(4, 64, 64), slice_prompts="own", sd_trans="none", zero_init=False).eval()
    given = prompts(
        batch=2,
        points=[
            *[(0, 0, (1.0, 10.0, 20.0), 1), (0, 0, (1.0, 12.0, 22.0), 0), (0, 0, (3.0, 30.0, 40.0), 1)],
            *[(0, 1, (2.0, 4.0, 6.0), 2), (0, 1, (2.0, 30.0, 50.0), 3)],
        ],
        boxes=[(1, 2, (0, 4, 6, 2, 30, 50.0))],
    )
    image = torch.randn(2, 1, 4, 64, 64)
    with torch.no_grad():
        logits, automatic = model(image, given), model(image)
        single = model(image[:1, :, 2:3], prompts(points=[(0, 1, (0.0, 4.0, 6.0), 2), (0, 1, (0.0, 30.0, 50.0), 3)]))
    torch.testing.assert_close(logits[0, 2, 2], single[0, 2, 0], rtol=1e-4, atol=1e-4)
    for row, value in ((0, 3), (1, 1), (1, 2)):
        assert torch.equal(logits[row, value], automatic[row, value])
    assert not torch.allclose(logits[1, 3], automatic[1, 3])


def test_prompts_of_single_slices_need_a_network_that_takes_them(tmp_path):
    small = ["phantom.training=2", "phantom.test=1", "teacher.plan.patch=[3,32,32]", "teacher.plan.size=[null,32,32]"]
    config = load_config("phantom-medsa", [*small, "teacher.prompts={kind: point, per_slice: true}"])
    with pytest.raises(UsageError, match="takes no prompts of single slices"):
        teach(config, open_dataset(config, None, runs=tmp_path), runs=tmp_path / "runs")


@pytest.mark.parametrize("kind", ["point", "box", "mixed"])
def test_medsa_trains_and_validates_with_prompts_on_every_slice(kind: str, tmp_path):
    overrides = ["phantom.training=2", "phantom.test=1", "teacher.plan.patch=[3,32,32]"]
    overrides += ["teacher.plan.size=[null,32,32]", "teacher.training.steps=2", "teacher.training.warmup=1"]
    prompted = f"teacher.prompts={{kind: {kind}, per_slice: true, share: 1}}"
    config = load_config("phantom-medsa", [*overrides, "teacher.options={slice_prompts: own}", prompted])
    run = teach(config, open_dataset(config, None, runs=tmp_path), runs=tmp_path)
    metrics = run.metrics()
    assert metrics.steps == 2 and run.config.objective.prompts is not None
    assert run.config.objective.prompts["per_slice"] is True
    # What learned with prompts alone is tested with them, as `samkd evaluate` would.
    assert metrics.test_prompts == ("boxes" if kind == "box" else "point,slices=each")
    by_hand = evaluate(run.path, run.config.data, prompt_from_truth=metrics.test_prompts)
    assert metrics.test is not None and metrics.test.dice() == by_hand.dice()


# --- boxes of the whole case ------------------------------------------------------------------------------------------


def case() -> PreparedCase:
    """20 slices of 16 x 16; class 1 on the slices 4 to 15, wider in the middle; class 2 nowhere."""
    mask = np.zeros((20, 16, 16), np.uint8)
    mask[4:16, 6:8, 6:8] = 1
    mask[9:11, 3:12, 4:13] = 1
    return PreparedCase("a", mask[None].astype(np.float32), mask, (2.0, 1.0, 1.0), {1: np.argwhere(mask)}, 0.0)


def batches(augmentation: Augmentation | None = None, *, boxed: int = 3) -> PatchBatches:
    return PatchBatches(
        [case()],
        patch=(5, 16, 16),
        batch=1,
        steps=20,
        foreground=0.0,
        augmentation=augmentation or Augmentation(),
        seed=0,
        boxed_classes=boxed,
    )


def test_a_patch_carries_the_boxes_of_its_whole_case():
    plain, starts = batches(boxed=0), set()
    for step, batch in enumerate(batches()[step] for step in range(20)):
        assert "boxes" not in plain[step] and torch.equal(plain[step]["image"], batch["image"])
        assert batch["boxes"].shape == (1, 2, 6) and batch["boxes"][0, 1].isnan().all()
        first = 4 - batch["boxes"][0, 0, 0].item()
        starts.add(first)
        assert batch["boxes"][0, 0].tolist() == [4 - first, 3, 4, 15 - first, 11, 12]
        inside = (batch["labels"][0] > 0).nonzero()
        if len(inside):
            assert (inside >= batch["boxes"][0, 0, :3]).all() and (inside <= batch["boxes"][0, 0, 3:]).all()
    assert len(starts) > 5


@pytest.mark.parametrize(
    "augmentation", [Augmentation(flip=("d", "h", "w")), Augmentation(rotate_degrees=30, scale=0.2, translate=0.2)]
)
def test_its_boxes_move_with_the_patch(augmentation: Augmentation):
    for step in range(20):
        batch = batches(augmentation)[step]
        box = batch["boxes"][0, 0]
        inside = (batch["labels"][0] > 0).nonzero()
        if len(inside):
            assert (inside >= box[:3] - 0.51).all() and (inside <= box[3:] + 0.51).all()


def test_training_and_evaluation_show_the_same_box():
    """What a window of evaluation gets of the whole tumour's box is what a training patch there gets."""
    sample = case()
    whole = sampler(kind="box", whole_case=True)
    user = whole.as_a_user(np.asarray(sample.labels), sample.spacing)
    carried = CaseBoxes(3)
    for start in (0, 2, 8, 13, 15):
        truth = np.asarray(sample.labels)[None, start : start + 5]
        boxes = carried.in_patch(sample, np.array([start, 0, 0]), None, (5, 16, 16))
        drawn = whole.draw(
            torch.nn.Identity(),
            torch.zeros(1, 1, 5, 16, 16),
            torch.from_numpy(truth),
            0,
            boxes=torch.from_numpy(boxes[None]),
        )
        expected = user.within(np.array([[start, 0, 0]]), (5, 16, 16))
        np.testing.assert_allclose(drawn.boxes.numpy(), expected.boxes)
    tight = box_prompts(np.random.default_rng(0), truth, classes=3)
    assert np.isnan(tight.boxes[0, 0]).all() == (not (truth == 1).any())


# --- points and kinds -------------------------------------------------------------------------------------------------


def test_points_may_all_be_positive_and_then_nothing_is_corrected():
    truth = labels()
    drawn = point_prompts(np.random.default_rng(0), truth, classes=3, count=20, positive=True)
    assert (drawn.labels == 1).all()

    class Untouched(torch.nn.Module):
        def forward(self, image: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
            raise AssertionError("no prediction is needed")

    settings = sampler(kind="points", count=10, positive=True)
    counts = set()
    for number in range(40):
        given = settings.draw(Untouched(), torch.zeros(1, 1, 6, 12, 14), torch.from_numpy(truth), number)
        assert (given.labels == 1).all()
        counts.add(given.labels.shape[2])
    assert counts == set(range(1, 11))


def test_points_and_boxes_may_be_mixed_in_one_training():
    settings = sampler(kind="mixed", count=1, share=1.0)
    boxed = []
    for number in range(200):
        assert settings.is_prompted(number)
        given = settings.draw(torch.nn.Identity(), torch.zeros(1, 1, 6, 12, 14), torch.from_numpy(labels()), number)
        boxed.append(bool((~given.boxes.isnan()).any()))
        assert boxed[-1] != bool((given.labels >= 0).any())
    assert 0.4 < np.mean(boxed) < 0.6
    assert settings.settings.kinds == {"point", "box"} and settings.settings.drawn == "point"
    with pytest.raises(UsageError, match="takes no prompts of kind 'mixed'"):
        PromptSampler.of(settings.settings, tiny_teacher("masam"), name="masam", seed=0)


def test_new_keys_of_prompts_are_recorded_only_where_they_say_something():
    assert set(PromptTraining(kind="point").model_dump(mode="json")) == {"kind", "count", "share", "overlap", "relax"}
    assert PromptTraining(kind="box", whole_case=True).model_dump(mode="json")["whole_case"] is True
