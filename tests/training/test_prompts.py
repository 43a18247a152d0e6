"""Prompts drawn from labels, and a network of a few weights that learns from them."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.run_configs import run_config
from lightning.fabric import Fabric
from scipy import ndimage
from torch.nn import functional as F

from samkd.configs.load import load_config
from samkd.configs.schema import Augmentation, PromptTraining, Training
from samkd.errors import UsageError
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.train import teach
from samkd.training.interrupt import Stopped
from samkd.training.loop import fit
from samkd.training.patches import PatchBatches
from samkd.training.predictor import make_predictor
from samkd.training.prepared import PreparedCase
from samkd.training.prompt_sampling import (
    PromptSampler,
    box_prompts,
    point_prompts,
    prompts_from_truth,
    tight_box,
    with_click,
)
from samkd.training.run import Run
from samkd.training.step import SupervisedStep
from samkd.training.validation import grid_dice
from samkd.volumes import Geometry, Plan
from samkd.volumes.prompts import ClassPrompts, PatchPrompts


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def two_boxes() -> np.ndarray:
    """Labels [2, 8, 10, 12]: class 1 in both rows, class 2 in the first alone, class 3 in none."""
    labels = np.zeros((2, 8, 10, 12), np.int16)
    labels[:, 2:6, 3:8, 2:7] = 1
    labels[0, 6:8, 8:10, 9:12] = 2
    return labels


def test_points_lie_inside_first_and_then_on_either_side_as_their_labels_say():
    truth = two_boxes()
    seen = []
    for seed in range(40):
        prompts = point_prompts(rng(seed), truth, classes=4, count=3)
        assert prompts.points.shape == (2, 3, 3, 3) and prompts.points.dtype == np.float32
        for row, value in ((0, 1), (0, 2), (1, 1)):
            labels = prompts.labels[row, value - 1]
            voxels = tuple(prompts.points[row, value - 1].astype(int).T)
            np.testing.assert_array_equal(truth[row][voxels] == value, labels == 1)
            assert labels[0] == 1
            seen += labels[1:].tolist()
        assert (prompts.labels[1, 1] == -1).all() and (prompts.labels[:, 2] == -1).all()
        assert np.isnan(prompts.boxes).all()
    assert 0.35 < np.mean(seen) < 0.65


def test_a_click_lies_where_the_network_is_wrong_and_says_the_truth():
    truth = two_boxes()
    result = truth.copy()
    result[0, 2, 3:8, 2:7] = 0  # class 1: a slice missed
    result[1, 0, 0, 0] = 3  # class 3: one voxel too many
    first = point_prompts(rng(), truth, classes=4, count=2)
    for seed in range(10):
        prompts = with_click(rng(seed), first, truth, result)
        np.testing.assert_array_equal(prompts.points[:, :, :2], first.points)
        assert prompts.labels[:, :, 2].tolist() == [[1, -1, -1], [-1, -1, 0]]
        d, h, w = prompts.points[0, 0, 2]
        assert d == 2 and 3 <= h < 8 and 2 <= w < 7
        assert prompts.points[1, 2, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("overlap", [0.5, 0.75, 1.0])
def test_a_box_covers_its_share_of_the_tight_box(overlap):
    truth = two_boxes()
    corners = set()
    for seed in range(20):
        prompts = box_prompts(rng(seed), truth, classes=4, overlap=overlap)
        assert np.isnan(prompts.boxes[1, 1]).all() and np.isnan(prompts.boxes[:, 2]).all()
        assert (prompts.labels == -1).all()
        for row, value in ((0, 1), (0, 2), (1, 1)):
            low, high = tight_box(truth[row] == value)
            box = prompts.boxes[row, value - 1]
            assert (box >= 0).all() and (box.reshape(2, 3) <= np.array(truth.shape[1:]) - 1).all()
            common = np.minimum(high, box[3:]) - np.maximum(low, box[:3]) + 1
            assert np.prod(common) / np.prod(high - low + 1) == pytest.approx(overlap, abs=1e-5)
            corners.add((row, value, *box.tolist()))
    assert len(corners) == (3 if overlap == 1 else 60)


def test_a_relaxed_box_is_longer_by_its_share_and_ends_at_the_patch():
    prompts = box_prompts(rng(), two_boxes(), classes=3, relax=0.1)
    np.testing.assert_allclose(prompts.boxes[0, 0], [1.8, 2.75, 1.75, 5.2, 7.25, 6.25], rtol=1e-6)
    np.testing.assert_allclose(prompts.boxes[0, 1], [5.9, 7.9, 8.85, 7, 9, 11], rtol=1e-6)


def test_prompts_from_the_truth_are_the_deepest_voxel_and_the_tight_box():
    truth = np.zeros((9, 12, 16), np.uint8)
    truth[1:8, 2:9, 3:10] = 1
    truth[0, 0, 15] = 2
    labels = {0: "background", 1: "liver", 2: "vessel", 3: "absent"}
    result = prompts_from_truth("point", truth, labels=labels, spacing=(1, 1, 1))
    assert result.space == "voxel" and set(result.classes) == {1, 2}
    assert result.classes[1].points == ((6, 5, 4, 1),)  # i, j, k
    assert result.classes[2].points == ((15, 0, 0, 1),)
    boxes = prompts_from_truth("box", truth, labels=labels, spacing=(1, 1, 1))
    assert boxes.classes[1].boxes == ((3, 2, 1, 9, 8, 7),)
    grid = Geometry(np.eye(4), truth.shape)
    np.testing.assert_array_equal(boxes.onto(grid, scan=grid, classes=4).boxes[0, 0], [1, 2, 3, 7, 8, 9])


class Pointed(torch.nn.Module):
    """A network that sees the image and a map of its prompts; keeps what it was called with."""

    prompt_kinds = frozenset({"point", "outside point", "box"})

    def __init__(self, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv3d(1 + classes - 1, 8, 3, padding=1)
        self.drop = torch.nn.Dropout(0.1)
        self.last = torch.nn.Conv3d(8, classes, 3, padding=1)
        self.classes, self.seen = classes, []

    def forward(self, image, prompts=None):
        self.seen.append((prompts, torch.is_grad_enabled()))
        maps = image.new_zeros(len(image), self.classes - 1, *image.shape[2:])
        if prompts is not None:
            assert prompts.points.dtype == torch.float32
            for row, value, index in (prompts.labels >= 0).nonzero().tolist():
                d, h, w = prompts.points[row, value, index].long().tolist()
                maps[row, value, d, h, w] = 2.0 * prompts.labels[row, value, index] - 1
            maps = F.max_pool3d(maps, 3, 1, 1)
        return self.last(self.drop(self.first(torch.cat([image, maps], 1)).relu()))


def step_of(kind, *, count=1, share=0.5, classes=4, seed=3, **options) -> SupervisedStep:
    settings = PromptTraining(kind=kind, count=count, share=share, **options)
    prompts = PromptSampler(settings=settings, num_classes=classes, seed=seed)
    return SupervisedStep(dice_weight=0, cross_entropy_weight=1, prompts=prompts)


def batch_of(truth) -> dict[str, torch.Tensor]:
    return {"image": torch.zeros(len(truth), 1, *truth.shape[1:]), "labels": torch.from_numpy(truth)}


def test_the_share_of_steps_with_prompts():
    network = Pointed(4)
    for number in range(200):
        step_of("point", share=0.25)(network, batch_of(two_boxes()), number)
    assert 0.15 < np.mean([prompts is not None for prompts, _ in network.seen]) < 0.35


def test_only_the_last_of_several_passes_is_learned_from_and_clicks_add_up():
    network = Pointed(4)
    counts = set()
    for number in range(60):
        network.seen.clear()
        step_of("points", count=5, share=0.99)(network, batch_of(two_boxes()), number)
        assert [learned for _, learned in network.seen] == [False] * (len(network.seen) - 1) + [True]
        sizes = [prompts.labels.shape[2] for prompts, _ in network.seen if prompts is not None]
        assert sizes == list(range(sizes[0], sizes[0] + len(sizes))) if sizes else True
        counts.add((sizes[0], sizes[-1]) if sizes else None)
    assert {total for pair in counts if pair for total in pair[1:]} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("kind", "options"), [("point", {}), ("points", {"count": 4}), ("box", {"overlap": 0.75})])
def test_prompts_depend_on_seed_and_number_alone(kind, options):
    def drawn(seed, numbers):
        network = Pointed(4).eval()
        for number in numbers:
            step_of(kind, share=0.99, seed=seed, **options)(network, batch_of(two_boxes()), number)
        prompts = network.seen[-1][0]
        return None if prompts is None else (prompts.points, prompts.labels, prompts.boxes.nan_to_num(-1))

    one, two, other, later = drawn(3, [7]), drawn(3, [1, 2, 7]), drawn(4, [7]), drawn(3, [8])
    assert one is not None and two is not None and other is not None and later is not None
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for different in (other, later):
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, different, strict=True))


def case() -> PreparedCase:
    """Two equal bright cubes, of which only one is the class: a prompt alone tells which."""
    rows = rng(1).integers(0, 2, 12)
    image, labels = np.zeros((12 * 5, 5, 10), np.float32), np.zeros((12 * 5, 5, 10), np.uint8)
    for index, side in enumerate(rows):
        where = np.s_[5 * index + 1 : 5 * index + 4, 1:4]
        image[(*where, slice(1, 4))] = image[(*where, slice(6, 9))] = 1
        labels[(*where, slice(1 + 5 * side, 4 + 5 * side))] = 1
    return PreparedCase("a", image[None], labels, (1, 1, 1), {1: np.argwhere(labels)}, 0.0)


@dataclass(frozen=True)
class Announced:
    """A training step with a call before it."""

    step: SupervisedStep
    before: Callable[[], None]
    helper: None = None

    def __call__(self, model, batch, number):
        self.before()
        return self.step(model, batch, number)


def train(folder, settings: Training, prompts: PromptTraining, before_step=lambda: None) -> Pointed:
    network = Pointed()
    run = Run.create(folder, run_config(seed=3))
    sampler = PromptSampler(settings=prompts, num_classes=2, seed=3)
    step = SupervisedStep(dice_weight=0, cross_entropy_weight=1, prompts=sampler)

    fit(
        network,
        Announced(step, before_step),
        batches=PatchBatches(
            [case()],
            patch=(5, 5, 10),
            batch=4,
            steps=settings.steps * settings.accumulate,
            foreground=1.0,
            augmentation=Augmentation(),
            seed=3,
        ),
        validate=lambda model: {"mean": 0.5},
        settings=settings,
        run=run,
        fabric=Fabric(accelerator="cpu", devices=1),
        title="test",
    )
    return network


def test_a_network_learns_to_follow_its_prompt(tmp_path):
    prompts = PromptTraining(kind="points", count=2, share=0.8)
    network = train(tmp_path / "run", Training(steps=150, learning_rate=0.02, validate_every=150), prompts)
    infer = make_predictor(network)
    image = np.zeros((2, 1, 5, 5, 10), np.float32)
    image[:, :, 1:4, 1:4, 1:4] = image[:, :, 1:4, 1:4, 6:9] = 1
    points = np.array([[[[2, 2, 2]]], [[[2, 2, 7]]]], np.float32)
    result = infer(image, PatchPrompts(points, np.ones((2, 1, 1), int), np.full((2, 1, 6), np.nan, np.float32)))[:, 1]
    for row, (pointed, other) in enumerate([(2, 7), (7, 2)]):
        assert result[row, 2, 2, pointed] > result[row, 2, 2, other] + 0.3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_with_clicks_equals_an_uninterrupted_one(tmp_path, accumulate):
    settings = Training(steps=8, validate_every=3, accumulate=accumulate)
    prompts = PromptTraining(kind="points", count=4, share=0.7)
    whole = train(tmp_path / "whole", settings, prompts)
    calls = iter(range(100))

    def interrupt():
        if next(calls) == 4 * accumulate:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped at step 5"):
        train(tmp_path / "torn", settings, prompts, before_step=interrupt)
    resumed = train(tmp_path / "torn", settings, prompts)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "torn")]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


def test_coordinates_stay_exact_in_mixed_precision(tmp_path):
    prompts = PromptTraining(kind="point", share=0.9)
    network = train(tmp_path / "run", Training(steps=3, validate_every=3, precision="bf16-mixed"), prompts)
    assert any(prompts is not None for prompts, _ in network.seen)


def test_patches_without_prompts_are_segmented_automatically():
    network = Pointed(3)
    infer = make_predictor(network)
    nothing = PatchPrompts(
        np.zeros((1, 2, 1, 3), np.float32), np.full((1, 2, 1), -1), np.full((1, 2, 6), np.nan, np.float32)
    )
    image = rng().random((1, 1, 4, 4, 4), np.float32)
    np.testing.assert_array_equal(infer(image, nothing), infer(image))
    assert [prompts for prompts, _ in network.seen] == [None, None]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("{kind: clicks}", "teacher.prompts.kind"),
        ("{kind: points}", "count of 2 or more"),
        ("{kind: box, count: 3}", "count of 2 or more"),
        ("{kind: point, relax: 0.05}", "kind 'box'"),
        ("{kind: point, share: 1.1}", "teacher.prompts.share"),
        ("{kind: point, positive: true}", "takes no positive"),
        ("{kind: box, per_slice: true, whole_case: true}", "takes no whole_case"),
        ("{per_slice: true}", "takes no per_slice"),
        ("{kind: box, overlap: 0}", "teacher.prompts.overlap"),
    ],
)
def test_a_wrong_setting_is_refused(prompts, said):
    with pytest.raises(UsageError, match=said):
        load_config("phantom", [f"teacher.prompts={prompts}"])


def test_a_teacher_without_prompts_refuses_them_before_anything_is_written(tmp_path):
    from samkd.workflows.data import open_dataset

    overrides = ["phantom.training=2", "phantom.test=1", "teacher.plan.patch=[5,32,32]", "teacher.prompts.kind=point"]
    config = load_config("phantom", overrides)
    dataset = open_dataset(config, None, runs=tmp_path / "data")
    with pytest.raises(UsageError, match="'masam' takes no prompts of kind 'point'"):
        teach(config, dataset, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


class Obedient(torch.nn.Module):
    """Marks the voxel of each class's point, or its box; without prompts, nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, image: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        logits = torch.zeros(len(image), 3, *image.shape[2:])
        logits[:, 0] = 1
        if prompts is None:
            return logits
        for case, row in np.ndindex(*prompts.labels.shape[:2]):
            low, high = prompts.boxes[case, row].split(3)
            if prompts.labels[case, row, 0] == 1:
                low = high = prompts.points[case, row, 0]
            if not low.isnan().any():
                d, h, w = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
                logits[case, row + 1, d, h, w] = 9
        return logits


