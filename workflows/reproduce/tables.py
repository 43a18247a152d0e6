"""The tables that `samkd reproduce` prints: the plan, the paper's numbers beside ours, and what differs."""

from collections.abc import Iterable, Mapping, Sequence

from ...configs.paper_tables import Paper, PaperTable, Printed, Row, paper_datasets
from ...evaluation.score_tables import ABSENT
from ...evaluation.text_table import TextTable
from .costs import COST_MODEL, budget, gpu_hours
from .experiments import Cell, Experiment
from .run import Workplace

Values = Mapping[tuple[int, str], float | None]  # by the row's place in the plan and the column


def plan_tables(
    paper: Paper, table: PaperTable, experiments: Sequence[Experiment], cells: Sequence[Cell]
) -> list[TextTable]:
    """The runs with what they cost at the paper's size, which row takes which, and which rows are not run."""
    numbers = {experiment: str(number) for number, experiment in enumerate(experiments, start=1)}
    return [
        _runs(f"{_title(paper, table)}: runs. {COST_MODEL}", experiments, numbers),
        _uses(f"{_title(paper, table)}: rows and their runs", cells, numbers),
        *not_run(cells),
        *_remarks("What differs from the paper by design", table.note, cells, []),
    ]


def _runs(title: str, experiments: Sequence[Experiment], numbers: Mapping[Experiment, str]) -> TextTable:
    rows, hours = [], 0.0
    for experiment in experiments:
        config, spent, its_hours = experiment.load(), budget(experiment), gpu_hours(experiment)
        hours += its_hours
        before = [f"run {numbers[each]}" for each in (experiment.start, experiment.teacher) if each]
        if experiment.weights:
            before.append(f"weights of {config.teacher.backbone}")
        rows.append(
            (
                numbers[experiment],
                experiment.stage if experiment.stage != "distill" else f"distill, lambda {experiment.lambda_:g}",
                experiment.trained(config).name,
                experiment.config,
                " ".join(f"--set {override}" for override in experiment.overrides) or ABSENT,
                ", ".join(before) or ABSENT,
                f"{spent.steps} x {spent.patches}",
                f"{its_hours:.1f}",
            )
        )
    rows.append(("all", *("",) * 6, f"{hours:.1f}"))
    columns = ("run", "stage", "network", "config", "overrides", "from", "steps x patches", "GPU hours")
    return TextTable(title, columns, tuple(rows))


def _uses(title: str, cells: Sequence[Cell], numbers: Mapping[Experiment, str]) -> TextTable:
    """For every row what is shown to which run, and which columns that fills."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if not cell.wanted or cell.experiment is None:
            continue
        run = numbers[cell.experiment] + (f" - {numbers[cell.minus]}" if cell.minus else "")
        shown = cell.scoring.shown or ABSENT
        draws = f" ({cell.scoring.repeat} draws)" if cell.scoring.repeat > 1 else ""
        where = cell.scoring.data or cell.experiment.data
        groups.setdefault((cell.row.name, run, where, shown + draws), []).append(cell.column)
    rows = tuple((*key, ", ".join(columns)) for key, columns in groups.items())
    return TextTable(title, ("row", "run", "scored on", "shown of the truth", "columns"), rows)


def not_run(cells: Sequence[Cell]) -> list[TextTable]:
    """The cells that are not run, by reason; none where all are."""
    groups: dict[str, dict[str, list[str]]] = {}
    rows = {id(cell.row) for cell in cells if cell.wanted}
    needed = {cell.experiment for cell in cells if cell.wanted}
    for cell in cells:
        if cell.reason is not None and cell.experiment not in needed:  # a run of others fills it
            whole = id(cell.row) not in rows
            columns = groups.setdefault(cell.reason, {}).setdefault(cell.row.name, [])
            columns += [] if whole else [cell.column]
    lines = [
        (", ".join(name + (f" ({', '.join(columns)})" if columns else "") for name, columns in names.items()), why)
        for why, names in groups.items()
    ]
    return [TextTable("Not run", ("rows", "why"), tuple(lines))] if lines else []


def result_tables(
    paper: Paper, table: PaperTable, rows: Sequence[Row], cells: Sequence[Cell], values: Values, work: Workplace
) -> list[TextTable]:
    """The paper's rows, each with ours below it, what is not run, and every difference."""
    source = "phantom" if work.phantom else "samkd"
    remark = "generated scans and tiny networks, NO REPRODUCTION" if work.phantom else "the runs named below"
    return [
        _side_by_side(f"{_title(paper, table)}; {table.metric}; {source}: {remark}", table, rows, values, source),
        *not_run(cells),
        *_remarks("What differs from the paper", table.note, cells, [*_budgets(work), *_stand_ins(cells, work)]),
    ]


