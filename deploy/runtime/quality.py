"""What the device can tell about a scan and its mask without knowing the truth: flags, not errors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...volumes.geometry import Geometry, Volume

_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_ENOUGH = 1 << 17  # voxels, for a percentile
_COARSE = 2  # a scan with voxels so many times the plan's shows less than the network was trained on


def intensity_profile(scans: Iterable[np.ndarray], patches: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """What prepared scans [C, D, H, W] of the training data look like, channel by channel, as plain JSON values.

    "percentiles" are those of all `scans` together; "limit" is how far the furthest of the scans and of the training
    `patches` is from them (mean distance of the percentiles: the Wasserstein distance of two distributions, roughly).
    A scan that is made of such patches cannot be further away: for a mixture that distance is at most the mean over
    its parts.
    """
    thinned = [np.stack([_thinned(channel) for channel in scan]) for scan in scans]
    found = []
    for channel, values in enumerate(np.concatenate(thinned, axis=1)):
        pooled = np.percentile(values, _PERCENTILES)
        parts = [part[channel] for part in (*thinned, *patches)]
        limit = max(float(np.abs(_percentiles(part) - pooled).mean()) for part in parts)
        found.append({"percentiles": [round(float(p), 6) for p in pooled], "limit": round(limit, 6)})
    return found


def flags(
    prepared: Volume,
    source: Geometry,
    labels: np.ndarray,
    *,
    profile: Sequence[Mapping[str, Any]],
    spacing: Sequence[float | None] | None,
) -> list[str]:
    """One line for everything that makes a mask doubtful; `profile` as intensity_profile made it,
    empty for a package from before there was one."""
    found = []
    for channel, (values, known) in enumerate(zip(prepared.array, profile, strict=False)):
        distance = float(np.abs(_percentiles(values) - known["percentiles"]).mean())
        if distance > known["limit"]:
            found.append(
                f"channel {channel}: intensities unlike the training data (distance {distance:.3g}, there "
                f"up to {known['limit']:.3g}): another modality, other units, another body part?"
            )
    own = source.oriented(prepared.geometry.axis_codes).spacing
    for axis, (mm, wanted) in enumerate(zip(own, spacing or (None, None, None), strict=True)):
        if wanted is not None and mm > _COARSE * wanted:
            found.append(f"voxels of {mm:.3g} mm along {'dhw'[axis]}, the network works on {wanted:.3g} mm")
    if not labels.any():
        found.append("nothing was found: every voxel is background")
    return found


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(_thinned(values), _PERCENTILES)


def _thinned(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _ENOUGH)]
