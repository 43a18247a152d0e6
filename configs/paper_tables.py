"""The result tables of the four papers as data: what each prints, and what samkd needs to run each of its rows."""

import difflib
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field

from ..errors import UsageError
from .evaluation_schema import Metric
from .plan_schema import Strict
from .yaml_files import parse_yaml

_FOLDER = resources.files(__name__.rpartition(".")[0]) / "papers"
PAPERS = ("masam", "medsa", "sam3d", "autosam")  # as the command line names them

Printed = bool | int | float | str | None
Stage = Literal["teach", "control", "distill"]


class Settings(Strict):
    """What a table, a task, a row or a column says of a run; the later of these add to it or take its place."""

    overrides: Annotated[tuple[str, ...], Field(alias="set")] = ()
    """Overrides of the config, as `--set` writes them; all of them hold."""
    config: str | None = None
    """The config, in place of the task's."""
    stage: Stage | None = None
    """A teacher, a student alone (`control`), or a student and the teacher it learns from; default: a teacher."""
    lambda_: Annotated[float | None, Field(alias="lambda")] = None
    """The lambda of a student that is taught."""
    weights: bool | None = None
    """Whether a teacher starts from published weights; default: it does."""
    shown: str | None = None
    """What is shown of the truth when masks are scored, as `samkd evaluate --prompt-from-truth` writes it."""
    repeat: int | None = None
    """How many draws of `shown` are averaged; default: 1."""
    not_ours: str | None = None
    """Why samkd does not run it: a name among the shared reasons."""
    differs: tuple[str, ...] = ()
    """What is done differently from the paper, besides what a run's own settings show."""

    def then(self, later: "Settings") -> "Settings":
        """These settings with `later` ones added."""
        values = {name: getattr(self, name) for name in Settings.model_fields}
        for name, value in values.items():
            theirs = getattr(later, name)
            values[name] = value + theirs if isinstance(value, tuple) else value if theirs is None else theirs
        return Settings.model_construct(**values)


class Task(Settings):
    """One dataset of a table with its config."""

    data: str
    """The dataset's name among the shared ones."""
    start: str | None = None
    """The task of this table whose run it starts from."""
    score_config: str | None = None
    """The config whose classes the masks are scored in, where it is another one."""
    score_data: str | None = None
    """The dataset that is scored, where it is another one."""


class Column(Settings):
    """What stands in a column: a score, a count of parameters, a mean of other columns, or something not measured."""

    task: str | None = None
    """The task whose run is scored."""
    metric: Metric | None = None
    """The score."""
    class_name: Annotated[str | None, Field(alias="class")] = None
    """The class whose score it is; null is the mean over the classes."""
    cases: str | None = None
    """A regular expression: the score is the mean over the test cases with a name in which it is found."""
    mean_of: tuple[str, ...] = ()
    """Columns of which it is the plain mean."""
    count: Literal["all", "trained", "trained encoder", "added"] | None = None
    """Parameters in millions: all, those that learn, those of the encoder that learn, those above the first row's."""
    deviation: bool = False
    """If true, it is the standard deviation between the draws."""
    gain: bool = False
    """If true, it is the score minus that of the same student without a teacher."""
    unread: bool = False
    """If true, it is run even where the paper's number cannot be read."""


class Row(Settings):
    """A row as printed, in the order of the columns, and what its runs need."""

    name: str
    """The row's name, as printed."""
    values: tuple[Printed, ...]
    """The numbers as printed; null where there is none or none that can be read."""
    not_on: dict[str, str] = Field(default={})
    """By task why samkd does not run it there."""


class PaperTable(Settings):
    """One table of a paper."""

    number: str
    """Its number in the paper."""
    caption: str
    """What it compares."""
    dataset: str
    """The data it is about."""
    metric: str
    """What its numbers are."""
    note: str | None = None
    """What a reader of its numbers should know."""
    tasks: dict[str, Task]
    """The datasets and configs by name."""
    columns: dict[str, Column]
    """The columns by name, in order."""
    rows: tuple[Row, ...]
    """The rows, in order."""

    def value(self, row: Row, column: str) -> Printed:
        """What the paper prints in a cell."""
        return row.values[list(self.columns).index(column)]

    def rows_named(self, name: str | None) -> tuple[Row, ...]:
        """The rows of a name (all without one): as printed, whatever its case, or a number for "row N".

        Raises UsageError, which lists the rows.
        """
        if name is None:
            return self.rows
        spellings = {name.casefold(), f"row {name}".casefold()}
        rows = tuple(row for row in self.rows if row.name.casefold() in spellings)
        if not rows:
            names = list(dict.fromkeys(row.name for row in self.rows))
            raise UsageError(f"table {self.number}: no row {name!r}{_close(name, names)}; its rows are {names}")
        return rows


class Paper(Strict):
    """A paper with its tables."""

    title: str
    """Its method's name."""
    reference: str
    """Authors, year and where it is."""
    overrides: dict[str, tuple[str, ...]] = Field(default={})
    """Lists that rows refer to."""
    tables: tuple[PaperTable, ...]
    """Its tables, in order."""

    def table(self, number: str) -> PaperTable:
        """The table of a number. Raises UsageError, which lists the tables."""
        for table in self.tables:
            if table.number.casefold() == number.casefold():
                return table
        listed = "".join(f"\n  {table.number}: {table.caption}" for table in self.tables)
        raise UsageError(f"{self.title}: no table {number!r}; its tables are{listed}")


class PaperDataset(Strict):
    """A dataset of the papers: where it is had, and how samkd reads it."""

    title: str
    """Its name, and what it holds."""
    where: str
    """The official page."""
    layout: str
    """The layout that samkd expects, a row of docs/your-data.md."""
    training: int
    """How many cases are trained on, for estimates of what a run costs."""
    channels: int
    """How many channels a scan has."""
    classes: int
    """How many classes the dataset has, the background not counted."""


class _Shared(Strict):
    """What the papers share."""

    datasets: dict[str, PaperDataset]
    """The datasets by name."""
    reasons: dict[str, str]
    """Why rows are not run, by name."""


def read_paper(name: str) -> Paper:
    """The paper that the command line calls so. Raises UsageError, which lists the papers."""
    if name not in PAPERS:
        raise UsageError(f"no paper {name!r}{_close(name, PAPERS)}; choose one of {', '.join(PAPERS)}")
    return Paper.model_validate(parse_yaml((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def paper_datasets() -> dict[str, PaperDataset]:
    """The papers' datasets by name."""
    return _shared().datasets


def reason(name: str) -> str:
    """The reason of that name why a row is not run."""
    return _shared().reasons[name]


def _shared() -> _Shared:
    return _Shared.model_validate(parse_yaml((_FOLDER / "shared.yaml").read_text(encoding="utf-8")))


def _close(name: str, names: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
