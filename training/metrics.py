"""What metrics.json must hold."""

from typing import Any

from ..errors import BadInputError

_NUMBERS = ("steps", "seconds", "parameters")


def check_metrics(metrics: Any) -> None:
    """Raises BadInputError for values that are not those of a run's metrics.json.

    "test" is None, or has the scores by case, and their means over the cases ("summary").
    """
    if not isinstance(metrics, dict) or not {*_NUMBERS, "test"} <= metrics.keys():
        raise BadInputError(f"holds no scores of a run; expected an object with {[*_NUMBERS, 'test']}.")
    if not all(type(metrics[name]) in (int, float) for name in _NUMBERS):
        raise BadInputError(f"{', '.join(_NUMBERS)} are to be numbers.")
    try:
        test = metrics["test"]
        if test is not None:
            summary = test["summary"]
            rows = [*summary["per_class"].values(), summary["mean"]]
            rows += [row for case in test["cases"].values() for row in case]
            if not all(row["dice"] is None or type(row["dice"]) is float for row in rows):
                raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise BadInputError('"test" holds no scores by class and case.') from None
