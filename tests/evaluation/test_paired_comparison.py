import numpy as np
import pytest
from scipy.stats import wilcoxon

from samkd.evaluation.paired_comparison import PairedDifference, paired_difference
from samkd.evaluation.records import DiceByCase


def rows(values: dict[str, list[float | None]]) -> DiceByCase:
    """Dice per class over cases, by case."""
    cases = range(len(next(iter(values.values()))))
    return {f"c{i}": {name: dice[i] for name, dice in values.items()} for i in cases}


def test_differences_are_paired_case_by_case():
    rng = np.random.default_rng(1)
    control = rng.uniform(0.3, 0.9, 40)  # cases differ far more than the two networks do
    gain = rng.normal(0.02, 0.01, 40)
    result = paired_difference(rows({"a": list(control + gain)}), rows({"a": list(control)}))
    assert result["a"].cases == 40
    assert result["a"].difference == pytest.approx(gain.mean())
    half = 1.96 * gain.std(ddof=1) / np.sqrt(40)
    assert result["a"].low == pytest.approx(gain.mean() - half, abs=0.1 * half)
    assert result["a"].high == pytest.approx(gain.mean() + half, abs=0.1 * half)
    assert result["a"].p == pytest.approx(wilcoxon(control + gain - control)[1])
    assert result["a"].p is not None and result["a"].p < 1e-6
    assert result["mean"] == result["a"]
    assert paired_difference(rows({"a": list(control + gain)}), rows({"a": list(control)})) == result


def test_no_difference_is_no_effect():
    same = rows({"a": [0.5, 0.7, 0.9]})
    assert paired_difference(same, same)["a"] == PairedDifference(cases=3, difference=0, low=0, high=0, p=1.0)


def test_a_class_absent_from_a_case_is_left_out_there():
    result = paired_difference(
        rows({"a": [0.5, 0.6], "b": [None, 0.9]}),
        rows({"a": [0.4, 0.4], "b": [None, 0.5]}),
    )
    assert result["a"].cases == 2 and result["b"].cases == 1
    assert result["b"].difference == pytest.approx(0.4)
    assert result["b"].low is None and result["b"].p is None
    assert result["mean"].difference == pytest.approx((0.1 + (0.2 + 0.4) / 2) / 2)
