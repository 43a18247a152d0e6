import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from samkd.errors import OutputError
from samkd.evaluation.chart import _ticks, line_chart
from samkd.evaluation.html_report import write_report
from samkd.evaluation.overlay import comparison_png

COLUMNS = {
    "teacher": {"liver": 0.9, "gall <bladder>": None, "mean": 0.9},
    "student without teacher (lambda = 1)": {"liver": 0.8, "gall <bladder>": 0.25, "mean": 0.525},
    "package": {"liver": 0.8756, "gall <bladder>": 0.5, "mean": 0.6878},
}
CURVES = {
    "training loss": {"teacher": [(10, 1.5), (20, 1.1), (30, 0.7)], "student": [(10, 1.9), (20, float("nan"))]},
    "validation Dice": {"teacher": [(30, 0.4)]},
}


@pytest.fixture
def page(tmp_path):
    png = comparison_png(np.zeros((3, 8, 8)), {"truth": np.ones((3, 8, 8), np.uint8)}, spacing=(1, 1, 1))
    write_report(
        tmp_path / "report.html",
        title="samkd: phantom & <friends>",
        facts={"package": "12 MB, int8", "device <script>": "1.2 s & 300 MB"},
        curves=CURVES,
        columns=COLUMNS,
        pictures={'case "one"': png},
    )
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_the_tables(page):
    rows = Reader(page).rows
    assert rows == [
        ["package", "12 MB, int8"],
        ["device <script>", "1.2 s & 300 MB"],
        ["class", "teacher", "student without teacher (lambda = 1)", "package"],
        ["liver", "0.900", "0.800", "0.876"],
        ["gall <bladder>", "–", "0.250", "0.500"],
        ["mean", "0.900", "0.525", "0.688"],
    ]
    assert "absent from both truth and prediction" in page


def test_the_page_is_whole_offline_and_escaped(page):
    reader = Reader(page)
    assert reader.open == [] and "script" not in reader.tags and "link" not in reader.tags
    assert not re.search(r"https?://|<script|src=(?!\"data:image/png;base64,)", page)
    assert "phantom &amp; &lt;friends&gt;" in page and "case &quot;one&quot;" in page
    assert "nan" not in page.split("base64")[0]


def test_a_chart_has_axes_ticks_legend_and_its_points_in_place():
    svg = ElementTree.fromstring(line_chart("loss", CURVES["training loss"], x_label="step"))
    texts = [node.text for node in svg.iter("text")]
    assert {"loss", "step", "teacher", "student"} <= set(texts)
    assert {"10", "30"} <= set(texts)
    lines = [
        [tuple(map(float, point.split(","))) for point in node.attrib["points"].split()]
        for node in svg.iter("polyline")
    ]
    assert [len(line) for line in lines] == [3, 1], "a step whose loss is nan has no point"
    (x0, y0), (x1, y1), (x2, y2) = lines[0]
    assert x0 < x1 < x2 and y0 < y1 < y2, "steps to the right, a falling loss downwards"
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.3)
    assert x0 == pytest.approx(58) and x2 == pytest.approx(520 - 14)


def test_a_chart_without_points_says_so():
    assert "nothing was recorded" in line_chart("loss", {"teacher": []}, x_label="step")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((10, 300), [0, 100, 200, 300]),
        ((0.4,), [0, 0.1, 0.2, 0.3, 0.4]),
        ((0, 0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, expected):
    ticks = _ticks(values)
    assert ticks == expected


def test_a_report_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "r.html", title="", facts={}, curves={}, columns={}, pictures={})
