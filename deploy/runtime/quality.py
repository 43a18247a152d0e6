"""What the device can tell about a scan and its mask without knowing the truth: flags, not errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...volumes.geometry import Geometry, Volume
from ...volumes.intensity_profile import profile_distance
from ...volumes.io.scans import Source, modality
from ...volumes.pipeline import Model

# What DICOM calls the modality of a channel, by the names that datasets use.
_MODALITIES = {
    **dict.fromkeys(("ct", "cect", "ncct"), "CT"),
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair", "adc"), "MR"),
    **dict.fromkeys(("pt", "pet"), "PT"),
    **dict.fromkeys(("us", "ultrasound"), "US"),
}
_COARSE = 2  # a scan with voxels so many times the plan's shows less than the network was trained on


def scan_flags(model: Model, scan: Source, preprocessed: Volume, labels: np.ndarray, geometry: Geometry) -> list[str]:
    """One line for everything that makes the mask of a scan doubtful.

    `preprocessed` is what the network saw, `labels` [D, H, W] the mask on the scan's own grid `geometry`. Intensities
    are compared with the training data where the model knows them: old runs and packages do not.
    """
    return [
        *modality_flags(modality(scan), model.channel_names),
        *flags(preprocessed, geometry, labels, profile=model.intensities, spacing=model.plan.spacing),
    ]


def flags(
    preprocessed: Volume,
    source: Geometry,
    labels: np.ndarray,
    *,
    profile: Sequence[Mapping[str, Any]],
    spacing: Sequence[float | None] | None,
) -> list[str]:
    """One line for everything that makes a mask doubtful.

    `profile` is what intensity_profile returned for the training data, empty for a model from before there was one;
    `spacing` (mm) is the plan's.
    """
    lines = []
    for channel, (values, known) in enumerate(zip(preprocessed.array, profile, strict=False)):
        distance = profile_distance(values, known)
        if distance > known["limit"]:
            lines.append(
                f"channel {channel}: intensities unlike the training data (distance {distance:.3g}, there "
                f"up to {known['limit']:.3g}): another modality, other units, another body part?"
            )
    own = source.oriented(preprocessed.geometry.axis_codes).spacing
    for axis, (mm, plan_mm) in enumerate(zip(own, spacing or (None, None, None), strict=True)):
        if plan_mm is not None and mm > _COARSE * plan_mm:
            lines.append(f"voxels of {mm:.3g} mm along {'dhw'[axis]}, the network works on {plan_mm:.3g} mm")
    if not labels.any():
        lines.append("nothing was found: every voxel is background")
    return lines


def modality_flags(word: str | None, channel_names: Sequence[str]) -> list[str]:
    """One line for a scan of another modality (`word`, of DICOM) than the model was trained on, if both are known."""
    expected = {_MODALITIES.get(name.strip().casefold()) for name in channel_names}
    if word is None or None in expected or not expected or word in expected:
        return []
    return [f"the scan says modality {word}, the model was trained on {', '.join(channel_names)}"]
