"""What a run of the device did: times, memory, organ volumes."""

import statistics
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ...volumes.geometry import Geometry
from ...volumes.memory import peak_bytes
from ...volumes.pipeline import Model


def volumes_ml(labels: np.ndarray, geometry: Geometry, class_names: Mapping[int, str]) -> dict[str, float]:
    """Volume of each class but the background in millilitres."""
    counts = np.zeros(max(class_names) + 1)
    for rows in labels:  # bincount makes eight bytes of each
        counts += np.bincount(rows.ravel(), minlength=counts.size)
    voxel = prod(geometry.spacing) / 1000
    return {name: round(float(counts[value] * voxel), 3) for value, name in class_names.items() if value != 0}


def run_report(
    model: Model, *, seconds_load: float, scans: list[dict[str, Any]], failed: list[dict[str, Any]]
) -> dict[str, Any]:
    """The JSON report of one `predict`; "seconds_per_scan" is the median over the scans of all their stages."""
    totals = [sum(scan["seconds"].values()) for scan in scans]
    peak = peak_bytes()
    return {
        **model.facts(),
        "seconds_load": seconds_load,
        "seconds_per_scan": statistics.median(totals) if totals else None,
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "scans": scans,
        "failed": failed,
    }
