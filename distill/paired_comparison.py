"""What the teacher was worth: the student against its control, case by case."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, wilcoxon

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # scores of evaluation.scores.score_case by case name


def paired_difference(student: Rows, control: Rows, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Dice of the student minus Dice of the control over the test cases, per class and for each case's ``mean``.

    Each entry has ``cases``, ``difference`` (mean), ``low`` and ``high`` (95 % percentile bootstrap over cases, 10000
    seeded resamples) and ``p`` (Wilcoxon signed-rank, two-sided; 1 when no case differs). Interval and p are None for
    fewer than two cases. A class counts in the cases that hold it. The p-values are not corrected for their number.
    """
    per_class: dict[str, list[float]] = {}
    means = []
    for case, rows in student.items():
        differences = {
            one["name"]: one["dice"] - other["dice"]
            for one, other in zip(rows, control[case], strict=True)
            if one["dice"] is not None and other["dice"] is not None
        }
        for name, difference in differences.items():
            per_class.setdefault(name, []).append(difference)
        if differences:
            means.append(float(np.mean(list(differences.values()))))
    return {name: _summary(values, seed) for name, values in {**per_class, "mean": means}.items()}


def _summary(differences: list[float], seed: int) -> dict[str, Any]:
    summary: dict[str, Any] = {"cases": len(differences), "difference": None, "low": None, "high": None, "p": None}
    if differences:
        summary["difference"] = float(np.mean(differences))
    if len(differences) > 1:
        found = bootstrap(
            (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        summary |= {"low": float(found.low), "high": float(found.high)}
        summary["p"] = float(wilcoxon(differences)[1]) if any(differences) else 1.0  # type: ignore[arg-type]
    return summary
