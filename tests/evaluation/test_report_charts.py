"""The numbers behind the report's charts, and where they stand in them."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from samkd.evaluation.bland_altman import Agreement, agreement, agreement_table, bland_altman_plot, volume_pairs
from samkd.evaluation.box_plot import BoxStatistics, CaseValue, box_plot, case_values
from samkd.evaluation.lambda_plot import lambda_plot
from samkd.evaluation.package_plot import MeasuredPackage, package_plot, package_table
from samkd.evaluation.rules import ScoringRules
from samkd.evaluation.scores import case_scores, score_case
from samkd.evaluation.statistics import MetricStatistics

LABELS = {0: "background", 1: "liver", 2: "gall <bladder>"}


def label_map(liver: int, gallbladder: int) -> np.ndarray:
    """A grid [4, 10, 10] with so many voxels of each class, from its two ends."""
    labels = np.zeros(400, np.uint8)
    labels[:liver] = 1
    labels[400 - gallbladder :] = 2
    return labels.reshape(4, 10, 10)


@pytest.fixture(scope="module")
def scores():
    """Three cases: the liver is found in all, the gallbladder missed in one and absent from another."""
    pairs = {"a": ((100, 10), (100, 20)), "b": ((60, 0), (100, 20)), "c": ((120, 0), (100, 0))}
    return case_scores(
        {
            case: score_case(label_map(*predicted), label_map(*true), spacing=(5, 2, 1), labels=LABELS)
            for case, (predicted, true) in pairs.items()
        }
    )


def svg(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


@pytest.mark.parametrize("values", [[0.3], [0.2, 0.9], [0.1, 0.7, 0.72, 0.75, 0.8, 0.81, 0.97], list(range(20))])
def test_quartiles_are_numpys_and_whiskers_end_at_values_within_reach(values):
    box = BoxStatistics.of(values)
    assert (box.first, box.median, box.third) == tuple(np.quantile(values, (0.25, 0.5, 0.75)))
    reach = 1.5 * (box.third - box.first)
    assert box.low in values and box.high in values
    assert all(value < box.first - reach for value in values if value < box.low)
    assert all(value > box.third + reach for value in values if value > box.high)


def test_an_outlier_lies_beyond_the_whisker():
    assert BoxStatistics.of([0.1, 0.7, 0.72, 0.75, 0.8, 0.81, 0.97]).low == 0.7


def test_a_box_plot_has_a_row_per_model_and_a_mark_per_case(scores):
    values = case_values(scores, "gall <bladder>")
    assert values == [CaseValue("a", 20 / 30, False), CaseValue("b", 0.0, True)]
    liver = {"teacher": [CaseValue("x", 0.5), CaseValue("y", 1.0)], "nobody": [], "package": values}
    chart = svg(box_plot("liver", liver, x_label="Dice"))
    texts = [node.text for node in chart.iter("text")]
    assert "teacher: median 0.750, 2 cases" in texts and "package: median 0.333, 2 cases, 1 missed" in texts
    assert len(list(chart.iter("rect"))) == 2, "no row for a model that was not scored"
    marks = [node.findtext("title") for node in chart.iter() if node.find("title") is not None]
    assert marks == ["x: 0.500", "y: 1.000", "a: 0.667", "b: 0.000, missed"]
    low, high = (float(node.attrib["cx"]) for node in list(chart.iter("circle"))[:2])
    box = next(iter(chart.iter("rect"))).attrib
    left, width = float(box["x"]), float(box["width"])
    assert left == pytest.approx(low + (high - low) / 4, abs=0.11) and width == pytest.approx((high - low) / 2, abs=0.2)
    assert "median 0.750, 2 cases, middle half 0.625 to 0.875" in chart.attrib["aria-label"]


def test_a_class_that_counts_as_perfect_where_it_is_absent_is_a_point(scores):
    ruled = case_scores(scores.cases, rules=ScoringRules(both_absent="perfect"))
    assert [each.value for each in case_values(ruled, "gall <bladder>")] == [pytest.approx(20 / 30), 0.0, 1.0]


def test_volumes_in_ml_of_the_cases_that_hold_the_class(scores):
    pairs = volume_pairs(scores, {"a": 0.01, "b": 0.02, "c": 0.01})
    assert pairs == {
        "liver": {"a": (1.0, 1.0), "b": (1.2, 2.0), "c": (1.2, 1.0)},
        "gall <bladder>": {"a": (0.1, 0.2), "b": (0.0, 0.4)},
    }
    assert volume_pairs(scores, {}) == {}, "pictures have no volume"


def test_the_limits_of_agreement_of_an_example_by_hand():
    """Differences +2, -1, +5: mean 2, squared deviations 0 + 9 + 9, SD = sqrt(18 / 2) = 3, limits 2 -+ 5.88."""
    result = agreement({"a": (12, 10), "b": (19, 20), "c": (35, 30)})
    assert (result.cases, result.difference, result.deviation) == (3, 2.0, 3.0)
    assert (result.low, result.high) == (pytest.approx(-3.88), pytest.approx(7.88))
    assert agreement({"a": (12, 10)}) == Agreement(cases=1, difference=2.0)
    assert agreement({}) == Agreement(cases=0)


def test_the_limits_stand_in_table_and_plot():
    pairs = {"case <1>": (12.0, 10.0), "b": (19.0, 20.0), "c": (35.0, 30.0)}
    table = agreement_table({"liver": pairs, "spleen": {"a": (1.0, 2.0)}}, title="Volume")
    assert table.rows == (
        ("liver", "20.0", "+2.0", "3.0", "-3.9 to +7.9", "3"),
        ("spleen", "2.0", "-1.0", "-", "-", "1"),
    )
    chart = svg(bland_altman_plot("liver", pairs))
    texts = [node.text for node in chart.iter("text")]
    assert {"mean +2.0", "-1.96 SD -3.9", "+1.96 SD +7.9"} <= set(texts)
    points = [(float(node.attrib["cx"]), float(node.attrib["cy"])) for node in chart.iter("circle")]
    assert points[0][0] < points[1][0] < points[2][0] and points[2][1] < points[0][1] < points[1][1]
    scale = (points[1][1] - points[0][1]) / 3  # user units for a ml of difference
    assert points[0][1] - points[2][1] == pytest.approx(3 * scale, abs=0.2)
    heights = [numbers(node.attrib["d"])[1] for node in chart.iter("path") if "stroke-width" in node.attrib]
    assert heights[0] == points[0][1], "the mean is where the case with that difference lies"
    assert heights[1] - heights[2] == pytest.approx(2 * 5.88 * scale, abs=0.3)
    assert "case <1>: +2.00 ml" in [node.findtext("title") for node in chart.iter("circle")]
    assert chart.attrib["aria-label"].endswith("3 cases: mean +2.0 ml, -1.96 SD -3.9 ml, +1.96 SD +7.9 ml")


def statistics(mean: float, low: float | None = None, high: float | None = None) -> MetricStatistics:
    return MetricStatistics(cases=4, mean=mean, low=low, high=high)


def test_the_sweep_has_a_point_and_a_bar_per_lambda_and_the_control_as_a_line():
    students = {0.8: statistics(0.6), 0.2: statistics(0.8, 0.7, 0.9), 1.0: MetricStatistics(cases=0)}
    chart = svg(lambda_plot("Sweep", students, statistics(0.7, 0.65, 0.75)))
    points = [(float(node.attrib["cx"]), float(node.attrib["cy"])) for node in chart.iter("circle")]
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] < points[1][1], "ascending lambda"
    assert points[0][0] - 58 == pytest.approx(0.2 * 320, abs=0.1)
    per_dice = (points[1][1] - points[0][1]) / 0.2
    paths = [node.attrib["d"] for node in chart.iter("path") if "stroke-width" in node.attrib]
    assert numbers(paths[0])[1] == pytest.approx(points[0][1] + 0.1 * per_dice, abs=0.2), "the control, dashed"
    bar = numbers(paths[1])
    assert bar[1] - bar[2] == pytest.approx(0.2 * per_dice, abs=0.2)
    assert (
        "control 0.700 (0.650 to 0.750); lambda 0.2: 0.800 (0.700 to 0.900); lambda 0.8: 0.600"
        in (chart.attrib["aria-label"])
    )


def test_discs_of_packages_are_as_large_as_the_packages():
    packages = [
        MeasuredPackage(name="openvino <int8>", seconds=0.2, dice=0.8, megabytes=4.0),
        MeasuredPackage(name="onnx fp32", seconds=0.8, dice=0.9, megabytes=16.0),
    ]
    chart = svg(package_plot("Packages", packages))
    discs = [{key: float(node.attrib[key]) for key in ("cx", "cy", "r")} for node in chart.iter("circle")]
    assert discs[1]["r"] ** 2 == pytest.approx(4 * discs[0]["r"] ** 2, rel=0.02)
    assert discs[1]["cx"] - 58 == pytest.approx(4 * (discs[0]["cx"] - 58), abs=0.3) and discs[1]["cy"] < discs[0]["cy"]
    assert package_table(packages, title="").rows == (
        ("1", "openvino <int8>", "0.20", "0.800", "4.0"),
        ("2", "onnx fp32", "0.80", "0.900", "16.0"),
    )
    assert "openvino <int8>: 0.20 s, Dice 0.800, 4.0 MB" in chart.attrib["aria-label"]


def test_packages_that_are_as_good_stand_on_one_height():
    packages = [MeasuredPackage(name=f"{dice}", seconds=1, dice=dice, megabytes=1) for dice in (0.845, 0.8453)]
    heights = [float(node.attrib["cy"]) for node in svg(package_plot("Packages", packages)).iter("circle")]
    assert 0 < heights[0] - heights[1] < 3


@pytest.mark.parametrize(
    "chart",
    [
        box_plot("liver", {"teacher": []}, x_label="Dice"),
        bland_altman_plot("liver", {}),
        lambda_plot("liver", {}, None),
        package_plot("liver", []),
    ],
)
def test_without_data_a_chart_says_so(chart):
    assert chart == '<p class="note">liver: nothing was recorded.</p>'
