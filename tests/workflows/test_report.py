"""The report of a real, tiny experiment: what it says, and how a browser shows it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, browser
from helpers.command_line import Outcome, run_cli
from helpers.packages import reseal
from helpers.runs import TINY, run_verb, runs_of

pytestmark = pytest.mark.slow
TEACHER = ["teacher.plan.size=[null,32,32]", "teacher.plan.patch=[5,32,32]", "teacher.training.steps=2"]
SETS = [*TINY, *TEACHER, "deployment.precision=fp32", "deployment.max_drop=1"]


def _without_distances(value):
    """JSON values without HD95 and NSD at any depth, as a release that did not measure them would have left them."""
    if isinstance(value, list):
        return [_without_distances(each) for each in value]
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("hd95_mm", "nsd", "asd_mm")}
        return {key: _without_distances(each) for key, each in kept.items()}
    return value


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A teacher of an older release, its students at two lambdas with their control, and two packages of one."""
    pytest.importorskip("openvino")
    runs = tmp_path_factory.mktemp("report") / "runs"
    for verb in (["teach"], ["distill", "--lambda", "0.2,0.8"]):
        done = run_verb(*verb, runs=runs, sets=SETS)
        assert done.exit_code == 0, done.output
    assert all(title in done.text for title in ("Dice, test scans", "HD95, mm, test scans", "NSD, test scans"))
    assert "Cases in which a class was missed" in done.text
    (teacher,) = runs_of(runs, "teach")
    teacher.write_json("metrics.json", _without_distances(json.loads((teacher.path / "metrics.json").read_text())))
    for name in ("one", "two"):
        done = run_verb("deploy", runs_of(runs, "distill")[0].path, "--out", runs / "packages" / name, runs=runs,
                        sets=SETS)  # fmt: skip
        assert done.exit_code == 0, done.output
    return runs


@pytest.fixture(scope="module")
def printed(runs) -> Outcome:
    """What `samkd report` of both packages printed; report.html lies among the runs."""
    packages = [runs / "packages" / name for name in ("one", "two")]
    done = run_cli("report", *packages, "--runs", runs, in_process=True)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def html(runs, printed) -> str:
    return (runs / "report.html").read_text(encoding="utf-8")


def _table(html: str, title: str) -> list[list[str]]:
    """The cells of the table of that title, row by row."""
    (table,) = re.findall(rf"<h3>{re.escape(title)}</h3>.*?</table>", html, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in rows]


def test_scores_stand_beside_each_other_and_what_an_old_run_lacks_is_not_measured(html, printed):
    columns = ["class", "teacher", "student without teacher", "student with teacher", "one", "two"]
    for title in ("Dice, test scans", "HD95, mm, test scans", "NSD, test scans"):
        rows = _table(html, title)
        assert rows[0] == columns and rows[-1][0] == "mean" and len(rows) == 8
        assert all(re.fullmatch(r"\d+\.\d+", cell) for cell in rows[-1][2:])
        assert rows[-1][4] == rows[-1][5], "one package packed twice"
    assert re.fullmatch(r"\d\.\d{3}", _table(html, "Dice, test scans")[-1][1])
    assert _table(html, "HD95, mm, test scans")[-1][1] == _table(html, "NSD, test scans")[1][1] == "not measured"
    assert "not measured" in printed.stdout and printed.stdout.count("not measured") == 14
    missed = _table(html, "Cases in which a class was missed, test scans")
    assert all(re.fullmatch(r"[0-2] of [0-2](, \d invented)?", cell) for row in missed[1:] for cell in row[1:])


def test_the_worst_case_comes_first(html):
    rows = _table(html, "Mean Dice of every case, the worst of the one first")
    dice = [float(row[-2]) for row in rows[1:]]
    assert len(dice) == 2 and dice == sorted(dice)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions[-2:] == [row[0] for row in rows[1:]], "whole scans, the worst first"
    assert len(captions) == 6 + 2 and len(re.findall(r'alt="[^"]*, coronal"', html)) == 6


