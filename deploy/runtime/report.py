"""What a run of the device did: times, memory, organ volumes."""

import statistics
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...volumes.geometry import Geometry
from .package import Package


def volumes_ml(labels: np.ndarray, geometry: Geometry, names: dict[int, str]) -> dict[str, float]:
    """Volume of each class but the background in millilitres."""
    counts = np.bincount(labels.ravel(), minlength=max(names) + 1)
    voxel = prod(geometry.spacing) / 1000
    return {name: round(float(counts[value] * voxel), 3) for value, name in names.items() if value != 0}


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process in MB; None where the system does not say."""
    try:
        # Not ru_maxrss: there Linux counts the parent's memory too, from between fork and exec.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts in bytes


def run_report(package: Package, *, seconds_load: float, scans: list[dict], failed: list[dict]) -> dict[str, Any]:
    """The JSON report of one `predict`; "seconds_per_scan" is the median over the scans of all their stages."""
    totals = [sum(scan["seconds"].values()) for scan in scans]
    return {
        "package": package.manifest["name"],
        "digest": package.manifest["digest"],
        "engine": package.engine.version,
        "threads": package.engine.threads,
        "precision": package.manifest["precision"],
        "inference_precision": package.engine.precision,
        "layer_precisions": package.engine.layer_precisions(),
        "seconds_load": seconds_load,
        "seconds_per_scan": statistics.median(totals) if totals else None,
        "peak_memory_mb": peak_memory_mb(),
        "scans": scans,
        "failed": failed,
    }
