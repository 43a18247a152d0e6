"""Results on disk: what `samkd evaluate -o` writes, by the end of the file's name, and what `--compare` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import BadInputError, UsageError
from ..volumes.files import atomic_path, write_json
from ..volumes.json_files import read_json
from .records import CaseScores
from .score_tables import case_table, score_table
from .statistics import metric_statistics
from .text_table import TextTable

_ENDINGS = ("", ".json", ".csv", ".md", ".tex")


def check_ending(path: Path) -> None:
    """Raises UsageError for a name that ends in no format of results."""
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{path}: results are written as .json, .csv, .md or .tex; choose one of these endings")


def write_result(path: Path, scores: CaseScores, *, title: str, more: Mapping[str, Any]) -> None:
    """Write a result: as .csv every score of every case, as .md and .tex the table of means with their intervals.

    As .json, or without an ending, it is all of that and what `more` says. Raises UsageError and OutputError.
    """
    ending = path.suffix.lower()
    if ending == ".csv":
        write_tables(path, [case_table(scores)])
    elif ending in (".md", ".tex"):
        write_tables(path, [score_table(scores, title=title, intervals=True)])
    else:
        check_ending(path)
        statistics = {
            metric: {name: asdict(row) for name, row in metric_statistics(scores, metric).items()}
            for metric in scores.rules.metrics
        }
        write_json(path, scores.to_json() | {"statistics": statistics} | dict(more))


def write_repetitions(
    path: Path, repetitions: Sequence[CaseScores], table: TextTable, *, more: Mapping[str, Any]
) -> None:
    """Write scores of several draws: as JSON every one of them and what `more` says, else their `table`.

    Raises UsageError and OutputError.
    """
    if path.suffix.lower() in ("", ".json"):
        write_json(path, {"repetitions": [scores.to_json() for scores in repetitions], **more})
    else:
        write_tables(path, [table])


def write_tables(path: Path, tables: Sequence[TextTable]) -> None:
    """Write tables one below the other, as .json, .csv, .md or .tex. Raises UsageError and OutputError."""
    check_ending(path)
    ending = path.suffix.lower()
    if ending in ("", ".json"):
        values = [
            {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
            for table in tables
        ]
        write_json(path, values)
    else:
        form = {".csv": TextTable.csv, ".md": TextTable.markdown, ".tex": TextTable.latex}[ending]
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(map(form, tables)), encoding="utf-8")


def read_result(path: Path) -> CaseScores:
    """The scores in a file that write_result wrote as JSON. Raises BadInputError for any other."""
    try:
        return CaseScores.from_json(read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{path}: holds no scores ({type(error).__name__} {error}); give a JSON file of `samkd evaluate -o`"
        ) from None