@pytest.mark.parametrize(("kind", "prompted"), [("box", 1.0), ("point", 2 / (8 + 1))])
def test_validation_scores_a_network_with_prompts_and_without_in_the_shares_of_its_training(kind, prompted):
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    labels[1:3, 3:5, 3:5] = 2
    truth = PreparedCase("a", np.zeros((1, 4, 6, 6), np.float32), labels, (2.0, 1.0, 1.0), {}, 0.0)
    plan = Plan(orientation="SPL", spacing=(2.0, 1.0, 1.0), intensity=(), patch=(4, 6, 4), overlap=0.0)
    prompts = PromptSampler(settings=PromptTraining(kind=kind, share=0.75), num_classes=3, seed=0)
    names = {0: "background", 1: "liver", 2: "spleen"}
    scores = grid_dice(Obedient(), [truth], plan=plan, class_names=names, prompts=prompts)
    assert scores["automatic"] == 0 and scores["prompted"] == pytest.approx(prompted)
    for name in ("mean", "liver", "spleen"):
        assert scores[name] == pytest.approx(0.75 * prompted)
    assert grid_dice(Obedient(), [truth], plan=plan, class_names=names) == {"mean": 0.0, "liver": 0.0, "spleen": 0.0}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [0.1, 1.0, 10.0])
