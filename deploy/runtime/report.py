"""What a run of the device did: times, memory, organ volumes."""

import statistics
from math import prod
from typing import Any

import numpy as np

from ...volumes.geometry import Geometry
from .memory import peak_bytes
from .package import Package


def volumes_ml(labels: np.ndarray, geometry: Geometry, names: dict[int, str]) -> dict[str, float]:
    """Volume of each class but the background in millilitres."""
    counts = np.zeros(max(names) + 1)
    for rows in labels:  # bincount makes eight bytes of each
        counts += np.bincount(rows.ravel(), minlength=counts.size)
    voxel = prod(geometry.spacing) / 1000
    return {name: round(float(counts[value] * voxel), 3) for value, name in names.items() if value != 0}


def run_report(package: Package, *, seconds_load: float, scans: list[dict], failed: list[dict]) -> dict[str, Any]:
    """The JSON report of one `predict`; "seconds_per_scan" is the median over the scans of all their stages."""
    totals = [sum(scan["seconds"].values()) for scan in scans]
    peak = peak_bytes()
    return {
        "package": package.manifest.name,
        "digest": package.manifest.digest,
        "engine": package.engine.version,
        "threads": package.engine.threads,
        "precision": package.manifest.precision,
        "inference_precision": package.engine.precision,
        "layer_precisions": package.engine.layer_precisions(),
        "overlap": package.plan.overlap,
        "seconds_load": seconds_load,
        "seconds_per_scan": statistics.median(totals) if totals else None,
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "scans": scans,
        "failed": failed,
    }
