"""What a config says about intensities is what preprocessing does."""

import numpy as np
import pytest

from samkd.configs.load import load_config
from samkd.errors import UsageError
from samkd.volumes.intensity import apply_intensity

CLIP = "{rule: clip, low: -991, high: 362}"


def prepared(*rules: str, values: list[float]) -> np.ndarray:
    config = load_config("phantom", [f"teacher.plan.intensity=[{', '.join(rules)}]"])
    return apply_intensity(np.array(values).reshape(1, 1, 1, -1), config.teacher.plan.model_dump()["intensity"]).ravel()


def test_clip_then_shift_and_scale_with_the_numbers_of_amos():
    result = prepared(CLIP, "{rule: shift_scale, subtract: 50, divide: 141}", values=[-2000, -991, 50, 191, 362, 3000])
    np.testing.assert_allclose(result, [-1041 / 141, -1041 / 141, 0, 1, 312 / 141, 312 / 141], rtol=1e-6)


@pytest.mark.parametrize(
    "rule", ["{rule: clip, low: 5, high: 5}", "{rule: shift_scale, subtract: 0, divide: 0}", "{rule: clip, low: 5}"]
)
def test_impossible_numbers_are_refused(rule: str):
    with pytest.raises(UsageError, match=r"teacher\.plan\.intensity"):
        prepared(rule, values=[0, 1])
