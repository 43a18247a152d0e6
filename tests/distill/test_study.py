"""The study: which students are trained in which order, and what it leaves beside their runs. No network is trained."""

import json
from pathlib import Path

import pytest
from helpers.run_configs import run_config

from samkd.configs.load import load_config
from samkd.distill import study as module
from samkd.distill.study import StudentOptions, study
from samkd.evaluation.records import ClassScore
from samkd.evaluation.scores import case_scores
from samkd.training.metrics import BestValidation, RunMetrics
from samkd.training.run import Run
from samkd.volumes.datasets.registry import Dataset

DATASET = Dataset("none", Path(), "none", {0: "background", 1: "liver"}, ("CT",), (), ())


def score(dice: float) -> ClassScore:
    return ClassScore(
        number=1, name="liver", dice=dice, iou=dice, hd95_mm=1.0, nsd=dice, truth_voxels=1, predicted_voxels=1
    )


@pytest.fixture
def trained(monkeypatch):
    """Runs appear at once, with a Dice of 0.9 minus lambda / 2 and a little more in the second case."""
    calls = []

    def distill(config, dataset, *, runs, run, lambda_, **options) -> Run:
        calls.append((lambda_, run and run.name, options))
        student = Run.create(run or runs / f"lambda-{lambda_:g}", run_config(objective={"lambda": lambda_}))
        test = case_scores({case: (score(0.9 - lambda_ / 2 + more),) for case, more in (("a", 0), ("b", 0.05))})
        metrics = RunMetrics(
            steps=1,
            seconds=0.0,
            skipped_steps=0,
            parameters=1,
            trained_parameters=1,
            validation=BestValidation(dice=0.5, step=1),
            test=test,
        )
        student.write_json("metrics.json", metrics.to_json())
        return student

    monkeypatch.setattr(module, "distill", distill)
    return calls


def test_the_control_comes_first_and_each_student_is_compared_with_it(trained, tmp_path):
    options = StudentOptions(online=True, devices=2)
    results = study(
        load_config("phantom", []), DATASET, teachers=[], lambdas=[1.0, 0.5, 0.0, 0.5], runs=tmp_path, options=options
    )
    assert [value for value, _, _ in trained] == [1.0, 0.0, 0.5]
    assert all((used["online"], used["devices"], used["teachers"]) == (True, 2, None) for _, _, used in trained)
    assert results.control is not None and results.students[1.0] is results.control
    assert list(results.students) == [0.0, 0.5, 1.0] and list(results.effects) == [0.0, 0.5]
    assert results.effects[0.5]["liver"].difference == pytest.approx(0.25)
    assert not (tmp_path / "lambda-1" / "comparison.json").exists()
    comparison = json.loads((tmp_path / "lambda-0" / "comparison.json").read_text())
    assert list(comparison) == ["control", "teachers", "classes"]
    assert comparison["control"] == "lambda-1" and comparison["teachers"] == {}
    assert list(comparison["classes"]) == ["liver", "mean"]
    assert list(comparison["classes"]["mean"]) == ["cases", "difference", "low", "high", "p"]
    assert comparison["classes"]["mean"]["cases"] == 2
    assert results.curve is not None and results.curve.parent == tmp_path
    assert results.curve.read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')


def test_one_lambda_has_a_folder_of_its_own_and_no_curve(trained, tmp_path):
    results = study(
        load_config("phantom", []), DATASET, teachers=[], lambdas=[0.5], runs=tmp_path, run=tmp_path / "mine"
    )
    assert [(value, folder) for value, folder, _ in trained] == [(1.0, None), (0.5, "mine")]
    assert results.curve is None and (tmp_path / "mine" / "comparison.json").exists()
    alone = study(load_config("phantom", []), DATASET, teachers=[], lambdas=[0.5], runs=tmp_path, control=False)
    assert alone.control is None and alone.effects == {}
