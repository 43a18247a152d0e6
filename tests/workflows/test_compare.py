"""samkd evaluate --compare: finished results side by side."""

import json
from dataclasses import replace

import pytest
from helpers.command_line import run_cli
from helpers.run_configs import run_config

from samkd.evaluation.records import ClassScore
from samkd.evaluation.result_files import write_result
from samkd.evaluation.rules import ScoringRules
from samkd.evaluation.scores import case_scores
from samkd.training.metrics import RunMetrics
from samkd.training.run import Run


def scores(gain=0.0, cases=8, name="liver", **rules):
    def row(number):
        dice = 0.5 + number / 100 + gain
        return ClassScore(
            number=1, name=name, dice=dice, iou=dice, hd95_mm=9 - dice, nsd=dice, truth_voxels=1, predicted_voxels=1
        )

    return case_scores({f"case_{number}": [row(number)] for number in range(cases)}, rules=ScoringRules(**rules))


def written(path, result):
    write_result(path, result, title="t", more={})
    return path


@pytest.fixture
def results(tmp_path):
    run = Run.create(tmp_path / "run", run_config())
    metrics = RunMetrics(
        steps=1, seconds=0.0, skipped_steps=0, parameters=1, trained_parameters=1, validation=None, test=scores(0.1)
    )
    run.write_json("metrics.json", metrics.to_json())
    return [written(tmp_path / "a.json", scores()), run.path, written(tmp_path / "c.json", scores(0.2, cases=9))]


def test_runs_and_results_are_compared_over_the_cases_they_share(results, tmp_path):
    done = run_cli(
        *("evaluate", "--compare", *results, "-o", tmp_path / "t.md", "-o", tmp_path / "t.json"),
        *("--set", "evaluation.metrics=[dice,hd95_mm]"),
        in_process=True,
    )
    assert done.exit_code == 0, done.output
    assert "c: 1 of 9 cases are not in all results" in done.text
    tables = json.loads((tmp_path / "t.json").read_text())
    assert [table["title"] for table in tables][:3] == ["Dice", "Dice, paired differences", "HD95, mm"]
    assert tables[0]["rows"][0] == {"class": "liver", "a": "0.535", "run": "0.635", "c": "0.735"}
    rows = {row["results"]: row for row in tables[1]["rows"] if row["class"] == "mean"}
    assert list(rows) == ["run - a", "c - a", "c - run"] and rows["c - a"]["difference"] == "+0.2000"
    assert rows["c - a"]["cases"] == "8" and float(rows["c - a"]["p"]) == pytest.approx(0.0078, abs=1e-4)
    assert tables[3]["rows"][0]["difference"] == "-0.100"
    assert "| c - run | liver | +0.1000 |" in (tmp_path / "t.md").read_text()


@pytest.mark.parametrize(
    ("other", "sets", "message", "code"),
    [
        (scores(tolerance_mm=5), [], "scored with tolerance_mm 5", 3),
        (scores(name="spleen"), [], r"its classes are ['spleen']", 3),
        (replace(scores(), cases={"x": scores().cases["case_0"]}), [], "no case is in all", 3),
        (scores(), ["--set", "evaluation.tolerance_mm=5"], "scored already", 2),
        (scores(), ["--set", "evaluation.metrics=[hd95_voxels]"], "not all results hold hd95_voxels", 2),
        (scores(), ["--set", "teacher.name=x"], "teacher: unknown key", 2),
        (scores(), ["--data", "x"], "scored already", 2),
    ],
)
def test_what_cannot_be_compared_is_one_line(results, tmp_path, other, sets, message, code):
    done = run_cli("evaluate", "--compare", results[0], written(tmp_path / "b.json", other), *sets, in_process=True)
    assert (done.exit_code, "Traceback" in done.text) == (code, False) and message in done.text


def test_one_result_is_no_comparison_and_a_model_needs_data(results):
    assert "two results or more" in run_cli("evaluate", "--compare", results[0], in_process=True).text
    done = run_cli("evaluate", results[1], in_process=True)
    assert done.exit_code == 2 and "one model and --data" in done.text
