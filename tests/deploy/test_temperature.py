"""A package with a temperature: other probabilities, the same masks."""

import json
import shutil

import numpy as np
import pytest
from helpers.packages import Levels, deploy, make_scan, reseal

from samkd.configs.schema import Deployment
from samkd.deploy.runtime.package import Package
from samkd.errors import IntegrityError, UsageError
from samkd.evaluation.calibration import temperature_of


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The same student packed without and with a temperature."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("temperature")
    return [
        deploy(Levels(), folder, temperature=asked, destination=folder / "packages" / str(asked).lower())
        for asked in (False, True)
    ]


def test_it_stands_in_the_manifest_and_on_the_card_only_where_it_was_asked_for(packages):
    without, scaled = (json.loads((path / "manifest.json").read_text()) for path in packages)
    assert "temperature" not in without and 0.05 <= scaled["temperature"] < 1, "Levels is never wrong: be surer"
    cards = [(path / "MODEL_CARD.md").read_text() for path in packages]
    assert "temperature" not in cards[0] and f"divided by {scaled['temperature']:.3f}" in cards[1]
    assert without["files"]["model.bin"] == scaled["files"]["model.bin"], "the graph is the same"
    assert Deployment().temperature is False


def test_masks_are_the_same_and_logits_are_divided(packages, tmp_path):
    softer = tmp_path / "softer"
    shutil.copytree(packages[1], softer)
    reseal(softer, temperature=2.5)
    plain, scaled = map(Package.open, (packages[0], softer))
    assert (plain.temperature, scaled.temperature) == (1.0, 2.5)
    for seed in range(3):
        volume = make_scan(seed)
        np.testing.assert_array_equal(scaled.segment(volume), plain.segment(volume))
        (before, grid), (after, same) = plain.probabilities(volume), scaled.probabilities(volume)
        assert same.same_grid(grid) and after.dtype == np.float32
        np.testing.assert_allclose(after.sum(axis=0), 1, atol=1e-5)
        # Equal probabilities may part by a rounding: where one is clearly the largest it stays it.
        clear = np.diff(np.sort(before, axis=0)[-2:], axis=0)[0] > 1e-5
        np.testing.assert_array_equal(after.argmax(axis=0)[clear], before.argmax(axis=0)[clear])
        known = before.min(axis=0) > 1e-6
        one, other = (np.log(each[1:, known]) - np.log(each[:1, known]) for each in (before, after))
        assert known.any()
        np.testing.assert_allclose(other, one / 2.5, rtol=1e-3, atol=1e-3)
    expected = [(path / "sample" / "expected.nii.gz").read_bytes() for path in packages]
    assert expected[0] == expected[1]


def test_it_is_the_one_that_the_validation_scans_say(packages):
    from helpers.packages import validation_cases

    package = Package.open(packages[1])
    scans = [(case.volume, case.truth) for case in validation_cases()]
    assert package.temperature == pytest.approx(temperature_of(package, scans), rel=1e-6)


@pytest.mark.parametrize("value", [0, -1, 1e9, "1", None])
def test_a_manifest_with_another_temperature_is_refused(packages, value, tmp_path):

    package = tmp_path / "package"
    shutil.copytree(packages[1], package)
    reseal(package, temperature=value)
    with pytest.raises(IntegrityError, match=r"temperature is .*; expected a number from 0\.05 to 20\.0"):
        Package.open(package)


def test_a_network_that_needs_prompts_has_none(tmp_path):
    with pytest.raises(UsageError, match="finds nothing without prompts"):
        deploy(Levels(), tmp_path, temperature=True, prompts_required=True)
