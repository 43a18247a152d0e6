"""What the intensities of training data look like, and how far a scan is from them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_ENOUGH = 1 << 17  # voxels, for a percentile


def intensity_profile(scans: Iterable[np.ndarray], patches: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """What preprocessed scans [C, D, H, W] of the training data look like, channel by channel, as plain JSON values.

    "percentiles" are those of all `scans` together; "limit" is how far the furthest of the scans and of the training
    `patches` is from them (mean distance of the percentiles: the Wasserstein distance of two distributions, roughly).
    A scan that is made of such patches cannot be further away: for a mixture that distance is at most the mean over
    its parts.
    """
    thinned = [np.stack([_thinned(channel) for channel in scan]) for scan in scans]
    profile = []
    for channel, values in enumerate(np.concatenate(thinned, axis=1)):
        pooled = np.percentile(values, _PERCENTILES)
        parts = [part[channel] for part in (*thinned, *patches)]
        limit = max(float(np.abs(_percentiles(part) - pooled).mean()) for part in parts)
        profile.append({"percentiles": [round(float(p), 6) for p in pooled], "limit": round(limit, 6)})
    return profile


def profile_distance(values: np.ndarray, known: Mapping[str, Any]) -> float:
    """How far a channel of a preprocessed scan is from its entry of a profile: the mean distance of the percentiles."""
    return float(np.abs(_percentiles(values) - known["percentiles"]).mean())


def is_profile(values: Any) -> bool:
    """Whether a JSON value is what intensity_profile gives."""
    return isinstance(values, list) and all(
        isinstance(each, dict) and is_percentiles(each.get("percentiles")) and _is_number(each.get("limit"))
        for each in values
    )


def is_percentiles(values: Any) -> bool:
    """Whether a JSON value is as many finite numbers as a profile has percentiles, none less than the one before."""
    return (
        isinstance(values, list)
        and len(values) == len(_PERCENTILES)
        and all(map(_is_number, values))
        and values == sorted(values)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e9


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(_thinned(values), _PERCENTILES)


def _thinned(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _ENOUGH)]
