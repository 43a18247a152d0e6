"""Which patches are tried on the device, what they compute, and which of them is packed."""

from dataclasses import replace
from pathlib import Path

import pytest

from samkd.deploy.acceptance.candidates import Selection
from samkd.deploy.acceptance.geometries import InferenceGeometry, ScanShape, cheaper_geometries, select_geometry
from samkd.deploy.runtime.judgement import CandidateResult, ConvertedScores, ValidationScores, timed_precisions
from samkd.errors import GateRefusedError
from samkd.volumes.plan import Plan

PLAN = Plan(intensity=({"rule": "window", "low": 0, "high": 100},), patch=(96, 96, 96), overlap=0.5)
CT = ScanShape((100, 200, 200), (100, 200, 200))


def test_work_counts_the_voxels_of_all_patches():
    # 2 x 4 x 4 patches of 96 with half of each in common, 2 x 3 x 3 without, over 100 x 200 x 200 voxels.
    assert InferenceGeometry((96, 96, 96), 0.5).work([CT]) == pytest.approx(32 * 96**3 / (100 * 200 * 200))
    assert InferenceGeometry((96, 96, 96), 0.0).work([CT]) == pytest.approx(18 * 96**3 / (100 * 200 * 200))
    # A patch larger than the scan computes its padding, too.
    assert InferenceGeometry((128, 224, 224), 0.5).work([CT]) == pytest.approx(128 * 224**2 / (100 * 200 * 200))


def test_the_least_work_is_tried_first_and_never_more_than_the_plans():
    geometries = cheaper_geometries(PLAN, [CT])
    work = [geometry.work([CT]) for geometry in geometries]
    assert work == sorted(work) and work[-1] <= 0.9 * InferenceGeometry(PLAN.patch, PLAN.overlap).work([CT])
    assert InferenceGeometry((128, 224, 224), 0.5) in geometries, "the whole scan, rounded up to 32"
    assert {geometry.patch for geometry in geometries} <= {
        *((96, 96, 96), (128, 96, 96), (96, 224, 224), (128, 224, 224)),
    }
    # Whole scans overlap nothing, whatever they are asked to: one of them is enough.
    assert sum(geometry.patch == (128, 224, 224) for geometry in geometries) == 1


def test_a_patch_may_be_fixed_and_memory_is_bounded():
    assert {each.patch for each in cheaper_geometries(PLAN, [CT], fixed_patch=True)} == {(96, 96, 96)}
    huge = cheaper_geometries(PLAN, [ScanShape((1000, 512, 512), (1000, 512, 512))])
    assert huge and all(each.patch in ((96, 96, 96), (1024, 96, 96)) for each in huge)
    whole = replace(PLAN, patch=(128, 224, 224), overlap=0.0)
    assert cheaper_geometries(whole, [CT]) == []


def test_scans_in_much_air_are_tried_without_it_and_thin_overlaps_with_plain_weights():
    airy = ScanShape((100, 400, 400), (100, 200, 200))
    geometries = cheaper_geometries(PLAN, [airy])
    cropped = [geometry for geometry in geometries if geometry.crop == "content"]
    assert InferenceGeometry((128, 224, 224), 0.5, crop="content") in cropped
    assert InferenceGeometry((128, 224, 224), 0.5, crop="content").work([airy]) == pytest.approx(128 * 224**2 / 16e6)
    plain = [geometry for geometry in geometries if geometry.blending == "plain"]
    assert plain and {geometry.overlap for geometry in plain} <= {16.0, 8.0}
    assert geometries[0].crop == "content" and geometries[0].in_plan(PLAN).crop == "content"
    assert all(geometry.crop == "none" for geometry in cheaper_geometries(PLAN, [CT]))


def test_patches_are_rounded_up_to_what_the_network_can_take():
    assert {each.patch for each in cheaper_geometries(PLAN, [CT], side=8)} >= {(104, 200, 200), (96, 200, 200)}


def test_a_precision_that_passes_and_is_no_faster_is_named():
    float32 = CandidateResult("fp32", "f32", None, cpu_seconds=2.0)
    int8 = CandidateResult("int8", "f32", "plain", cpu_seconds=1.5)
    assert timed_precisions([float32, int8]) == "Seconds of the processor a scan: fp32 2.00, int8 (plain) 1.50."
    slower = timed_precisions([float32, replace(int8, cpu_seconds=2.5)])
    assert slower.endswith(
        "int8 (plain) passed and is not faster than fp32 on the machine that judged: pack fp32 for its kind."
    )
    assert timed_precisions([replace(float32, cpu_seconds=None)]) == ""


class Packed:
    """What select_geometry needs of a package."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.manifest = None


def selection(plan: Plan, *, dice: float, hd95: float, seconds: float) -> Selection:
    scores = ConvertedScores(dice, hd95, 1.0, to_torch=ValidationScores(1.0, 0.0, 1.0))
    result = CandidateResult("fp32", "f32", None, per_class={"liver": scores})
    return Selection(Packed(plan), [], [result], seconds, seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcomes", "verdicts"),
    [
        ([(0.9, 3.0, 1.0)], [None]),
        (["more than 0.005 of Dice was lost", (0.9, 3.0, 1.0)], ["Dice was lost", None]),
        ([(0.9, 4.5, 1.0), (0.9, 3.9, 1.0)], ["HD95 rose from 3.00 to 4.50 mm", None]),
        (
            [(0.9, 3.0, 6.0), (0.9, 3.0, 4.0)],
            ["It takes 6.00 s of the processor a scan, the training's", None],
        ),
        (["lost", "lost"], ["lost", "lost"]),
    ],
)
def test_the_first_that_is_as_good_and_faster_is_packed(outcomes, verdicts, tmp_path, monkeypatch):
    monkeypatch.setattr("samkd.deploy.acceptance.geometries._moved", lambda package, *_folders, **_trained: package)
    geometries = [InferenceGeometry((128, 224, 224), 0.0), InferenceGeometry((96, 224, 224), 0.25)]
    trained = selection(PLAN, dice=0.9, hd95=3.0, seconds=5.0)
    left = iter(outcomes)

    def trial(geometry: InferenceGeometry, scratch: Path) -> Selection:
        outcome = next(left)
        if isinstance(outcome, str):
            raise GateRefusedError(outcome)
        dice, hd95, seconds = outcome
        return selection(geometry.in_plan(PLAN), dice=dice, hd95=hd95, seconds=seconds)

    chosen = select_geometry(trained, geometries, tmp_path, scans=[CT], trial=trial)
    first, *tried = chosen.geometries
    assert (first.patch, first.overlap, first.refusal) == ((96, 96, 96), 0.5, None)
    assert len(tried) == len(verdicts)
    for result, verdict in zip(tried, verdicts, strict=True):
        assert result.refusal is None if verdict is None else verdict in (result.refusal or "")
    packed = geometries[len(tried) - 1].in_plan(PLAN) if verdicts[-1] is None else PLAN
    assert chosen.package.plan == packed
