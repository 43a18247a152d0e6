import json
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from samkd.errors import BadInputError
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
    assert [row["dice"] for row in ours] == pytest.approx(dice.tolist(), abs=1e-5)
    assert [row["hd95_mm"] for row in ours] == pytest.approx(hd95.tolist(), abs=1e-4)
    assert [row["nsd"] for row in ours] == pytest.approx(nsd.tolist(), abs=1e-5)
    assert all(0 < row["dice"] < 1 and row["hd95_mm"] > 0 for row in ours)


def test_a_shifted_box_by_hand():
    truth, prediction = np.zeros((10, 12, 12), np.uint8), np.zeros((10, 12, 12), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    prediction[3:7, 2:6, 2:6] = 1  # one slice of 5 mm towards the head
    row = score_case(prediction, truth, spacing=SPACING, labels=LABELS)[0]
    assert row["class"] == 1 and row["name"] == "liver"
    assert row["truth_voxels"] == row["predicted_voxels"] == 64
    assert row["dice"] == pytest.approx(0.75) and row["iou"] == pytest.approx(48 / 80)
    assert row["hd95_mm"] == pytest.approx(5.0)
    # Of each surface of 56 voxels, the 36 on the sides of the three shared slices and no other voxel lie on the other
    # surface; each lid's inner 4 voxels lie inside the other box, 1.5 mm or more from its sides.
    assert row["nsd"] == pytest.approx(36 / 56)
    assert score_case(prediction, truth, spacing=SPACING, labels=LABELS, tolerance_mm=5.0)[0]["nsd"] == 1


def test_equal_masks_are_perfect_also_at_the_edge_of_the_scan():
    truth = np.ones((4, 5, 6), np.uint8)
    row = score_case(truth, truth, spacing=SPACING, labels=LABELS)[0]
    assert (row["dice"], row["iou"], row["hd95_mm"], row["nsd"]) == (1, 1, 0, 1)


def test_absent_classes():
    truth, prediction = np.zeros((4, 10, 20), np.uint8), np.zeros((4, 10, 20), np.uint8)
    truth[1, 2, 3] = 1
    liver, spleen = score_case(prediction, truth, spacing=SPACING, labels=LABELS)
    diagonal = math.hypot(4 * 5, 10 * 2, 20 * 1.5)
    assert (liver["dice"], liver["iou"], liver["nsd"]) == (0, 0, 0)
    assert liver["hd95_mm"] == pytest.approx(diagonal)
    assert [spleen[key] for key in ("dice", "iou", "hd95_mm", "nsd")] == [None] * 4
    invented = score_case(truth, prediction, spacing=SPACING, labels=LABELS)[0]
    assert invented["dice"] == 0 and invented["hd95_mm"] == pytest.approx(diagonal)
    assert (invented["truth_voxels"], invented["predicted_voxels"]) == (0, 1)


def test_spacing_is_along_d_h_w():
    for axis in range(3):
        truth, prediction = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
        here, there = [4, 4, 4], [4, 4, 4]
        there[axis] += 2
        truth[tuple(here)] = prediction[tuple(there)] = 1
        row = score_case(prediction, truth, spacing=(5.0, 2.0, 1.5), labels=LABELS)[0]
        assert row["hd95_mm"] == pytest.approx(2 * (5.0, 2.0, 1.5)[axis])


def test_masks_that_cannot_be_compared():
    mask = np.zeros((4, 5, 6), np.uint8)
    with pytest.raises(BadInputError, match=r"\(4, 5, 6\).*\(4, 5, 7\)"):
        score_case(mask, np.zeros((4, 5, 7), np.uint8), spacing=SPACING, labels=LABELS)
    with pytest.raises(BadInputError, match=r"predicted mask holds the values \[9\]"):
        score_case(np.full_like(mask, 9), mask, spacing=SPACING, labels=LABELS)


def row(name, dice):
    absent = dice is None
    return {
        "name": name,
        "dice": dice,
        "iou": None if absent else dice / 2,
        "hd95_mm": None if absent else 10 * dice,
        "nsd": dice,
    }


def test_means_are_over_cases_then_classes():
    rows = {"a": [row("liver", 0.8), row("spleen", None)], "b": [row("liver", 0.6), row("spleen", 0.1)]}
    summary = summarise(rows)
    assert summary["per_class"]["liver"]["dice"] == pytest.approx(0.7)
    assert summary["per_class"]["liver"]["cases"] == 2 and summary["per_class"]["spleen"]["cases"] == 1
    assert summary["mean"]["dice"] == pytest.approx(0.4), "not (0.8 + 0.6 + 0.1) / 3"
    assert summary["mean"]["hd95_mm"] == pytest.approx(4.0)


def test_a_class_nobody_has_is_none_and_never_nan():
    summary = summarise({"a": [row("liver", 0.8), row("spleen", None)]})
    assert summary["per_class"]["spleen"] == {"dice": None, "iou": None, "hd95_mm": None, "nsd": None, "cases": 0}
    assert summary["mean"]["dice"] == pytest.approx(0.8)
    assert summarise({"a": [row("spleen", None)]})["mean"]["dice"] is None
    json.dumps(summary, allow_nan=False)
