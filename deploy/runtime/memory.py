"""How much memory this process uses, and how much a scan will need: what `--ram` rests on."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from ...errors import BadInputError, UsageError
from ...volumes.geometry import Geometry
from ...volumes.pipeline import Model
from ...volumes.plan import grid

_FLOAT = 4  # bytes
# What the allocators of the interpreter and of the system waste.
_WASTED_SHARE = 1.1
_WASTED_BYTES = 32e6
_SLAB = 8 * _FLOAT << 20  # resampling: a handful of arrays of a million voxels


def peak_bytes() -> float | None:
    """Largest resident memory of this process so far; None where the system does not say."""
    # Not ru_maxrss: there Linux counts the parent's memory too, from between fork and exec.
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS counts in bytes


def _status(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


class Budget:
    """`limit` bytes for the whole process, kept by doing fewer things at once and by refusing what cannot fit.

    Made once the model is loaded: it infers one patch, and every scan needs its memory on top of what the process then
    holds. Raises UsageError when that alone is more than the limit, or when the system does not say.
    """

    def __init__(self, limit: float, model: Model):
        self.limit, self._model = limit, model
        answer = model.infer(np.zeros((1, model.in_channels, *model.plan.patch), np.float32))
        if callable(answer):
            answer()
        peak = peak_bytes()
        if peak is None:
            raise UsageError("--ram: this system does not say how much memory a process uses; leave it out")
        if peak > limit:
            raise UsageError(
                f"--ram {limit / 1e6:.0f}M: loading {model.path} took {peak / 1e6:.0f} MB already; give more"
            )
        # A network that frees its working memory after each patch will take it again beside what a scan takes.
        self._held = peak if model.frees_memory else _status("VmRSS") or peak

    def at_once(self, source: Geometry, *, most: int, components: bool = False) -> int:
        """How many patches may be in the engine for a scan on `source`, at most `most`. Raises BadInputError when even
        one is too many.
        """
        needs = {count: self.needed(source, at_once=count, components=components) for count in range(most, 0, -1)}
        for count, need in needs.items():
            if need <= self.limit:
                return count
        raise BadInputError(
            f"a scan of {' x '.join(map(str, source.shape))} voxels needs up to {needs[1] / 1e6:.0f} MB with this "
            f"model; --ram allows {self.limit / 1e6:.0f} MB. Give more, or cut the scan to the part that matters."
        )

    def needed(self, source: Geometry, *, at_once: int, components: bool = False) -> float:
        """Bytes that the whole process takes at most while it reads, segments and saves a scan on `source`."""
        plan, channels, classes = self._model.plan, self._model.in_channels, len(self._model.class_names)
        voxels, patch = prod(source.shape), prod(plan.patch)
        network_grid = [max(n, width) for n, width in zip(grid(plan, source).shape, plan.patch, strict=True)]
        scan = _FLOAT * channels * voxels
        preprocessed = _FLOAT * channels * prod(network_grid)
        own_scale = any(rule["rule"] != "window" for rule in plan.intensity)  # percentiles sort a copy
        reading = 3 * scan  # as stored (up to 64 bits) and as float32
        preprocessing = (3 if own_scale else 2) * scan + 2 * preprocessed + _SLAB
        window = _FLOAT * classes * (plan.patch[0] + 1) * network_grid[1] * network_grid[2]
        patches = _FLOAT * patch * (at_once * (channels + 2 * classes) + classes + 1)
        segmenting = 2 * preprocessed + window * (1 + 1 / classes) + patches + 2 * voxels + _SLAB
        saving = (10 if components else 3) * voxels
        return self._held + _WASTED_SHARE * max(reading, preprocessing, segmenting, saving) + _WASTED_BYTES
