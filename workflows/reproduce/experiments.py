"""What the rows of a paper's table stand for: runs, what is shown when they are scored, and which number a cell is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...configs.load import load_config
from ...configs.paper_tables import Column, PaperTable, Printed, Row, Settings, paper_datasets, reason
from ...configs.schema import Config, StudentConfig, TeacherConfig

NOT_GIVEN = "the paper gives no number that can be read"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: a teacher ("teach"), a student alone ("control"), or one that a `teacher` teaches ("distill").

    `overrides` are those of the part of `config` that the run trains, `data` is the dataset's name among the papers',
    `weights` says whether a teacher starts from published weights, `start` is the run whose weights it goes on from.
    """

    stage: str
    config: str
    overrides: tuple[str, ...]
    data: str
    lambda_: float = 1.0
    weights: bool = False
    start: "Experiment | None" = None
    teacher: "Experiment | None" = None

    def load(self) -> Config:
        """Its config. Raises UsageError for overrides that do not fit."""
        return load_config(self.config, list(self.overrides))

    def trained(self, config: Config) -> TeacherConfig | StudentConfig:
        """The section of its config that it trains."""
        return config.teacher if self.stage == "teach" else config.student

    def needs(self) -> Iterator["Experiment"]:
        """The runs that come before it, each after its own, and last itself."""
        for before in (self.start, self.teacher):
            if before is not None:
                yield from before.needs()
        yield self


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a run's masks are scored: on its own test cases and without prompts, if nothing else is said.

    `shown` is a protocol of `samkd evaluate --prompt-from-truth`, drawn `repeat` times; `config` and `data` are the
    config and the dataset where others than the run's own are scored.
    """

    shown: str | None = None
    repeat: int = 1
    config: str | None = None
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: what the paper prints, and the run whose score or size is to stand beside it.

    `reason` says why nothing is run for it; a run that other cells need fills it all the same. `minus` is the run whose
    score or size is taken away. Without an experiment the column is no result of a run (or a mean of other columns).
    """

    row: Row
    column: str
    paper: Printed
    spec: Column
    experiment: Experiment | None = None
    minus: Experiment | None = None
    scoring: Scoring = Scoring()
    reason: str | None = None
    differs: tuple[str, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether a run is trained and scored for it."""
        return self.experiment is not None and self.reason is None and self.spec.count is None


def cells_of(table: PaperTable, rows: tuple[Row, ...]) -> list[Cell]:
    """Every cell of these rows of a table, row by row."""
    return [_cell(table, row, name) for row in rows for name in table.columns]


def experiments_of(cells: list[Cell]) -> list[Experiment]:
    """The runs that the cells need, each once and after those it starts or learns from."""
    runs = [run for cell in cells if cell.wanted for run in (cell.experiment, cell.minus) if run is not None]
    return list(dict.fromkeys(each for run in runs for each in run.needs()))


def _cell(table: PaperTable, row: Row, name: str) -> Cell:
    column = table.columns[name]
    cell = Cell(row=row, column=name, paper=table.value(row, name), spec=column)
    task = column.task or (_first_task(table, row) if column.count else None)
    if task is None:
        return replace(cell, reason=reason(row.not_ours) if row.not_ours else None)
    settings = table.then(table.tasks[task]).then(row).then(column)
    if settings.not_ours or task in row.not_on:
        return replace(cell, reason=reason(settings.not_ours) if settings.not_ours else row.not_on[task])
    experiment = _experiment(table, task, settings)
    minus = None
    if column.gain:
        minus = _experiment(table, task, settings.model_copy(update={"stage": "control"}))
    elif column.count == "added":
        minus = _experiment(table, task, table.then(table.tasks[task]).then(table.rows[0]).then(column))
    scored = table.tasks[task]
    return replace(
        cell,
        experiment=experiment,
        minus=minus,
        scoring=Scoring(
            shown=settings.shown, repeat=settings.repeat or 1, config=scored.score_config, data=scored.score_data
        ),
        reason=NOT_GIVEN if cell.paper is None and not column.unread else None,
        differs=settings.differs,
    )


def _first_task(table: PaperTable, row: Row) -> str | None:
    return next((task for task in table.tasks if task not in row.not_on), None)


def _experiment(table: PaperTable, task: str, settings: Settings) -> Experiment:
    """The run that settings ask for on a task, with the runs that come before it."""
    place = table.tasks[task]
    stage = settings.stage or "teach"
    lambda_ = 1.0 if settings.lambda_ is None or stage != "distill" else settings.lambda_
    stage = "control" if stage == "distill" and lambda_ == 1 else stage
    config = settings.config or place.config
    assert config is not None
    start = place.start
    return Experiment(
        stage=stage,
        config=config,
        overrides=_of_stage(settings.overrides, stage),
        data=place.data,
        lambda_=lambda_,
        weights=stage == "teach" and settings.weights is not False,
        start=_experiment(table, start, table.then(table.tasks[start])) if start and stage == "teach" else None,
        teacher=_experiment(table, task, settings.model_copy(update={"stage": "teach"}))
        if stage == "distill"
        else None,
    )


def _of_stage(overrides: tuple[str, ...], stage: str) -> tuple[str, ...]:
    """The overrides that matter to a run of that stage."""
    other = "student." if stage == "teach" else "teacher."
    return tuple(override for override in overrides if not override.startswith(other))


def class_count(experiment: Experiment, config: Config) -> int:
    """The number of classes of a run on the paper's data, with the background."""
    own = config.classes
    return 1 + (len(own) if own is not None else paper_datasets()[experiment.data].classes)
