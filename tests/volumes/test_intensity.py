import numpy as np
import pytest

from samkd.errors import BadInputError
from samkd.volumes.intensity import apply_intensity


def scan(channels=1) -> np.ndarray:
    return np.random.default_rng(0).normal(40, 300, (channels, 8, 9, 10)).astype(np.float32)


def test_window_maps_hu_to_unit_range():
    hu = np.array([-1000, -200, 25, 250, 3000], np.int16).reshape(1, 1, 1, 5)
    found = apply_intensity(hu, [{"rule": "window", "low": -200, "high": 250}])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), [0, 0, 0.5, 1, 1])


def test_percentile_is_per_channel_and_of_the_scan_itself():
    array = scan(2)
    array[1] *= 10
    found = apply_intensity(array, [{"rule": "percentile", "low": 10, "high": 90}])
    for values, result in zip(array, found, strict=True):
        low, high = np.percentile(values, (10, 90))
        np.testing.assert_allclose(result, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    np.testing.assert_allclose(
        found[0], apply_intensity(array[:1] * 7 + 3, [{"rule": "percentile", "low": 10, "high": 90}])[0], atol=1e-4
    )


def test_zscore_per_channel():
    found = apply_intensity(scan(2) + np.array([0, 500]).reshape(2, 1, 1, 1), [{"rule": "zscore"}])
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3)), 1, atol=1e-5)


def test_zscore_of_nonzero_voxels_leaves_the_background():
    array = scan()
    array[0, :4] = 0
    found = apply_intensity(array, [{"rule": "zscore", "nonzero": True}])
    assert (found[0, :4] == 0).all()
    assert found[0, 4:].mean() == pytest.approx(0, abs=1e-5)
    assert found[0, 4:].std() == pytest.approx(1, abs=1e-5)


def test_rules_follow_each_other_and_the_scan_is_not_changed():
    array = scan()
    before = array.copy()
    rules = [{"rule": "window", "low": -100, "high": 100}, {"rule": "zscore"}]
    found = apply_intensity(array, rules)
    clipped = np.clip(array, -100, 100)
    np.testing.assert_allclose(found, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
    np.testing.assert_array_equal(array, before)
    assert apply_intensity(array, []) is not array


@pytest.mark.parametrize("rule", [{"rule": "percentile"}, {"rule": "zscore"}, {"rule": "zscore", "nonzero": True}])
@pytest.mark.parametrize("value", [0.0, 1234.5])
def test_a_blank_scan_is_refused(rule, value):
    with pytest.raises(BadInputError, match="channel 0 of the scan"):
        apply_intensity(np.full((1, 4, 4, 4), value, np.float32), [rule])


@pytest.mark.parametrize(
    "rule", [{"rule": "gamma"}, {"low": 0}, {"rule": "window", "low": 0}, {"rule": "zscore", "x": 1}]
)
def test_unknown_rules_and_options_are_refused(rule):
    with pytest.raises(BadInputError, match="intensity rule"):
        apply_intensity(scan(), [rule])
