import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from samkd.errors import BadInputError
from samkd.evaluation.records import ClassMean, ClassScore
from samkd.evaluation.scores import score_case, summarise

LABELS = {0: "background", 1: "liver", 2: "spleen"}
SPACING = (5.0, 2.0, 1.5)


def blobs(seed, shape=(14, 24, 30)):
    """Two-class random blobs that touch the edges of the scan."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.digitize(field, np.quantile(field, (0.6, 0.85))).astype(np.uint8)


def one_hot(mask):
    import torch

    return torch.from_numpy(np.stack([mask == value for value in LABELS])[None]).float()


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_monai(seed):
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.surface_dice import compute_surface_dice

    truth = blobs(seed)
    prediction = np.where(np.random.default_rng(seed).uniform(size=truth.shape) < 0.2, blobs(seed + 50), truth)
    ours = score_case(prediction, truth, spacing=SPACING, labels=LABELS, tolerance_mm=2.0)
    p, t = one_hot(prediction), one_hot(truth)
    dice = compute_dice(p, t, include_background=False)[0]
    hd95 = compute_hausdorff_distance(p, t, percentile=95, spacing=SPACING)[0]
    nsd = compute_surface_dice(p, t, class_thresholds=[2.0, 2.0], spacing=SPACING)[0]
    assert [row.dice for row in ours] == pytest.approx(dice.tolist(), abs=1e-5)
    assert [row.hd95_mm for row in ours] == pytest.approx(hd95.tolist(), abs=1e-4)
    assert [row.nsd for row in ours] == pytest.approx(nsd.tolist(), abs=1e-5)
    assert min(dice.min(), 1 - dice.max(), hd95.min()) > 0


def test_a_shifted_box_by_hand():
    truth, prediction = np.zeros((10, 12, 12), np.uint8), np.zeros((10, 12, 12), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    prediction[3:7, 2:6, 2:6] = 1  # one slice of 5 mm towards the head
    row = score_case(prediction, truth, spacing=SPACING, labels=LABELS)[0]
    assert row.number == 1 and row.name == "liver"
    assert row.truth_voxels == row.predicted_voxels == 64
    assert row.dice == pytest.approx(0.75) and row.iou == pytest.approx(48 / 80)
    assert row.hd95_mm == pytest.approx(5.0)
    # Of each surface of 56 voxels, the 36 on the sides of the three shared slices and no other voxel lie on the other
    # surface; each lid's inner 4 voxels lie inside the other box, 1.5 mm or more from its sides.
    assert row.nsd == pytest.approx(36 / 56)
    assert score_case(prediction, truth, spacing=SPACING, labels=LABELS, tolerance_mm=5.0)[0].nsd == 1


def test_equal_masks_are_perfect_also_at_the_edge_of_the_scan():
    truth = np.ones((4, 5, 6), np.uint8)
    row = score_case(truth, truth, spacing=SPACING, labels=LABELS)[0]
    assert (row.dice, row.iou, row.hd95_mm, row.nsd) == (1, 1, 0, 1)


def test_absent_classes():
    truth, prediction = np.zeros((4, 10, 20), np.uint8), np.zeros((4, 10, 20), np.uint8)
    truth[1, 2, 3] = 1
    liver, spleen = score_case(prediction, truth, spacing=SPACING, labels=LABELS)
    diagonal = math.hypot(4 * 5, 10 * 2, 20 * 1.5)
    assert (liver.dice, liver.iou, liver.nsd) == (0, 0, 0)
    assert liver.hd95_mm == pytest.approx(diagonal)
    assert (spleen.dice, spleen.iou, spleen.hd95_mm, spleen.nsd) == (None,) * 4
    invented = score_case(truth, prediction, spacing=SPACING, labels=LABELS)[0]
    assert invented.dice == 0 and invented.hd95_mm == pytest.approx(diagonal)
    assert (invented.truth_voxels, invented.predicted_voxels) == (0, 1)


def test_spacing_is_along_d_h_w():
    for axis in range(3):
        truth, prediction = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
        here, there = [4, 4, 4], [4, 4, 4]
        there[axis] += 2
        truth[tuple(here)] = prediction[tuple(there)] = 1
        row = score_case(prediction, truth, spacing=(5.0, 2.0, 1.5), labels=LABELS)[0]
        assert row.hd95_mm == pytest.approx(2 * (5.0, 2.0, 1.5)[axis])


def discs(*radii, shape=(128, 128)):
    y, x = np.indices(shape)
    return [(np.hypot(y - 64, x - 64) <= radius).astype(np.uint8) for radius in radii]


def monai_2d(prediction, truth, spacing, tolerance_mm):
    """HD95 and NSD of MONAI for one class of a 2-D mask."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    p, t = one_hot(prediction)[:, :2], one_hot(truth)[:, :2]
    hd95 = compute_hausdorff_distance(p, t, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(p, t, class_thresholds=[tolerance_mm], spacing=spacing)
    return float(hd95), float(nsd)


@pytest.mark.parametrize("axis", range(3))
def test_a_single_slice_has_a_2d_surface_along_any_axis(axis):
    truth, prediction = discs(30, 36)
    spacing = np.insert([1.5, 2.0], axis, 7.0).tolist()
    ours = score_case(
        np.expand_dims(prediction, axis), np.expand_dims(truth, axis), spacing=spacing, labels=LABELS, tolerance_mm=9.5
    )[0]
    assert (ours.hd95_mm, ours.nsd) == pytest.approx(monai_2d(prediction, truth, (1.5, 2.0), 9.5), abs=1e-4)
    assert ours.nsd == pytest.approx(0.5, abs=0.4)


def test_discs_six_pixels_apart_by_hand():
    truth, prediction = discs(30, 36)
    row = score_case(prediction[None], truth[None], spacing=(1, 1, 1), labels=LABELS)[0]
    assert row.nsd == 0 and row.hd95_mm == pytest.approx(math.hypot(6, 1))
    absent = score_case(np.zeros_like(truth)[None], truth[None], spacing=(9, 1, 2), labels=LABELS)[0]
    assert absent.hd95_mm == pytest.approx(math.hypot(128, 256)), "the picture's diagonal, without its thickness"


@pytest.mark.parametrize("seed", range(3))
def test_random_slices_are_scored_as_monai_does_in_2d(seed):
    truth, prediction = blobs(seed, (1, 40, 50)), blobs(seed + 50, (1, 40, 50))
    row = score_case(prediction, truth, spacing=SPACING, labels=LABELS, tolerance_mm=2.0)[0]
    assert (row.hd95_mm, row.nsd) == pytest.approx(monai_2d(prediction[0], truth[0], (2.0, 1.5), 2.0), abs=1e-4)


def test_one_row_of_voxels_and_one_voxel_have_surfaces_too():
    truth, prediction = np.zeros((1, 1, 20), np.uint8), np.zeros((1, 1, 20), np.uint8)
    truth[..., 2:9], prediction[..., 4:9] = 1, 1
    row = score_case(prediction, truth, spacing=(5, 5, 1.5), labels=LABELS)[0]
    assert row.nsd == pytest.approx(2 / 4) and row.hd95_mm == pytest.approx(2.75, abs=0.25)
    one = np.ones((1, 1, 1), np.uint8)
    row = score_case(one, one, spacing=(5, 5, 1.5), labels=LABELS)[0]
    assert (row.hd95_mm, row.nsd) == (0, 1)


def test_no_distance_leads_from_one_frame_of_a_video_to_another():
    truth, prediction = discs(30, 36)

    def score(prediction, truth, **options):
        return score_case(np.stack(prediction), np.stack(truth), spacing=(1, 1, 1), labels=LABELS, **options)[0]

    once, picture = score([prediction], [truth], frames=True), score([prediction], [truth])
    assert once == picture
    video = score([prediction] * 3, [truth] * 3, frames=True)
    assert (video.dice, video.iou, video.hd95_mm, video.nsd) == (once.dice, once.iou, once.hd95_mm, once.nsd)
    nothing = np.zeros_like(truth)
    late = score([nothing, truth], [truth, nothing], frames=True)
    assert late.nsd == 0 and late.hd95_mm == pytest.approx(math.hypot(128, 128)), "one frame late is no match"
    missed = score([truth, nothing], [truth, truth], frames=True)
    assert missed.nsd == pytest.approx(2 / 3) and missed.hd95_mm == pytest.approx(math.hypot(128, 128))


def test_masks_that_cannot_be_compared():
    mask = np.zeros((4, 5, 6), np.uint8)
    with pytest.raises(BadInputError, match=r"\(4, 5, 6\).*\(4, 5, 7\)"):
        score_case(mask, np.zeros((4, 5, 7), np.uint8), spacing=SPACING, labels=LABELS)
    with pytest.raises(BadInputError, match=r"predicted mask holds the values \[9\]"):
        score_case(np.full_like(mask, 9), mask, spacing=SPACING, labels=LABELS)


def row(name, dice):
    half, ten = (None, None) if dice is None else (dice / 2, 10 * dice)
    return ClassScore(
        number=1, name=name, dice=dice, iou=half, hd95_mm=ten, nsd=dice, truth_voxels=1, predicted_voxels=1
    )


def test_means_are_over_cases_then_classes():
    rows = {"a": [row("liver", 0.8), row("spleen", None)], "b": [row("liver", 0.6), row("spleen", 0.1)]}
    summary = summarise(rows)
    assert summary.per_class["liver"].dice == pytest.approx(0.7)
    assert summary.per_class["liver"].cases == 2 and summary.per_class["spleen"].cases == 1
    assert summary.mean.dice == pytest.approx(0.4), "not (0.8 + 0.6 + 0.1) / 3"
    assert summary.mean.hd95_mm == pytest.approx(4.0)


def test_a_class_nobody_has_is_none_and_never_nan():
    summary = summarise({"a": [row("liver", 0.8), row("spleen", None)]})
    assert summary.per_class["spleen"] == ClassMean(dice=None, iou=None, hd95_mm=None, nsd=None, cases=0)
    assert summary.mean.dice == pytest.approx(0.8)
    assert summarise({"a": [row("spleen", None)]}).mean.dice is None
    json.dumps(asdict(summary), allow_nan=False)
