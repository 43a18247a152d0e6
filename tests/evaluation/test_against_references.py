"""Every score beside other people's libraries on random and on pathological masks; the whole comparison is
benchmarks/scores.py."""

import importlib.util

import pytest
from helpers.reference_scores import REFERENCES, by_samkd, pathological_pairs, random_pairs

PAIRS = [*random_pairs(12, seed=7), *pathological_pairs()]
MODULES = {"MONAI": "monai", "scipy": "scipy", "SimpleITK": "SimpleITK", "MedPy": "medpy"}
MODULES["surface-distance"] = "surface_distance"


@pytest.fixture(scope="module")
def ours():
    return {pair.name: by_samkd(pair, 1.7) for pair in PAIRS}


@pytest.mark.parametrize("library", REFERENCES)
def test_scores_are_those_of_other_libraries(library, ours):
    if importlib.util.find_spec(MODULES[library]) is None:
        pytest.skip(f"{library} is not installed; `pip install --no-deps {MODULES[library].replace('_', '-')}`")
    for pair in PAIRS:
        theirs = REFERENCES[library](pair, 1.7)
        assert theirs == pytest.approx({name: ours[pair.name][name] for name in theirs}, abs=1e-4), pair.name
