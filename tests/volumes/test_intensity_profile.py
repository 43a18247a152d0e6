"""What the intensities of training data look like, and how far a scan is from them."""

import json

import numpy as np
import pytest

from samkd.volumes.intensity_profile import intensity_profile, is_profile, profile_distance


def scans(shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.stack([rng.normal(0.5 + shift, 0.1, (12, 20, 20)), rng.uniform(size=(12, 20, 20))]) for _ in range(3)]


def test_no_training_scan_is_further_away_than_the_limit_and_a_shifted_one_is():
    profile = intensity_profile(scans(), [scan[:, :4, :4, :4] for scan in scans()])
    assert is_profile(json.loads(json.dumps(profile))) and len(profile) == 2
    for scan in scans():
        for values, known in zip(scan, profile, strict=True):
            assert profile_distance(values, known) <= known["limit"]
    shifted = scans(shift=0.4)[0]
    assert profile_distance(shifted[0], profile[0]) == pytest.approx(0.4, abs=0.02) and profile[0]["limit"] < 0.4
    assert profile_distance(shifted[1], profile[1]) <= profile[1]["limit"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        "x",
        [1],
        [{}],
        [{"percentiles": [0.0] * 8, "limit": 1}],
        [{"percentiles": [*range(8), 3], "limit": 1}],
        [{"percentiles": [0.0] * 9}],
        [{"percentiles": [0.0] * 9, "limit": float("nan")}],
        [{"percentiles": [True] * 9, "limit": 1}],
        [{"percentiles": [float("inf")] * 9, "limit": 1}],
    ],
)
def test_anything_else_is_no_profile(value):
    assert not is_profile(value)
