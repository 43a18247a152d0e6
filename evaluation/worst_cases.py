"""Which cases went worst, for whoever looks at pictures: they come first."""

from .records import CaseScores, ClassScore
from .scores import case_means


def worst_first(scores: CaseScores) -> list[str]:
    """The cases that were scored, or the videos where frames are the cases: the lowest mean Dice first."""
    means = case_means(scores)
    return sorted(means, key=lambda case: (means[case].dice or 0.0, case))


def worst_of_each_class(scores: CaseScores) -> list[tuple[str, ClassScore]]:
    """For each class the case with its lowest Dice, of equal ones that with most truth; the worst class first."""
    worst: dict[str, tuple[str, ClassScore]] = {}
    for case, rows in scores.cases.items():
        for row in rows:
            if row.dice is not None and (row.name not in worst or _badness(row) > _badness(worst[row.name][1])):
                worst[row.name] = (case, row)
    return sorted(worst.values(), key=lambda each: _badness(each[1]), reverse=True)


def _badness(row: ClassScore) -> tuple[float, int]:
    return -(row.dice or 0.0), row.truth_voxels
