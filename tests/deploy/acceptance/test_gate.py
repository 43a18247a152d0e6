import numpy as np
import pytest

from samkd.deploy.acceptance.gate import compare, require_accuracy, require_sensible
from samkd.errors import GateRefusedError


def rows(**dice):
    """rows(a=(0.9, None)): liver and kidney of case a."""
    return {case: {"liver": pair[0], "kidney": pair[1]} for case, pair in dice.items()}


def test_drop_is_the_difference_of_the_means_over_the_cases():
    liver, kidney = compare(rows(a=(0.9, 0.8), b=(0.7, 0.6)), rows(a=(0.9, 0.5), b=(0.68, 0.62)))
    assert (liver.torch, liver.converted, liver.cases) == (pytest.approx(0.8), pytest.approx(0.79), 2)
    assert liver.drop == pytest.approx(0.01) and liver.worst_case == "b"
    assert kidney.drop == pytest.approx(0.14) and kidney.worst_case == "a"
    assert kidney.worst_drop == pytest.approx(0.3)


def test_refusal_names_the_class_the_case_and_the_numbers():
    drops = compare(rows(a=(0.9, 0.8), b=(0.9, 0.8)), rows(a=(0.9, 0.8), b=(0.9, 0.7)))
    require_accuracy(drops, max_drop=0.051)
    with pytest.raises(GateRefusedError, match=r"kidney: Dice 0.8000 -> 0.7500.*0.0500 over 2.*0.1000, in case b"):
        require_accuracy(drops, max_drop=0.005)


def test_a_gain_is_no_drop():
    require_accuracy(compare(rows(a=(0.5, 0.5)), rows(a=(0.9, 0.9))), max_drop=0)


def test_an_invented_organ_counts_as_a_loss():
    _, kidney = compare(rows(a=(0.9, None), b=(0.9, 0.8)), rows(a=(0.9, 0.0), b=(0.9, 0.8)))
    assert kidney.drop == pytest.approx(0.5) and kidney.worst_case == "a"


def test_a_class_absent_everywhere_is_not_judged_but_a_comparison_without_any_class_is_refused():
    drops = compare(rows(a=(0.9, None)), rows(a=(0.9, None)))
    assert drops[1].cases == 0 and drops[1].drop is None
    require_accuracy(drops, max_drop=0)
    with pytest.raises(GateRefusedError, match="nothing to judge"):
        require_accuracy(compare(rows(a=(None, None)), rows(a=(None, None))), max_drop=1)


PATCHES = [np.full((1, 2, 2, 2), value, np.float32) for value in (0.0, 0.5, 1.0)]


def two_classes(first):
    return np.stack([first, 1 - first], axis=1)[:, :, 0]


def test_sensible_network_passes():
    require_sensible(two_classes, PATCHES, subject="it")


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (lambda x: two_classes(np.full_like(x, 0.3)), "same probabilities"),
        (lambda x: two_classes(np.where(x == 1, np.nan, x)), "8|16 values that are not finite"),
        (lambda x: two_classes(x) * 3, "miss a sum of 1 by 2"),
        (lambda x: two_classes(x * 3), "no probabilities"),
    ],
)
def test_senseless_network_is_refused(infer, message):
    with pytest.raises(GateRefusedError, match=message):
        require_sensible(infer, PATCHES, subject="it")


def test_equal_patches_prove_nothing():
    with pytest.raises(GateRefusedError, match="same probabilities"):
        require_sensible(two_classes, PATCHES[:1] * 3, subject="it")
