"""A table of texts, and how it is written for a web page, a paper or a spreadsheet."""

import csv
import io
from dataclasses import dataclass

_LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "±": r"$\pm$",
    "–": "--",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class TextTable:
    """A title, the names of the columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A table in Markdown, the first column on the left and all numbers on the right."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [self.columns, rule, *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        return f"{self.title}\n\n{body}\n"

    def latex(self) -> str:
        """A tabular with the rules of the package booktabs."""
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in (self.columns, *self.rows)]
        note = f"% {self.title}; needs \\usepackage{{booktabs}}"
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}"
        parts = [note, begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
        return "\n".join(parts) + "\n"

    def csv(self) -> str:
        """The names of the columns and the rows, separated by commas."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