def _side_by_side(title: str, table: PaperTable, rows: Sequence[Row], values: Values, source: str) -> TextTable:
    lines = []
    for place, row in enumerate(rows):
        lines.append((row.name, "paper", *(_printed(value) for value in row.values)))
        ours = [values.get((place, column)) for column in table.columns]
        if any(value is not None for value in ours):
            digits = [_digits(table, column) for column in table.columns]
            numbers = (ABSENT if v is None else f"{v:.{d}f}" for v, d in zip(ours, digits, strict=True))
            lines.append((row.name, source, *numbers))
    return TextTable(title, ("row", "of", *table.columns), tuple(lines))


def _title(paper: Paper, table: PaperTable) -> str:
    return f"{paper.title}, {'' if table.number[0].isalpha() else 'table '}{table.number}: {table.caption}"


def _printed(value: Printed) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ABSENT if value is None else str(value)


def _digits(table: PaperTable, column: str) -> int:
    """As many digits as the paper's longest number of the column has behind the point, one at least."""
    texts = [str(value) for row in table.rows if isinstance(value := table.value(row, column), float)]
    return max([len(text.partition(".")[2]) for text in texts], default=1)


def _budgets(work: Workplace) -> list[tuple[str, str, str]]:
    """(what, in the paper or its config, here) of every difference of data and budget, over all runs."""
    differences: dict[tuple[str, str, str], None] = {}
    datasets = paper_datasets()
    for experiment, run in work.trained.items():
        data, paper = datasets[experiment.data], experiment.load()
        config = run.config
        section, trained = experiment.trained(paper), config.training
        spent = budget(experiment)
        cases = f"{data.title}, {data.training} training cases"
        here = f"{config.cases.dataset}, {len(config.cases.train)} training cases"
        pairs = [("data", cases, here)] if work.phantom or len(config.cases.train) != data.training else []
        patches = trained["batch"] * trained["accumulate"] * work.devices
        names = _network(section.name, _backbone(experiment)), _network(config.network.name, config.network.backbone)
        pairs += [
            (f"steps, {section.name}", str(spent.steps), str(run.metrics().steps)),
            (f"patches in a step, {section.name}", str(spent.patches or trained["batch"]), str(patches)),
            (f"patch, {section.name}", _size(section.plan.patch), _size(config.network.patch)),
            ("network", *names),
            ("published weights", *_weights(experiment, work)),
        ]
        differences |= dict.fromkeys(pair for pair in pairs if pair[1] != pair[2])
    own = " ".join(f"--set {override}" for override in work.overrides)
    return [*differences, *([("overrides of your own", ABSENT, own)] if own else []), ("device", ABSENT, _device())]


def _stand_ins(cells: Sequence[Cell], work: Workplace) -> list[tuple[str, str, str]]:
    """What columns of a class, a site or a dataset of its own are on the phantom, which has none of the paper's."""
    columns = [cell.spec for cell in cells if cell.wanted]
    several = len({cell.experiment.data for cell in cells if cell.experiment}) > 1
    if not work.phantom or not (several or any(column.cases or column.class_name for column in columns)):
        return []
    text = "the phantom's scans stand for every dataset, site and sequence, its mean for a class that it lacks"
    return [("columns", ABSENT, text)]


def _backbone(experiment: Experiment) -> str | None:
    return experiment.load().teacher.backbone if experiment.stage == "teach" else None


def _network(name: str, backbone: str | None) -> str:
    return name if backbone is None else f"{name} on {backbone}"


def _weights(experiment: Experiment, work: Workplace) -> tuple[str, str]:
    """What the paper's run starts from, and what this one does."""
    if not experiment.weights:
        return ABSENT, ABSENT
    paper = f"those of {_backbone(experiment)}"
    path = work.weights_of(experiment)
    if path is None:
        return paper, "none: everything learns from random numbers"
    return paper, f"random numbers in their place ({path.name})" if work.phantom else paper


def _size(patch: Iterable[int]) -> str:
    return " x ".join(map(str, patch))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU (threads: {torch.get_num_threads()})"


def _remarks(
    title: str, note: str | None, cells: Sequence[Cell], budgets: Sequence[tuple[str, str, str]]
) -> list[TextTable]:
    """One table of every difference, those of data and budget first, and of what to know of the numbers."""
    texts = dict.fromkeys(text for cell in cells if cell.experiment is not None for text in cell.differs)
    rows = [*budgets, *(("method", ABSENT, text) for text in texts), *([("numbers", note, ABSENT)] if note else [])]
    return [TextTable(title, ("what", "paper", "here"), tuple(rows))] if rows else []