def test_the_deepest_voxel_of_a_single_slice_is_the_one_in_its_plane(axis, thickness):
    """However thin the slice is: its own faces are no border."""
    plane = np.zeros((20, 30), np.uint8)
    plane[3:12, 5:24] = 1
    plane[0, 0] = 1
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = thickness
    s0, s1, s2 = spacing
    result = prompts_from_truth("point", np.expand_dims(plane, axis), labels=[1], spacing=(s0, s1, s2))
    ((w, h, d, _),) = result.classes[1].points
    row, column = (place for number, place in enumerate((d, h, w)) if number != axis)
    assert row == 7 and 9 <= column <= 19


def test_a_videos_frames_are_pictures_and_a_volumes_slices_are_not():
    truth = np.zeros((3, 20, 20), np.uint8)
    truth[0, 2:5, 2:5] = truth[1, 1:10, 1:10] = truth[2, 2:5, 2:5] = 1
    for frames in (True, False):
        result = prompts_from_truth("point", truth, labels=[1], spacing=(0.1, 1, 1), frames=frames)
        ((w, h, d, _),) = result.classes[1].points
        assert d == 1 and ((h, w) == (5, 5)) == frames


def test_the_deepest_voxel_of_a_volume_is_what_it_was():
    """By a distance transform over the whole mask, padded on every side."""
    rng = np.random.default_rng(0)
    spacing = (2.0, 1.0, 0.7)
    for _ in range(20):
        truth = ndimage.binary_opening(rng.random((9, 14, 13)) > 0.05).astype(np.uint8)
        depth = np.asarray(ndimage.distance_transform_edt(np.pad(truth, 1), sampling=spacing))
        d, h, w = np.array(np.unravel_index(depth.argmax(), depth.shape)) - 1
        result = prompts_from_truth("point", truth, labels=[1], spacing=spacing)
        assert result.classes[1].points == ((w, h, d, 1),)


