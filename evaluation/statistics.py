"""How sure a mean score is: deviation over the cases, and a bootstrap interval."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from .records import CaseScores
from .scores import case_means

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class MetricStatistics:
    """The mean of a metric over so many cases, its standard deviation over them, and the 95 % interval of the mean.

    The interval is a percentile bootstrap over the cases (10000 seeded resamples). It and the deviation need two cases.
    """

    cases: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def metric_statistics(scores: CaseScores, metric: str, *, seed: int = 0) -> dict[str, MetricStatistics]:
    """The statistics of a metric by class name, and last of all for their "mean".

    The deviation of the "mean" is that of each case's mean over its classes, of a video's frames over the videos.
    """
    values = scores.values(metric)
    names = list(scores.summary.per_class)
    table = np.array([[_number(row.get(name)) for name in names] for row in values.values()], float)
    table = table.reshape(len(values), len(names))
    statistics = {}
    for name, column in zip(names, table.T, strict=True):
        column = column[~np.isnan(column)]
        statistics[name] = _statistics(column, seed, lambda index, values=column: values[index].mean(axis=-1))
    units = np.array([_number(getattr(unit, metric)) for unit in case_means(scores).values()], float)
    units = units[~np.isnan(units)]
    if scores.rules.average == "cases":
        statistics["mean"] = _statistics(units, seed, lambda index: units[index].mean(axis=-1))
        return statistics
    rows = table[~np.isnan(table).all(axis=1)] if names else table
    over_cases = _statistics(rows, seed, lambda index: np.nanmean(np.nanmean(rows[index], axis=-2), axis=-1))
    statistics["mean"] = MetricStatistics(
        cases=over_cases.cases,
        mean=getattr(scores.summary.mean, metric),
        deviation=float(units.std(ddof=1)) if len(units) > 1 else None,
        low=over_cases.low,
        high=over_cases.high,
    )
    return statistics


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _statistics(values: np.ndarray, seed: int, mean: Callable[[np.ndarray], np.ndarray]) -> MetricStatistics:
    """Of the values of so many cases, whose resampled `mean` is that at indices [..., cases]."""
    count = len(values)
    if count == 0:
        return MetricStatistics(cases=0)
    if count == 1:
        return MetricStatistics(cases=1, mean=float(np.nanmean(values)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample may lack a class altogether
        interval = bootstrap(
            (np.arange(count),),
            lambda index, axis: mean(index),
            n_resamples=RESAMPLES,
            batch=500,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    flat = values if values.ndim == 1 else np.nanmean(values, axis=1)
    return MetricStatistics(
        cases=count,
        mean=float(flat.mean()),
        deviation=float(flat.std(ddof=1)),
        low=float(interval.low),
        high=float(interval.high),
    )
