"""Deviations and intervals over cases, tables, and the files that hold results."""

import csv
import json

import numpy as np
import pytest

from samkd.errors import BadInputError, UsageError
from samkd.evaluation.records import CaseScores, ClassScore
from samkd.evaluation.result_files import check_ending, read_result, write_repetitions, write_result
from samkd.evaluation.rules import METRICS, ScoringRules
from samkd.evaluation.score_tables import (
    cases_worst_first,
    comparison_tables,
    difference_table,
    repetition_table,
    score_table,
    unit_table,
)
from samkd.evaluation.scores import case_scores
from samkd.evaluation.statistics import metric_statistics
from samkd.evaluation.text_table import TextTable
from samkd.evaluation.worst_cases import worst_first, worst_of_each_class


def result(dice, rules=ScoringRules()):  # noqa: B008
    """Scores of the classes by name, a value or None for each case."""
    cases = {}
    for number in range(len(next(iter(dice.values())))):
        cases[f"case_{number}"] = [
            ClassScore(
                number=label,
                name=name,
                truth_voxels=int(values[number] is not None),
                predicted_voxels=int(bool(values[number])),
                **dict.fromkeys(METRICS, values[number]),
            )
            for label, (name, values) in enumerate(dice.items(), start=1)
        ]
    return case_scores(cases, rules=rules)


RNG = np.random.default_rng(0)
LIVER = np.round(RNG.uniform(0.6, 0.9, 30), 3).tolist()
SPLEEN = [None if number % 3 == 0 else value / 2 for number, value in enumerate(LIVER)]


def test_deviation_and_interval_of_a_class():
    statistics = metric_statistics(result({"liver": LIVER, "spleen": SPLEEN}), "dice")
    liver = statistics["liver"]
    assert liver.mean == pytest.approx(np.mean(LIVER)) and liver.deviation == pytest.approx(np.std(LIVER, ddof=1))
    half = 1.96 * np.std(LIVER, ddof=1) / np.sqrt(30)
    assert liver.low == pytest.approx(np.mean(LIVER) - half, abs=0.15 * half)
    assert liver.high == pytest.approx(np.mean(LIVER) + half, abs=0.15 * half)
    assert statistics["spleen"].cases == 20
    assert metric_statistics(result({"liver": LIVER, "spleen": SPLEEN}), "dice") == statistics, "seeded"


@pytest.mark.parametrize("average", ["classes", "cases"])
def test_the_mean_row_follows_the_rule_for_means(average):
    scores = result({"liver": LIVER, "spleen": SPLEEN}, ScoringRules(average=average))
    mean = metric_statistics(scores, "dice")["mean"]
    assert mean.cases == 30 and mean.mean == pytest.approx(scores.summary.mean.dice)
    assert mean.low is not None and mean.high is not None and mean.mean is not None
    assert mean.low < mean.mean < mean.high and mean.high - mean.low < 0.2


def test_too_few_cases_have_no_interval():
    statistics = metric_statistics(result({"liver": [0.5], "spleen": [None]}), "dice")
    assert statistics["liver"].mean == 0.5 and statistics["liver"].low is statistics["liver"].deviation is None
    assert statistics["spleen"].cases == 0 and statistics["spleen"].mean is None


def test_a_table_has_the_metrics_of_the_config_and_counts_misses():
    scores = result({"liver": [0.5, 0.0], "spleen": [0.25, None]}, ScoringRules(metrics=("dice", "hd95_mm")))
    table = score_table(scores, title="t")
    assert table.columns == ("class", "Dice", "HD95, mm", "cases", "missed", "invented")
    assert table.rows[0] == ("liver", "0.250 ± 0.354", "0.25 ± 0.35", "2", "1", "0")
    assert table.rows[1] == ("spleen", "0.250", "0.25", "1", "0", "0")
    assert table.rows[2][0] == "mean" and table.rows[2][3:] == ("2", "1", "0")
    assert unit_table(scores, title="t").rows == (("case_0", "0.375", "0.38"), ("case_1", "0.000", "0.00"))


def test_repetitions_are_their_mean_and_their_deviation(tmp_path):
    draws = [
        result({"liver": [0.5, 0.7], "spleen": [None, None]}),
        result({"liver": [0.7, 0.9], "spleen": [None, None]}),
    ]
    table = repetition_table(draws, title="t")
    assert table.rows[0] == ("liver", "0.700 ± 0.141", "2") and table.rows[1] == ("spleen", "-", "2")
    write_repetitions(tmp_path / "r.json", draws, table, more={"prompts_from_truth": "points:3"})
    values = json.loads((tmp_path / "r.json").read_text())
    assert len(values["repetitions"]) == 2 and values["prompts_from_truth"] == "points:3"
    write_repetitions(tmp_path / "r.csv", draws, table, more={})
    assert (tmp_path / "r.csv").read_text().splitlines()[1] == "liver,0.700 ± 0.141,2"


