"""The report of a run: one HTML file that needs no network, no script and no other file."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from ..volumes.files import atomic_path
from .text_table import TextTable

# The browser itself refuses scripts and requests.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1280px;
       margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
table { border-collapse: collapse; }
.wide { overflow-x: auto; } .tables { display: flex; flex-wrap: wrap; gap: .4rem 2.5rem; align-items: flex-start; }
.tables > div { max-width: 100%; } h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
th, td { padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { font-weight: 600; } .facts td { overflow-wrap: anywhere; }
.scores th + th, .scores td { text-align: right; font-variant-numeric: tabular-nums; padding: .3rem .5rem; }
.scores thead th + th { min-width: 4.5rem; max-width: 8rem; } .scores tbody th { white-space: nowrap; }
tr.mean td, tr.mean th { border-top: 2px solid #1a1a1a; font-weight: 600; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; margin-top: 1rem; }
.charts svg { width: 400px; max-width: 100%; }
svg text { font-size: 12px; fill: #1a1a1a; } svg .title { font-size: 14px; font-weight: 600; }
svg .halo { paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round; }
svg .grid { stroke: #e5e5e5; } svg .axis { stroke: #1a1a1a; fill: none; }
svg path { fill: none; } svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.note { color: #555; max-width: 46rem; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
figure { margin: 1.2rem 0 1.8rem; } figure img { max-width: 100%; height: auto; } figcaption { color: #444; }
.planes { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; }
.planes div { max-width: 100%; } .planes p { margin: 0; color: #555; font-size: .85rem; }
@media (max-width: 700px) { .picture img { max-width: none; width: 900px; } }
@page { margin: 14mm; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; } .tables, .charts { display: block; } .picture img { max-width: 100%; width: auto; }
  table { font-size: 8.5pt; max-width: 100%; } thead { display: table-header-group; }
  th, td { overflow-wrap: anywhere; } .scores thead th + th { min-width: 0; } .scores tbody th { white-space: normal; }
  h2, h3, figcaption, .note { break-after: avoid; } tr, figure, svg { break-inside: avoid; }
  .charts svg { width: 85mm; margin-right: 4mm; } .planes img { width: calc(var(--pixels) * .17mm); }
  figure img { max-height: 220mm; }
}
</style>
</head>
<body>
<h1>$title</h1>
<div class="wide"><table class="facts">
$facts
</table></div>
$sections
</body>
</html>
""")


@dataclass(frozen=True)
class Section:
    """A heading, a note below it (text), and parts (HTML) of html_table, html_charts and html_picture."""

    title: str
    note: str
    parts: Sequence[str]


def write_report(path: str | Path, *, title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write `path`, an HTML file: its title, the `facts` as rows, then the sections. Raises OutputError."""
    page = _PAGE.substitute(
        title=escape(title),
        facts="\n".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items()),
        sections="\n".join(map(_section, sections)),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    return "\n".join([f"<h2>{escape(section.title)}</h2>", note, *section.parts])


def html_table(table: TextTable, *, swatches: Mapping[str, str] | None = None) -> str:
    """A table under its title, in a box that scrolls where it is wider than the page; the row "mean" is set off.

    `swatches` are the colours of rows by the text in their first column.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "\n".join(_row(row, swatches or {}) for row in table.rows)
    title = escape(table.title)
    return (
        f'<div><h3>{title}</h3><div class="wide" tabindex="0" role="region" aria-label="{title}"><table class="scores">'
        f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div></div>"
    )


def _row(row: Sequence[str], swatches: Mapping[str, str]) -> str:
    name, *cells = row
    swatch = f'<span class="swatch" style="background:{swatches[name]}"></span>' if name in swatches else ""
    mean = ' class="mean"' if name == "mean" else ""
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr{mean}><th scope="row">{swatch}{escape(name)}</th>{values}</tr>'


def html_tables(tables: Sequence[str]) -> str:
    """Tables beside each other, as many as there is room for."""
    return "\n".join(['<div class="tables">', *tables, "</div>"])


def html_charts(charts: Sequence[str]) -> str:
    """Charts beside each other, as many as there is room for."""
    return "\n".join(['<div class="charts">', *charts, "</div>"])


def html_picture(caption: str, png: bytes) -> str:
    """A picture with its caption, which is its alternative text, too; on a phone it scrolls in a box of its own."""
    text = escape(caption)
    box = f'<div class="wide picture" tabindex="0" role="region" aria-label="{text}">{_image(text, png)}</div>'
    return f"<figure>{box}<figcaption>{text}</figcaption></figure>"


def html_planes(caption: str, planes: Mapping[str, bytes]) -> str:
    """Pictures beside each other, as many as there is room for, each under its name, and one caption for all."""
    text = escape(caption)
    parts = [
        f"<div>{_image(f'{text}, {escape(name)}', png)}<p>{escape(name)}</p></div>" for name, png in planes.items()
    ]
    return f'<figure><figcaption>{text}</figcaption><div class="planes">{"".join(parts)}</div></figure>'


def _image(alternative: str, png: bytes) -> str:
    """An <img> of PNG bytes; `alternative` is HTML. Its width in pixels lets the print keep planes on one scale."""
    width = int.from_bytes(png[16:20], "big")  # where the format has it
    data = b64encode(png).decode("ascii")
    return f'<img alt="{alternative}" style="--pixels:{width}" src="data:image/png;base64,{data}">'
