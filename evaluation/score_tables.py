"""Scores as tables: of one result with its deviations, of several side by side, and of their paired differences."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from .paired_comparison import PairedDifference, paired_difference
from .records import CaseScores, ClassMean, ClassScore
from .rules import METRICS, TITLES
from .scores import case_means
from .statistics import MetricStatistics, metric_statistics
from .text_table import TextTable
from .worst_cases import worst_first

_ALWAYS = ("dice", "hd95_mm", "nsd")  # what every comparison shows
_FRACTIONS = ("dice", "iou", "nsd")
ABSENT = "-"
NOT_MEASURED = "not measured"


def score_table(scores: CaseScores, *, title: str, intervals: bool = False) -> TextTable:
    """A row per class and their mean: every metric that the rules name with its deviation, cases scored and missed."""
    metrics = scores.rules.metrics
    columns = ["class"]
    for metric in metrics:
        columns += [TITLES[metric], *(["95 % interval"] if intervals else [])]
    statistics = {metric: metric_statistics(scores, metric) for metric in metrics}
    rows = []
    for name in (*scores.summary.per_class, "mean"):
        row = [name]
        for metric in metrics:
            value = statistics[metric][name]
            row += [_with_deviation(value, metric), *([_interval(value, metric)] if intervals else [])]
        counts = scores.summary.per_class.get(name)
        if counts is None:
            per_class = scores.summary.per_class.values()
            row += [str(len(scores.cases)), str(sum(each.missed for each in per_class))]
            row += [str(sum(each.invented for each in per_class))]
        else:
            row += [str(counts.cases), str(counts.missed), str(counts.invented)]
        rows.append(tuple(row))
    return TextTable(title, (*columns, "cases", "missed", "invented"), tuple(rows))


def repetition_table(repetitions: Sequence[CaseScores], *, title: str) -> TextTable:
    """A row per class and their mean: each metric's mean over the repetitions, and its deviation between them."""
    metrics = repetitions[0].rules.metrics
    names = (*repetitions[0].summary.per_class, "mean")
    rows = []
    for name in names:
        row = [name]
        for metric in metrics:
            values = [scores.summary.by_class(metric)[name] for scores in repetitions]
            known = np.array([value for value in values if value is not None], float)
            deviation = float(known.std(ddof=1)) if len(known) > 1 else None
            mean = float(known.mean()) if len(known) else None
            row.append(_with_deviation(MetricStatistics(cases=len(known), mean=mean, deviation=deviation), metric))
        rows.append((*row, str(len(repetitions))))
    return TextTable(title, ("class", *(TITLES[metric] for metric in metrics), "repetitions"), tuple(rows))


def unit_table(scores: CaseScores, *, title: str) -> TextTable:
    """A row per case, or per video where its frames are the cases, with the mean over its classes."""
    metrics = scores.rules.metrics
    rows = [
        (name, *(number_text(getattr(unit, metric), metric) for metric in metrics))
        for name, unit in case_means(scores).items()
    ]
    return TextTable(title, ("case", *(TITLES[metric] for metric in metrics)), tuple(rows))


def case_table(scores: CaseScores) -> TextTable:
    """Every score of every class in every case, a row for each, with all digits: for a spreadsheet."""
    names = ("number", "name", *METRICS, "truth_voxels", "predicted_voxels")
    rows = [(case, *(_cell(row, name) for name in names)) for case, classes in scores.cases.items() for row in classes]
    return TextTable("scores", ("case", "class", *names[1:]), tuple(rows))


def side_by_side(results: Mapping[str, CaseScores], metric: str, *, title: str) -> TextTable:
    """A row per class and their mean, a column per result: the means of one metric.

    "not measured" stands where an older release scored the class by other metrics only.
    """
    columns = [(scores.summary.by_class(metric), scores.summary.dice_by_class()) for scores in results.values()]
    names = dict.fromkeys(name for column, _ in columns for name in column if name != "mean")
    rows = [
        (name, *(_mean_text(column.get(name), metric, scored=dice.get(name) is not None) for column, dice in columns))
        for name in (*names, "mean")
    ]
    return TextTable(title, ("class", *results), tuple(rows))


