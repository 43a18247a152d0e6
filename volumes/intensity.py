"""Intensity rules as data: what the numbers of a scan become before a network sees them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import BadInputError


def apply_intensity(array: np.ndarray, rules: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """New float32 array [C, D, H, W] with the rules applied one after the other, channel by channel.

    {"rule": "window", "low": HU, "high": HU}      clip, then [low, high] -> [0, 1]
    {"rule": "clip", "low": HU, "high": HU}        clip, in the scan's own units
    {"rule": "shift_scale", "subtract": HU, "divide": HU}    (value - subtract) / divide
    {"rule": "percentile", "low": %, "high": %}    window between two percentiles of the scan itself
    {"rule": "zscore", "nonzero": false}           mean 0, standard deviation 1; "nonzero" measures and changes only
                                                   voxels that are not 0 (skull-stripped MR)
    Raises BadInputError for an unknown rule and for a scan too uniform for its rule.
    """
    result = np.array(array, dtype=np.float32)
    for settings in rules:
        options = dict(settings)
        name = options.pop("rule", None)
        if name not in _RULES:
            raise BadInputError(f"intensity rule {name!r} is unknown; expected one of {', '.join(_RULES)}.")
        for channel, values in enumerate(result):
            try:
                _RULES[name](values, **options)
            except TypeError as error:
                raise BadInputError(f"intensity rule {name!r} does not take {options}: {error}.") from error
            except _Uniform as error:
                raise BadInputError(
                    f"channel {channel} of the scan {error}, so the intensity rule {name!r} cannot scale it. "
                    "Check that the scan is not blank, or choose another rule."
                ) from error
    return result


class _Uniform(Exception):
    pass


def _clip(values: np.ndarray, *, low: float, high: float) -> None:
    np.clip(values, low, high, out=values)


def _shift_scale(values: np.ndarray, *, subtract: float, divide: float) -> None:
    values -= np.float32(subtract)
    values /= np.float32(divide)


def _window(values: np.ndarray, *, low: float, high: float) -> None:
    _clip(values, low=low, high=high)
    _shift_scale(values, subtract=low, divide=high - low)


def _percentile(values: np.ndarray, *, low: float = 0.5, high: float = 99.5) -> None:
    darkest, brightest = (float(v) for v in np.percentile(values, (low, high)))
    if darkest >= brightest:
        raise _Uniform(f"has the value {darkest:g} at both its {low:g}th and its {high:g}th percentile")
    _window(values, low=darkest, high=brightest)


def _zscore(values: np.ndarray, *, nonzero: bool = False) -> None:
    chosen = values != 0 if nonzero else None
    measured = values if chosen is None else values[chosen]
    if measured.size == 0:
        raise _Uniform("is zero everywhere")
    mean, deviation = float(measured.mean(dtype=np.float64)), float(measured.std(dtype=np.float64))
    if deviation <= 1e-6 * abs(mean) or deviation == 0:
        raise _Uniform(f"has the value {mean:g} everywhere")
    where = True if chosen is None else chosen
    np.subtract(values, np.float32(mean), out=values, where=where)
    np.divide(values, np.float32(deviation), out=values, where=where)


_RULES: dict[str, Callable[..., None]] = {
    "clip": _clip,
    "shift_scale": _shift_scale,
    "window": _window,
    "percentile": _percentile,
    "zscore": _zscore,
}