def test_every_part_of_the_report_is_there(html):
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == [
        *("Scores on the test scans", "Dice of every case", "The worst case of each class", "Volumes"),
        *("The sweep of lambda", "Packages", "Training", "Test scans, the worst first"),
    ]
    labels = re.findall(r'<svg [^>]*aria-label="([^"]*)"', html)
    starts = (
        "Box plot, Dice of",
        "Bland-Altman plot of the volume of",
        "Mean Dice over lambda",
        "Packages",
        "training",
    )
    assert [sum(label.startswith(start) for label in labels) for start in starts] == [6, 6, 1, 1, 1]
    (sweep,) = (label for label in labels if label.startswith("Mean Dice over lambda"))
    assert "control 0." in sweep and "lambda 0.2: 0." in sweep and "lambda 0.8: 0." in sweep
    packages = _table(html, "Packages on the test scans")
    assert [row[:2] for row in packages[1:]] == [["1", "one"], ["2", "two"]]
    assert all(float(cell) > 0 for row in packages[1:] for cell in row[2:])


def test_calibration_is_measured_of_student_and_package_when_it_is_asked_for(runs, html, tmp_path):
    assert "<h2>Calibration</h2>" not in html
    package = runs / "packages" / "one"
    done = run_cli("report", package, "--runs", runs, "-o", tmp_path / "r.html", "--calibration", in_process=True)
    assert done.exit_code == 0, done.output
    rows = _table((tmp_path / "r.html").read_text(), "Expected calibration error")
    assert [row[0] for row in rows[1:]] == ["student with teacher", "package"]
    student, packed = ([float(cell) for cell in row[1:]] for row in rows[1:])
    assert 0 <= student[0] <= 1 and 0.05 <= student[1] <= 20 and student == pytest.approx(packed, abs=0.02)


def test_packages_of_another_task_are_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "packages" / "one", other)
    values = json.loads((other / "manifest.json").read_text().replace('"liver"', '"pancreas"'))
    reseal(other, **{key: value for key, value in values.items() if key not in ("files", "digest")})
    done = run_cli("report", runs / "packages" / "one", other, "--runs", runs, "-o", tmp_path / "r.html",
                   in_process=True)  # fmt: skip
    assert done.exit_code == 3 and "compare packages of one task" in done.text
    assert not (tmp_path / "r.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_whole_at_every_width_without_a_request_or_a_complaint(runs, printed, tmp_path):
    """Wide tables scroll in their own boxes; the page itself never does, on a screen or on a phone."""
    with browser(tmp_path / "profile") as page:
        for width in (1280, 390):
            page.open(runs / "report.html", width=width)
            assert page.evaluate("innerWidth") == width
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            pictures = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
            assert len(pictures) == 6 * 3 + 2 and all(pictures)
            charts = page.evaluate("[...document.querySelectorAll('svg')].map(each => each.getBBox().width)")
            assert len(charts) == 16 and all(0 < chart <= 400 for chart in charts)
            clipped = page.evaluate(
                "[...document.querySelectorAll('svg')].filter(each => { const box = each.getBBox(), view = "
                "each.viewBox.baseVal; return box.x < 0 || box.y < 0 || box.x + box.width > view.width || "
                "box.y + box.height > view.height }).map(each => each.getAttribute('aria-label'))"
            )
            assert clipped == [], "a text of a chart is cut off"
            outside = [url for url in page.requests() if not url.startswith(("file:", "data:"))]
            assert outside == [] and page.complaints() == []
        assert page.evaluate("[...document.querySelectorAll('.wide')].some(box => box.scrollWidth > box.clientWidth)")
        page.pdf(tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_browser_helper_sees_requests_errors_and_missing_pictures(tmp_path):
    """The test above would pass on any page if it did not."""
    page_file = tmp_path / "page.html"
    page_file.write_text(
        "<img src='nowhere.png'><div style='width:2000px'>wide</div><script>console.error('x')</script>"
    )
    with browser(tmp_path / "profile") as page:
        page.open(page_file, width=390)
        assert any(url.endswith("nowhere.png") for url in page.requests())
        assert len(page.complaints()) >= 2
        assert page.evaluate("document.documentElement.scrollWidth") >= 2000
        assert page.evaluate("document.images[0].naturalWidth") == 0
