"""The number that stands beside the paper's in a cell, in the paper's own unit."""

import re
from collections.abc import Mapping
from statistics import mean, stdev

from ...evaluation.records import CaseScores
from ...evaluation.scores import case_scores
from .costs import parameters
from .experiments import Cell
from .run import Workplace, scores_of

PERCENT = ("dice", "iou", "nsd")


def size_of_cell(cell: Cell) -> float | None:
    """Parameters in millions of the network at full size, for a cell that counts them."""
    if cell.experiment is None or cell.spec.count is None:
        return None
    kind = "all" if cell.spec.count == "added" else cell.spec.count
    count = parameters(cell.experiment, kind) - (parameters(cell.minus, kind) if cell.minus else 0)
    return count / 1e6


def score_of_cell(cell: Cell, work: Workplace) -> float | None:
    """The score of a cell with a run: in percent for Dice, IoU and NSD. None where nothing could be scored."""
    assert cell.experiment is not None
    draws = [_score(cell, scores, work) for scores in scores_of(cell.experiment, cell.scoring, work)]
    known = [value for value in draws if value is not None]
    if not known:
        return None
    if cell.spec.deviation:
        return stdev(known) if len(known) > 1 else None
    value = mean(known)
    if cell.minus is not None:
        alone = [_score(cell, scores, work) for scores in scores_of(cell.minus, cell.scoring, work)]
        return None if not alone or alone[0] is None else value - alone[0]
    return value


def mean_of(columns: tuple[str, ...], values: Mapping[str, float | None]) -> float | None:
    """The plain mean of a row's values in these columns; None where one of them has none."""
    known = [value for value in (values.get(name) for name in columns) if value is not None]
    return mean(known) if known and len(known) == len(columns) else None


def _score(cell: Cell, scores: CaseScores, work: Workplace) -> float | None:
    """One draw's score of the cell's class and cases; on the phantom, which has neither, that of all of them."""
    metric, pattern, name = cell.spec.metric, cell.spec.cases, cell.spec.class_name
    assert metric is not None
    if pattern is not None and not work.phantom:
        cases = {case: rows for case, rows in scores.cases.items() if re.search(pattern, case)}
        if not cases:
            return None
        scores = case_scores(cases, rules=scores.rules)
    values = scores.summary.by_class(metric)
    if work.phantom and name not in values:
        name = None
    value = values.get(name or "mean")
    return value if value is None or metric not in PERCENT else 100 * value
