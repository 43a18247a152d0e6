"""Each rule of scoring by a case that can be counted by hand."""

from dataclasses import asdict

import numpy as np
import pytest

from samkd.configs.evaluation_schema import Evaluation
from samkd.errors import UsageError
from samkd.evaluation.records import CaseScores, ClassScore
from samkd.evaluation.rules import METRICS, ScoringRules
from samkd.evaluation.scores import case_scores, score_case, score_scan, summarise
from samkd.volumes.geometry import Geometry

LABELS = {0: "background", 1: "liver", 2: "spleen"}


def shifted_boxes(**rules):
    """Two cubes of 4 voxels, the second one slice of 5 mm further; scored as the liver."""
    truth, prediction = np.zeros((10, 12, 12), np.uint8), np.zeros((10, 12, 12), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    prediction[3:7, 2:6, 2:6] = 1
    return score_case(prediction, truth, spacing=(5, 2, 1.5), labels=LABELS, rules=ScoringRules(**rules))[0]


def row(dice, *, name="liver", truth=1, predicted=1):
    values = dict.fromkeys(METRICS, dice)
    return ClassScore(number=1, name=name, truth_voxels=truth, predicted_voxels=predicted, **values)


def test_the_config_and_the_rules_have_the_same_defaults():
    assert ScoringRules(**Evaluation().model_dump()) == ScoringRules() == ScoringRules.from_json({})


def test_a_tolerance_for_each_class_and_for_all():
    assert shifted_boxes().nsd == pytest.approx(36 / 56)
    assert shifted_boxes(tolerance_mm=5).nsd == shifted_boxes(class_tolerances_mm={"liver": 5}).nsd == 1
    assert shifted_boxes(tolerance_mm=5, class_tolerances_mm={"liver": 1}).nsd == pytest.approx(36 / 56)
    with pytest.raises(UsageError, match="no class 'kidney'; the classes are"):
        ScoringRules(class_tolerances_mm={"kidney": 2}).check_classes(LABELS.values())


def test_hd95_in_voxels_is_computed_only_where_it_is_named():
    assert shifted_boxes().hd95_voxels is None
    named = shifted_boxes(metrics=("hd95_voxels",))
    assert named.hd95_voxels == pytest.approx(1) and named.hd95_mm == pytest.approx(5)


def test_the_mean_surface_distance_by_hand():
    truth, prediction = np.zeros((1, 1, 20), np.uint8), np.zeros((1, 1, 20), np.uint8)
    truth[..., 2:9], prediction[..., 4:9] = 1, 1  # ends 2 and 8 against 4 and 8
    line = score_case(prediction, truth, spacing=(5, 5, 1.5), labels=LABELS)[0]
    assert line.asd_mm == pytest.approx((3 + 0 + 3 + 0) / 4)
    # Of each surface of 56 voxels 36 lie on the other; its outer lid of 16 is 5 mm away, and the 4 inner voxels of the
    # other lid lie inside the other box, 1.5 mm from its side.
    assert shifted_boxes().asd_mm == pytest.approx((16 * 5 + 4 * 1.5) / 56)


def test_the_subvoxel_surface_of_a_box_has_its_area():
    # A box of 4 x 6 x 8 mm against itself one voxel of 2 mm further: all but the two lids lie on each other.
    truth, prediction = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
    truth[2:4, 2:5, 2:6], prediction[3:5, 2:5, 2:6] = 1, 1
    one = score_case(prediction, truth, spacing=(2, 2, 2), labels=LABELS, rules=ScoringRules(surface="subvoxel"))[0]
    near = score_case(
        prediction, truth, spacing=(2, 2, 2), labels=LABELS, rules=ScoringRules(surface="subvoxel", tolerance_mm=2)
    )[0]
    assert one.nsd is not None and 0 < one.nsd < 1 and near.nsd == pytest.approx(1) and one.hd95_mm == pytest.approx(2)
    line = np.zeros((1, 1, 9), np.uint8)
    line[..., 2:5] = 1
    longer = line.copy()
    longer[..., 5] = 1
    in_1d = score_case(longer, line, spacing=(1, 1, 2), labels=LABELS, rules=ScoringRules(surface="subvoxel"))[0]
    assert in_1d.asd_mm == pytest.approx(1) and in_1d.nsd == pytest.approx(0.5), "two ends of four are 2 mm apart"


def test_a_class_absent_from_both_is_left_out_or_perfect():
    nothing = row(None, name="spleen", truth=0, predicted=0)
    cases = {"a": [row(0.8), nothing], "b": [row(0.6), row(0.0, name="spleen", predicted=0)]}
    skipped, perfect = summarise(cases), summarise(cases, rules=ScoringRules(both_absent="perfect"))
    assert skipped.per_class["spleen"].dice == 0 and skipped.per_class["spleen"].cases == 1
    assert perfect.per_class["spleen"].dice == 0.5 and perfect.per_class["spleen"].cases == 2
    assert perfect.per_class["spleen"].hd95_mm == 0
    assert (skipped.per_class["spleen"].missed, skipped.per_class["spleen"].invented) == (1, 0)
    scores = case_scores(cases, rules=ScoringRules(both_absent="perfect"))
    assert scores.values("dice")["a"] == {"liver": 0.8, "spleen": 1.0}
    assert scores.cases["a"][1].dice is None, "the rows stay as they were measured"


def test_means_over_classes_first_or_over_cases_first():
    cases = {
        "a": [row(0.8), row(None, name="spleen", truth=0, predicted=0)],
        "b": [row(0.6), row(0.1, name="spleen")],
    }
    assert summarise(cases).mean.dice == pytest.approx((0.7 + 0.1) / 2)
    assert summarise(cases, rules=ScoringRules(average="cases")).mean.dice == pytest.approx((0.8 + 0.35) / 2)


def test_a_video_is_scored_as_a_whole_or_frame_by_frame():
    truth, prediction = np.zeros((3, 10, 10), np.uint8), np.zeros((3, 10, 10), np.uint8)
    truth[0, :4], prediction[0, :4] = 1, 1  # 40 pixels right
    truth[1, :1], prediction[1, :2] = 1, 1  # 10 of 20
    prediction[2, :1] = 2  # nothing but 10 invented pixels
    grid = Geometry(np.eye(4), truth.shape, frames=True)

    def score(**rules):
        rules = ScoringRules(average="cases", **rules)
        return case_scores(
            score_scan("film", prediction, truth, grid=grid, labels=LABELS, rules=rules)
            | score_scan("late", prediction[::-1], truth[::-1], grid=grid, labels=LABELS, rules=rules),
            rules=rules,
        )

    whole, frames = score(), score(unit="frame")
    assert list(whole.cases) == ["film", "late"]
    assert whole.summary.mean.iou == pytest.approx((50 / 60 + 0) / 2)
    assert list(frames.cases)[:4] == ["film#0001", "film#0002", "film#0003", "late#0001"]
    assert frames.summary.mean.iou == pytest.approx((1 + 0.5 + 0) / 3), "of each frame, then of each film"
    still = Geometry(np.eye(4), truth.shape)
    assert list(score_scan("scan", truth, truth, grid=still, labels=LABELS, rules=ScoringRules(unit="frame"))) == [
        "scan"
    ]


def test_rules_are_written_with_the_scores_and_read_again():
    rules = ScoringRules(metrics=("nsd", "hd95_voxels"), class_tolerances_mm={"liver": 2.0}, unit="frame")
    scores = case_scores({"a": [row(0.8)]}, rules=rules)
    assert CaseScores.from_json(scores.to_json()) == scores
    for wrong in ({"surface": "smooth"}, {"tolerance_mm": "1"}, {"metrics": ["volume"]}, {"colour": 1}, [1]):
        with pytest.raises(TypeError):
            ScoringRules.from_json(wrong)
    assert "perfect score" in ScoringRules(both_absent="perfect").absent_rule
    assert set(asdict(row(0.5))) >= set(METRICS)