def test_a_mask_of_one_voxel_has_its_voxel():
    result = prompts_from_truth("point", np.ones((1, 1, 1), np.uint8), labels=[1], spacing=(1, 1, 1))
    assert result.classes[1].points == ((0, 0, 0, 1),)


def test_a_user_who_knows_the_mask_boxes_every_slice_along_an_axis():
    truth = np.zeros((4, 6, 8), np.uint8)
    truth[1, 2:4, 3:6] = truth[2, 4, 7] = 1
    spacing = (1.0, 1.0, 1.0)
    along = [prompts_from_truth("boxes", truth, labels=(0, 1, 2), spacing=spacing, axis=axis) for axis in (0, 1)]
    assert along[0].classes == {1: ClassPrompts(boxes=((3, 2, 1, 5, 3, 1), (7, 4, 2, 7, 4, 2)))}
    assert along[1].classes[1].boxes == ((3, 2, 1, 5, 2, 1), (3, 3, 1, 5, 3, 1), (7, 4, 2, 7, 4, 2))


def test_careless_boxes_stay_near_the_tight_one_and_cost_no_draw_without_jitter():
    truth = two_boxes()
    tight = box_prompts(rng(), truth, classes=3).boxes
    drawn = np.stack([box_prompts(rng(seed), truth, classes=3, jitter=2).boxes for seed in range(40)])
    there = ~np.isnan(tight)
    moved = drawn[:, there] - tight[there]
    assert np.abs(moved).max() == 2 and (drawn[:, there] >= 0).all() and len(np.unique(moved)) == 5
    low, high = drawn[..., :3], drawn[..., 3:]
    assert (low <= high)[~np.isnan(low)].all()
    before, after = rng(), rng()
    box_prompts(before, truth, classes=3)
    box_prompts(after, truth, classes=3, jitter=0)
    assert before.random() == after.random()
