"""Calibration: the expected calibration error by hand, and temperatures that are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.packages import LABELS, PLAN, Levels, infer_with, make_scan

from samkd.evaluation.calibration import Reliability, ScoredVoxels, fit_temperature, scored_voxels, temperature_of
from samkd.volumes import Plan, Volume
from samkd.volumes.pipeline import Model
from samkd.volumes.preprocess import preprocess_labels
from samkd.volumes.sliding_window import sliding_window

RNG = np.random.default_rng(0)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


def voxels_of(temperature: float, count: int = 20_000) -> ScoredVoxels:
    """Voxels of three classes whose labels follow their probabilities at a temperature."""
    logits = RNG.normal(0, 3, (count, 3))
    drawn = softmax(logits / temperature).cumsum(axis=1) < RNG.uniform(size=(count, 1))
    return ScoredVoxels(softmax(logits), drawn.sum(axis=1).clip(0, 2))


def test_the_error_of_an_example_by_hand():
    """Of 15 bins, 0.9 and 0.92 lie in the 14th (accuracy 0.5, confidence 0.91), 0.6 in the 9th (1 against 0.6).

    2/3 * |0.5 - 0.91| + 1/3 * |1 - 0.6| = 0.40667.
    """
    reliability = Reliability()
    reliability.add(np.array([[0.9, 0.1], [0.08, 0.92]]), np.array([0, 0]))
    reliability.add(np.array([[0.4, 0.6]]), np.array([1]))
    assert reliability.error == pytest.approx(2 / 3 * 0.41 + 1 / 3 * 0.4)
    assert reliability.curve() == [pytest.approx((0.6, 1.0)), pytest.approx((0.91, 0.5))]
    assert Reliability().error is None and Reliability().curve() == []


def test_a_bin_holds_its_upper_end_and_the_last_one_certainty():
    reliability = Reliability()
    reliability.add(np.array([[0.6, 0.4], [1.0, 0.0], [0.5, 0.5]]), np.array([0, 0, 0]))
    assert np.flatnonzero(reliability.counts).tolist() == [7, 8, 14]


def test_voxels_that_all_know_to_be_background_do_not_count():
    probabilities = np.zeros((2, 1, 1, 4), np.float32)
    probabilities[:, 0, 0] = np.array([[0.9, 0.9, 0.2, 0.2], [0.1, 0.1, 0.8, 0.8]])
    voxels = ScoredVoxels.of(probabilities, np.array([[[0, 1, 0, 1]]], np.uint8))
    assert voxels.labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose(voxels.probabilities, probabilities[:, 0, 0, 1:].T, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_at_is_found_and_mends_the_error(temperature):
    fitted = fit_temperature(voxels_of(temperature))
    assert fitted == pytest.approx(temperature, rel=0.05)
    others, plain, scaled = voxels_of(temperature), Reliability(), Reliability()
    plain.add(others.probabilities, others.labels)
    scaled.add(others.at(fitted), others.labels)
    assert plain.error is not None and scaled.error is not None and scaled.error < 0.02
    assert temperature == 1.0 or plain.error > 3 * scaled.error


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_a_temperature_divides_logits_and_changes_no_class(temperature):
    voxels = voxels_of(1.0, count=500)
    scaled = voxels.at(temperature)
    assert (scaled.argmax(axis=1) == voxels.probabilities.argmax(axis=1)).all()
    logits, divided = np.log(voxels.probabilities), np.log(scaled)
    np.testing.assert_allclose(
        divided[:, 1:] - divided[:, :1], (logits[:, 1:] - logits[:, :1]) / temperature, atol=1e-9
    )


def test_certain_and_wrong_is_finite_and_nothing_is_fitted_to_nothing():
    probabilities = np.array([1.0, 0.0]).reshape(2, 1, 1, 1)
    assert np.isfinite(fit_temperature(ScoredVoxels.of(probabilities, np.ones((1, 1, 1), np.uint8))))
    assert fit_temperature(ScoredVoxels.of(probabilities, np.zeros((1, 1, 1), np.uint8))) == 1.0


def test_voxels_are_thinned_evenly_and_put_together():
    voxels = voxels_of(1.0, count=1000)
    assert len(voxels.thinned(300).labels) == 250 and len(voxels.thinned(1000).labels) == 1000
    assert len(ScoredVoxels.together([voxels, voxels.thinned(10)]).labels) == 1010


def levels() -> Model:
    """A model of three classes that goes by intensity, on patches smaller than a scan."""
    plan = replace(PLAN, patch=(8, 8, 8), overlap=0.5)
    return Model(path=Path("levels"), plan=plan, class_names=LABELS, in_channels=1, infer=infer_with(Levels()))


def truth_of(volume: Volume) -> np.ndarray:
    return np.digitize(volume.array[0], (30, 80)).astype(np.uint8)


def test_the_voxels_of_a_scan_are_those_of_its_whole_grid_each_once():
    model, volume = levels(), make_scan(0)
    plan: Plan = model.plan
    probabilities = sliding_window(model.preprocess(volume).array, plan.patch, 0.5, model.infer, num_classes=3)
    whole = ScoredVoxels.of(probabilities, preprocess_labels(truth_of(volume), volume.geometry, plan))
    parts = list(scored_voxels(model, volume, truth_of(volume)))
    together = ScoredVoxels.together(parts)
    assert len(parts) > 1
    np.testing.assert_array_equal(together.labels, whole.labels)
    np.testing.assert_allclose(together.probabilities, whole.probabilities, atol=1e-6)


def test_a_models_temperature_divides_its_logits_and_leaves_its_masks_alone():
    model, volume = levels(), make_scan(1)
    scaled = replace(model, temperature=2.5)
    (plain, grid), (soft, same) = model.probabilities(volume), scaled.probabilities(volume)
    assert grid.shape == plain.shape[1:] and same.same_grid(grid)
    known = plain.min(axis=0) > 1e-6
    differences = [(np.log(each[1:, known]) - np.log(each[:1, known])) for each in (plain, soft)]
    np.testing.assert_allclose(differences[1], differences[0] / 2.5, atol=1e-3)
    np.testing.assert_array_equal(soft.argmax(axis=0), plain.argmax(axis=0))
    np.testing.assert_array_equal(scaled.segment(volume), model.segment(volume))


def test_a_model_that_is_right_everywhere_is_told_to_be_surer():
    volumes = [make_scan(seed) for seed in range(2)]
    temperature = temperature_of(levels(), [(volume, truth_of(volume)) for volume in volumes])
    assert 0.05 <= temperature < 1