def test_differences_of_every_two_results():
    better = result({"liver": [value + 0.05 for value in LIVER]})
    table = difference_table({"a": result({"liver": LIVER}), "b": better, "c": better}, "dice")
    assert [row[0] for row in table.rows] == ["b - a"] * 2 + ["c - a"] * 2 + ["c - b"] * 2
    assert table.rows[0][1:4] == ("liver", "+0.0500", "+0.0500 to +0.0500")
    assert float(table.rows[0][4]) < 1e-5 and table.rows[0][5] == "30" and table.rows[-1][4] == "1"


def test_results_are_written_in_four_formats(tmp_path):
    scores = result({"liver": LIVER, "left_kidney": SPLEEN})
    for ending in ("json", "csv", "md", "tex"):
        write_result(tmp_path / f"r.{ending}", scores, title="50 % of x_1", more={"prompts_from_truth": None})
    assert read_result(tmp_path / "r.json") == scores
    values = json.loads((tmp_path / "r.json").read_text())
    assert values["statistics"]["dice"]["liver"]["cases"] == 30 and values["prompts_from_truth"] is None
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert len(rows) == 60 and float(rows[0]["dice"]) == LIVER[0] and rows[1]["dice"] == ""
    markdown = (tmp_path / "r.md").read_text()
    assert "| class | Dice | 95 % interval | cases | missed | invented |" in markdown and "| liver |" in markdown
    tex = (tmp_path / "r.tex").read_text()
    assert r"left\_kidney & " in tex and r"$\pm$" in tex and tex.count(r"\\") == 4
    assert r"95 \% interval" in tex and r"\begin{tabular}{lrrrrr}" in tex


def test_texts_are_escaped():
    table = TextTable("t", ("a|b",), ((r"x_1 & {y} \ ~",),))
    assert r"a\|b" in table.markdown()
    assert r"x\_1 \& \{y\} \textbackslash{} \textasciitilde{}" in table.latex()


def test_other_endings_and_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.json, \.csv, \.md or \.tex"):
        check_ending(tmp_path / "scores.xlsx")
    (tmp_path / "x.json").write_text('{"summary": 1}')
    with pytest.raises(BadInputError, match="holds no scores"):
        read_result(tmp_path / "x.json")


def test_a_comparison_shows_distances_beside_dice_and_counts_what_was_missed():
    one = result({"liver": [0.9, 0.7], "spleen": [0.5, 0.0]})
    two = result({"liver": [0.8, 0.6], "spleen": [None, None]}, ScoringRules(metrics=("iou", "dice")))
    tables = comparison_tables({"two": two, "one": one}, title="test scans")
    titles = [table.title.removesuffix(", test scans") for table in tables]
    assert titles == ["Dice", "HD95, mm", "NSD", "IoU", "Cases in which a class was missed"]
    assert tables[0].rows == (("liver", "0.700", "0.800"), ("spleen", "-", "0.250"), ("mean", "0.700", "0.525"))
    assert tables[-1].rows == (("liver", "0 of 2", "0 of 2"), ("spleen", "0 of 0", "1 of 2"))


def test_what_an_older_release_did_not_measure_is_said_so_and_what_it_did_not_count_is_counted():
    values = result({"liver": [0.9, 0.0], "spleen": [None, None]}).to_json()
    for row in [*values["summary"]["per_class"].values(), values["summary"]["mean"]]:
        for name in ("hd95_mm", "nsd", "missed", "invented"):
            row.pop(name, None)
    for rows in values["cases"].values():
        for row in rows:
            del row["hd95_mm"], row["nsd"]
    old = CaseScores.from_json(values)
    tables = comparison_tables({"old": old}, title="test scans")
    assert tables[0].rows == (("liver", "0.450"), ("spleen", "-"), ("mean", "0.450"))
    assert tables[1].rows == tables[2].rows == (("liver", "not measured"), ("spleen", "-"), ("mean", "not measured"))
    assert tables[3].rows == (("liver", "1 of 2"), ("spleen", "0 of 0"))


def test_the_worst_come_first():
    scores = result({"liver": [0.9, 0.5, 0.6], "spleen": [0.1, 0.8, None], "kidney": [None, None, None]})
    assert worst_first(scores) == ["case_0", "case_2", "case_1"]
    assert [(case, row.name) for case, row in worst_of_each_class(scores)] == [
        ("case_0", "spleen"),
        ("case_1", "liver"),
    ]
    table = cases_worst_first({"a": result({"liver": [0.9, 0.8]}), "b": scores}, by="b", title="")
    assert table.rows == (("case_0", "0.900", "0.500"), ("case_2", "-", "0.600"), ("case_1", "0.800", "0.650"))