def comparison_tables(results: Mapping[str, CaseScores], *, title: str) -> list[TextTable]:
    """Dice, HD95 in mm, NSD and what else the first result's rules name, side by side; then the cases missed."""
    named = next(iter(results.values())).rules.metrics
    tables = [
        side_by_side(results, metric, title=f"{TITLES[metric]}, {title}")
        for metric in dict.fromkeys((*_ALWAYS, *named))
    ]
    return [*tables, missed_table(results, title=f"Cases in which a class was missed, {title}")]


def missed_table(results: Mapping[str, CaseScores], *, title: str) -> TextTable:
    """A row per class, a column per result: in how many of the scored cases the class was missed, and invented."""
    names = dict.fromkeys(name for scores in results.values() for name in scores.summary.per_class)
    rows = []
    for name in names:
        means = [scores.summary.per_class.get(name) for scores in results.values()]
        rows.append((name, *(ABSENT if each is None else _missed(each) for each in means)))
    return TextTable(title, ("class", *results), tuple(rows))


def _missed(each: ClassMean) -> str:
    return f"{each.missed} of {each.cases}" + (f", {each.invented} invented" if each.invented else "")


def cases_worst_first(results: Mapping[str, CaseScores], *, by: str, title: str) -> TextTable:
    """A row per case, the lowest mean Dice of the result `by` first, a column per result: the case's mean Dice."""
    means = {name: {case: unit.dice for case, unit in case_means(scores).items()} for name, scores in results.items()}
    rows = [
        (case, *(number_text(means[name].get(case), "dice") for name in results)) for case in worst_first(results[by])
    ]
    return TextTable(title, ("case", *results), tuple(rows))


def difference_table(results: Mapping[str, CaseScores], metric: str) -> TextTable:
    """For every two results the second minus the first, class by class: 95 % interval, Wilcoxon's p, and cases.

    The results have the same cases.
    """
    rows = []
    for first, second in combinations(results, 2):
        effect = paired_difference(results[second].values(metric), results[first].values(metric))
        rows += [(f"{second} - {first}", name, *_difference(row, metric)) for name, row in effect.items()]
    columns = ("results", "class", "difference", "95 % interval", "p", "cases")
    return TextTable(f"{TITLES[metric]}, paired differences", columns, tuple(rows))


def number_text(value: float | None, metric: str, sign: str = "") -> str:
    """A score with the digits of its metric: three of a fraction, two of a distance; "-" where there is none."""
    return ABSENT if value is None else f"{value:{sign}.{_digits(metric)}f}"


def _mean_text(value: float | None, metric: str, *, scored: bool) -> str:
    return NOT_MEASURED if value is None and scored else number_text(value, metric)


def _digits(metric: str) -> int:
    return 3 if metric in _FRACTIONS else 2


def _with_deviation(value: MetricStatistics, metric: str) -> str:
    mean = number_text(value.mean, metric)
    return mean if value.deviation is None else f"{mean} ± {number_text(value.deviation, metric)}"


def _interval(value: MetricStatistics, metric: str) -> str:
    if value.low is None:
        return ABSENT
    return f"{number_text(value.low, metric)} to {number_text(value.high, metric)}"


def _difference(row: PairedDifference, metric: str) -> tuple[str, str, str, str]:
    digits = _digits(metric) + 1
    difference = ABSENT if row.difference is None else f"{row.difference:+.{digits}f}"
    interval = ABSENT if row.low is None else f"{row.low:+.{digits}f} to {row.high:+.{digits}f}"
    return difference, interval, ABSENT if row.p is None else f"{row.p:.3g}", str(row.cases)


def _cell(row: ClassScore, name: str) -> str:
    value = getattr(row, name)
    return "" if value is None else str(value)
