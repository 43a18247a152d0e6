"""samkd reproduce: a table of a paper planned, run and printed beside the paper's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...configs.paper_tables import paper_datasets, read_paper
from ...errors import UsageError
from ...evaluation.text_table import TextTable
from ...sam.presets import ENCODERS
from .experiments import Cell, cells_of, experiments_of
from .run import (
    NO_WEIGHTS,
    Workplace,
    backbones_of,
    check_places,
    datasets_of,
    parse_places,
    trained_run,
)
from .tables import plan_tables, result_tables
from .values import mean_of, score_of_cell, size_of_cell


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Where a table is run and how: `data` and `weights` are NAME=PATH, or one path where one is needed.

    `weights` may be "none". `overrides` are the user's own, for every run. `devices` is a count.
    """

    data: Sequence[str] = ()
    weights: Sequence[str] = ()
    runs: Path = Path("runs")
    phantom: bool = False
    devices: int = 1
    overrides: Sequence[str] = ()


def plan(paper_name: str, number: str, row: str | None) -> list[TextTable]:
    """The runs, their cost, what they are shown, and what is not run. Raises UsageError for unknown names."""
    paper = read_paper(paper_name)
    table = paper.table(number)
    cells = cells_of(table, table.rows_named(row))
    return plan_tables(paper, table, experiments_of(cells), cells)


def reproduce(paper_name: str, number: str, row: str | None, options: ReproduceOptions) -> list[TextTable]:
    """Train what is missing in the run root, score it, and return the paper's numbers beside ours.

    Raises UsageError for unknown names, overrides that do not fit, and data or weights for the phantom; BadInputError
    where data or published weights are not named; and what the workflows teach, distill and evaluate raise.
    """
    if options.phantom and (options.data or options.weights):
        raise UsageError("--phantom takes neither --data nor --weights: it generates both; leave them out")
    paper = read_paper(paper_name)
    table = paper.table(number)
    rows = table.rows_named(row)
    cells = cells_of(table, rows)
    experiments = experiments_of(cells)
    pretrained = list(options.weights) != [NO_WEIGHTS]
    work = Workplace(
        runs=options.runs,
        data=parse_places(options.data, datasets_of(experiments, cells), option="--data", known=list(paper_datasets())),
        weights=parse_places(
            options.weights if pretrained else (),
            backbones_of(experiments),
            option="--weights",
            known=list(ENCODERS),
        ),
        pretrained=pretrained,
        phantom=options.phantom,
        devices=options.devices,
        overrides=tuple(options.overrides),
    )
    check_places(experiments, cells, work)
    for experiment in experiments:  # every fault of an override is told before anything is trained
        work.config_of(experiment)
    for experiment in experiments:
        trained_run(experiment, work)
    values = {}
    for place, each in enumerate(rows):
        mine = [cell for cell in cells if cell.row is each]
        values |= {(place, name): value for name, value in _row_values(mine, work).items()}
    return result_tables(paper, table, rows, cells, values, work)


def _row_values(cells: Sequence[Cell], work: Workplace) -> dict[str, float | None]:
    """Ours by column, for one row."""
    values: dict[str, float | None] = {}
    for cell in cells:
        if cell.spec.count is not None:
            values[cell.column] = size_of_cell(cell)
        elif cell.experiment is not None and cell.experiment in work.trained:
            values[cell.column] = score_of_cell(cell, work)
    for cell in cells:
        if cell.spec.mean_of:
            values[cell.column] = mean_of(cell.spec.mean_of, values)
    return values
