"""Two results on the same cases, case by case: a student against its control, or any two models."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, wilcoxon

from .records import ValuesByCase
from .statistics import RESAMPLES


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The mean difference of a metric over so many cases, with its interval and p-value; None without enough cases.

    `low` and `high` are a 95 % percentile bootstrap over cases (10000 seeded resamples), `p` is the Wilcoxon
    signed-rank test's, two-sided, and 1 when no case differs. They need two cases.
    """

    cases: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired_difference(one: ValuesByCase, other: ValuesByCase, *, seed: int = 0) -> dict[str, PairedDifference]:
    """One result minus the other over the cases of the first, per class and for each case's ``mean``.

    A class counts in the cases that hold it. The p-values are not corrected for their number.
    """
    per_class: dict[str, list[float]] = {}
    means = []
    for case, classes in one.items():
        differences = {
            name: value - against
            for name, value in classes.items()
            if value is not None and (against := other[case][name]) is not None
        }
        for name, difference in differences.items():
            per_class.setdefault(name, []).append(difference)
        if differences:
            means.append(float(np.mean(list(differences.values()))))
    return {name: _statistics(values, seed) for name, values in {**per_class, "mean": means}.items()}


def _statistics(differences: list[float], seed: int) -> PairedDifference:
    if not differences:
        return PairedDifference(cases=0)
    mean = float(np.mean(differences))
    if len(differences) == 1:
        return PairedDifference(cases=1, difference=mean)
    rng = np.random.default_rng(seed)
    interval = bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng
    ).confidence_interval
    return PairedDifference(
        cases=len(differences),
        difference=mean,
        low=float(interval.low),
        high=float(interval.high),
        p=float(wilcoxon(differences)[1]) if any(differences) else 1.0,  # type: ignore[arg-type]
    )
