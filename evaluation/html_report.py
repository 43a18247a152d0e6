"""The report of a run: one HTML file that needs no network, no script and no other file."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

from ..volumes.files import atomic_path
from .chart import Points, line_chart
from .overlay import colours
from .scores import ABSENT_RULE

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1120px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { font-weight: 600; } td.score, th.score { text-align: right; font-variant-numeric: tabular-nums; }
tr.mean td, tr.mean th { border-top: 2px solid #1a1a1a; font-weight: 600; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } .charts svg { width: 520px; max-width: 100%; }
svg text { font-size: 12px; fill: #1a1a1a; } svg .title { font-size: 14px; font-weight: 600; }
svg .grid { stroke: #e5e5e5; } svg .axis { stroke: #1a1a1a; fill: none; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.note { color: #555; max-width: 46rem; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; } figcaption { color: #555; }
</style>
</head>
<body>
<h1>$title</h1>
<table>
$facts
</table>
<h2>Dice on the test scans</h2>
<div class="wide"><table>
$scores
</table></div>
<p class="note">Means over whole volumes, empty slices included. $rule</p>
<h2>Training</h2>
<div class="charts">
$charts
</div>
<h2>Test scans</h2>
<p class="note">Seen from the feet: the patient's right is on the left. Colours as in the table above.</p>
$pictures
</body>
</html>
""")


def write_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    curves: Mapping[str, Mapping[str, Points]],
    columns: Mapping[str, Mapping[str, float | None]],
    pictures: Mapping[str, bytes],
) -> None:
    """Write `path`, an HTML file.

    `facts` are the rows on top; `curves` maps chart to series to (step, value) points; `columns` maps model to class
    name (in the order of the class numbers, then optionally "mean") to Dice, None where it was not scored; `pictures`
    maps caption to PNG. Raises OutputError.
    """
    page = _PAGE.substitute(
        title=escape(title),
        facts="\n".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items()),
        scores=_score_rows(columns),
        rule=escape(ABSENT_RULE),
        charts="\n".join(line_chart(name, series, x_label="step") for name, series in curves.items()),
        pictures="\n".join(_figure(caption, png) for caption, png in pictures.items()),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _score_rows(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    names = [name for name in dict.fromkeys(key for column in columns.values() for key in column) if name != "mean"]
    swatches = [f'<span class="swatch" style="background:{colour}"></span>' for colour in colours(len(names))]
    rows = ["".join(["<tr><th>class</th>", *(f'<th class="score">{escape(c)}</th>' for c in columns), "</tr>"])]
    for name, swatch in zip(names, swatches, strict=True):
        rows.append(f"<tr><th>{swatch}{escape(name)}</th>{_cells(columns, name)}</tr>")
    if any("mean" in column for column in columns.values()):
        rows.append(f'<tr class="mean"><th>mean</th>{_cells(columns, "mean")}</tr>')
    return "\n".join(rows)


def _cells(columns: Mapping[str, Mapping[str, float | None]], name: str) -> str:
    values = [column.get(name) for column in columns.values()]
    return "".join(f'<td class="score">{"–" if value is None else f"{value:.3f}"}</td>' for value in values)


def _figure(caption: str, png: bytes) -> str:
    data = b64encode(png).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
