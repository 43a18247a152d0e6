"""samkd evaluate --compare: finished results side by side, and what they differ by, case by case."""

from collections.abc import Sequence
from pathlib import Path

from ..configs.evaluation_schema import Evaluation
from ..configs.load import parse_evaluation
from ..errors import BadInputError, UsageError
from ..evaluation.records import CaseScores
from ..evaluation.result_files import read_result
from ..evaluation.rules import TITLES, ScoringRules
from ..evaluation.score_tables import difference_table, side_by_side
from ..evaluation.scores import case_scores
from ..evaluation.text_table import TextTable
from ..training.metrics import scoring_rules
from ..training.progress import console
from ..training.run import Run

_MEASURE = ("tolerance_mm", "class_tolerances_mm", "surface", "hd95", "unit")  # what was decided when masks were scored


def compare(results: Sequence[Path], *, overrides: list[str] | None = None) -> list[TextTable]:
    """For every metric the means of each result, and the paired differences of every two of them.

    A result is a run folder with test scores, or a JSON file of `samkd evaluate -o`. The cases that all of them have
    are compared. The metrics and the rules for means are those of the first result, with `overrides`.

    Raises BadInputError for files that hold no scores and for results of other classes, other rules or no common case;
    UsageError for fewer than two results and for rules that masks must be scored anew for.
    """
    if len(results) < 2:
        raise UsageError("--compare: give two results or more, each a run folder or a JSON file of `samkd evaluate -o`")
    scores = dict(zip(_names(results), map(_read, results), strict=True))
    rules = _common_rules(scores, overrides or [])
    common = _common_cases(scores, rules)
    tables = []
    for metric in rules.metrics:
        tables += [side_by_side(common, metric, title=TITLES[metric]), difference_table(common, metric)]
    return tables


def _read(path: Path) -> CaseScores:
    if not (path / "config.yaml").exists():
        return read_result(path)
    test = Run.read(path).metrics().test
    if test is None:
        raise BadInputError(f"{path}: this run has no test scores; score it with `samkd evaluate -o` and compare that")
    return test


def _names(results: Sequence[Path]) -> list[str]:
    """A name for each result: that of its folder or file; its path where two would be called the same."""
    names = [path.stem if path.suffix == ".json" else path.name for path in results]
    return names if len(set(names)) == len(names) else [str(path) for path in results]


def _common_rules(scores: dict[str, CaseScores], overrides: list[str]) -> ScoringRules:
    """The rules of the first result with the overrides; all were measured by the same.

    Raises BadInputError where they were not, UsageError for an override of what was decided then.
    """
    first, rules = next((name, result.rules) for name, result in scores.items())
    for name, result in scores.items():
        for rule in _MEASURE:
            if getattr(result.rules, rule) != getattr(rules, rule):
                raise BadInputError(
                    f"{name}: scored with {rule} {getattr(result.rules, rule)}, {first} with {getattr(rules, rule)}; "
                    "score both by the same rules"
                )
    changed = scoring_rules(parse_evaluation(Evaluation(**rules.to_json()), overrides), rules.class_tolerances_mm)
    if moved := [rule for rule in _MEASURE if getattr(changed, rule) != getattr(rules, rule)]:
        raise UsageError(
            f"--set evaluation.{moved[0]}: the results are scored already; score their masks anew for that"
        )
    if "hd95_voxels" in changed.metrics and not all("hd95_voxels" in each.rules.metrics for each in scores.values()):
        raise UsageError("evaluation.metrics: not all results hold hd95_voxels; score their masks anew with it")
    return changed


def _common_cases(scores: dict[str, CaseScores], rules: ScoringRules) -> dict[str, CaseScores]:
    """The results over the cases that all have; says how many the others are. Raises BadInputError without any."""
    first = next(iter(scores))
    names = set.intersection(*(set(result.cases) for result in scores.values()))
    if not names:
        raise BadInputError(f"{', '.join(scores)}: no case is in all of these results")
    for name, result in scores.items():
        if list(result.summary.per_class) != list(scores[first].summary.per_class):
            raise BadInputError(
                f"{name}: its classes are {list(result.summary.per_class)}, those of {first} "
                f"{list(scores[first].summary.per_class)}"
            )
        if others := len(result.cases) - len(names):
            console.print(f"warning: {name}: {others} of {len(result.cases)} cases are not in all results; left out")
    return {
        name: case_scores({case: rows for case, rows in result.cases.items() if case in names}, rules=rules)
        for name, result in scores.items()
    }
