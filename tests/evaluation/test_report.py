import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from samkd.errors import OutputError
from samkd.evaluation.axes import ticks
from samkd.evaluation.chart import line_chart
from samkd.evaluation.html_report import Section, html_charts, html_picture, html_planes, html_table, write_report
from samkd.evaluation.overlay import comparison_png
from samkd.evaluation.text_table import TextTable

TABLE = TextTable(
    "Dice <test>",
    ("class", "teacher", "student without teacher (lambda = 1)", "package"),
    (
        ("liver", "0.900", "0.800", "0.876"),
        ("gall <bladder>", "-", "0.250", "not measured"),
        ("mean", "0.900", "0.525", "0.688"),
    ),
)
CURVES = {"teacher": [(10, 1.5), (20, 1.1), (30, 0.7)], "student <b>": [(10, 1.9), (20, float("nan"))]}


@pytest.fixture
def page(tmp_path):
    png = comparison_png(np.zeros((3, 8, 8)), {"truth": np.ones((3, 8, 8), np.uint8)}, spacing=(1, 1, 1))
    write_report(
        tmp_path / "report.html",
        title="samkd: phantom & <friends>",
        facts={"package": "12 MB, int8", "device <script>": "1.2 s & 300 MB"},
        sections=[
            Section("Scores & <more>", "A note, 3 < 4.", [html_table(TABLE, swatches={"liver": "#e69f00"})]),
            Section("Training", "", [html_charts([line_chart("loss", CURVES, x_label="step")])]),
            Section("Scans", "", [html_picture('case "one"', png), html_planes("a <case>", {"axial": png})]),
        ],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.tags, self.images = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_the_tables(page):
    facts = [["package", "12 MB, int8"], ["device <script>", "1.2 s & 300 MB"]]
    assert Reader(page).rows == [*facts, list(TABLE.columns), *map(list, TABLE.rows)]


def test_the_page_is_whole_offline_and_escaped(page):
    reader = Reader(page)
    assert reader.open == [] and "script" not in reader.tags and "link" not in reader.tags
    assert not re.search(r"https?://|<script|src=(?!\"data:image/png;base64,)", page)
    assert "phantom &amp; &lt;friends&gt;" in page and "case &quot;one&quot;" in page
    assert "Scores &amp; &lt;more&gt;" in page and "3 &lt; 4" in page and "student &lt;b&gt;" in page
    assert "nan" not in page.split("base64")[0]


def test_every_picture_and_chart_says_in_words_what_it_shows(page):
    assert [image["alt"] for image in Reader(page).images] == ['case "one"', "a <case>, axial"]
    (label,) = re.findall(r'<svg [^>]*aria-label="([^"]*)"', page)
    assert label == "loss over step: teacher ends at 0.7; student &lt;b&gt; ends at 1.9"


def test_a_chart_has_axes_ticks_legend_and_its_points_in_place():
    svg = ElementTree.fromstring(line_chart("loss", CURVES, x_label="step"))
    texts = [node.text for node in svg.iter("text")]
    assert {"loss", "step", "teacher", "student <b>"} <= set(texts)
    assert {"10", "30"} <= set(texts)
    lines = [
        [tuple(map(float, point.split(","))) for point in node.attrib["points"].split()]
        for node in svg.iter("polyline")
    ]
    assert [len(line) for line in lines] == [3, 1], "a step whose loss is nan has no point"
    (x0, y0), (x1, y1), (x2, y2) = lines[0]
    assert x0 < x1 < x2 and y0 < y1 < y2, "steps to the right, a falling loss downwards"
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.3)
    assert x0 == pytest.approx(58) and x2 == pytest.approx(400 - 22)


def test_a_long_legend_is_wrapped_inside_the_chart():
    names = [f"student {number} with a long name" for number in range(5)]
    svg = ElementTree.fromstring(line_chart("loss", {name: [(0, 0), (1, 1)] for name in names}, x_label="step"))
    places = {node.text: (float(node.attrib["x"]), float(node.attrib["y"])) for node in svg.iter("text")}
    assert len({places[name] for name in names}) == 5
    assert all(places[name][0] + 6.4 * len(name) <= 400 for name in names)
    assert max(places[name][1] for name in names) <= float(svg.attrib["viewBox"].split()[3])


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
    assert ticks(values) == expected


def test_a_report_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "r.html", title="", facts={}, sections=[])
