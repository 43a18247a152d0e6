"""How much memory this process uses, and how much a scan will need: what `--ram` rests on."""

from __future__ import annotations

import functools
from math import prod

import numpy as np

from ...errors import BadInputError, UsageError
from ...volumes.geometry import Geometry
from ...volumes.memory import available_memory, peak_bytes, process_status
from ...volumes.pipeline import Model
from ...volumes.plan import grid

_FLOAT = 4  # bytes
# What the allocators of the interpreter and of the system waste.
_WASTED_SHARE = 1.03
_WASTED_BYTES = 12e6
# More than a network's working memory usually is: with that much to spare it need not be measured.
_NETWORK = 2e9
_VOXEL = 400  # bytes of a network's working memory for a voxel of its patch, and more than most take
_SLAB = 3 * _FLOAT << 20  # resampling: three arrays of a million voxels; two more where labels are chosen


class Budget:
    """Memory for the whole process, kept by doing fewer things at once and by refusing what cannot fit.

    `limit` in bytes is what `--ram` allows; without one (None) it is what the machine, or the container, has left when
    a scan comes. Made once the model is loaded. Where memory is limited or scarce it infers one patch, and every scan
    needs its memory on top of what the process then holds. Raises UsageError when that alone is more than the limit,
    or when the system does not say how much a process uses.
    """

    def __init__(self, limit: float | None, model: Model):
        self.limit, self._model, self._loaded = limit, model, 0.0
        if limit is not None and self.held > limit:
            raise UsageError(
                f"--ram {limit / 1e6:.0f}M: loading {model.path} took {self.held / 1e6:.0f} MB already; give more"
            )

    @functools.cached_property
    def held(self) -> float:
        """Bytes that the process holds before it has seen a scan, the network's working memory included: that of the
        small graph where there are two.
        """
        model = self._model.small or self._model
        self._loaded = process_status("VmRSS") or 0.0
        answer = model.infer(np.zeros((1, model.in_channels, *model.plan.patch), np.float32))
        if callable(answer):
            answer()
        peak = peak_bytes()
        if peak is None:
            raise UsageError("--ram: this system does not say how much memory a process uses; leave it out")
        # A network that frees its working memory after each patch will take it again beside what a scan takes.
        return peak if model.frees_memory else process_status("VmRSS") or peak

    def choose(self, source: Geometry, *, components: bool = False, reading: float = 0) -> tuple[Model, int]:
        """The model for a scan on `source`, and how many patches may be in its engine.

        Of two graphs the one that computes fewer voxels, or the small one where that one's patches take too much.
        Raises BadInputError as at_once.
        """
        small = self._model.small
        fitting = self._model.fitting(grid(self._model.plan, source).shape)
        if small is not None and fitting is not small:
            try:
                return fitting, self._at_once(fitting, source, fitting.at_once, components=components, reading=reading)
            except BadInputError:
                fitting = small
        return fitting, self._at_once(fitting, source, fitting.at_once, components=components, reading=reading)

    def at_once(self, source: Geometry, *, most: int, components: bool = False, reading: float = 0) -> int:
        """How many patches may be in the engine for a scan on `source`, at most `most`.

        `reading` is what reading the scan takes, in bytes; 0 when that is done. Raises BadInputError when even one
        patch is too many.
        """
        return self._at_once(self._model, source, most, components=components, reading=reading)

    def _at_once(self, model: Model, source: Geometry, most: int, *, components: bool, reading: float) -> int:
        if self.limit is None:
            resident = process_status("VmRSS")
            if resident is None:
                return most
            limit = resident + available_memory()
            network = max(_NETWORK, _VOXEL * prod(model.plan.patch))
            scan = self._scan(model, source, at_once=most, components=components, reading=reading)
            if resident + network + scan < limit:
                return most
            allowed = f"{limit / 1e6:.0f} MB are free here"
        else:
            limit, allowed = self.limit, f"--ram allows {self.limit / 1e6:.0f} MB"
        needs = {
            count: self._holding(model)
            + self._scan(model, source, at_once=count, components=components, reading=reading)
            for count in range(most, 0, -1)
        }
        for count, need in needs.items():
            if need <= limit:
                return count
        raise BadInputError(
            f"a scan of {' x '.join(map(str, source.shape))} voxels needs up to {needs[1] / 1e6:.0f} MB with this "
            f"model; {allowed}. Give more, or cut the scan to the part that matters."
        )

    def needed(self, source: Geometry, *, at_once: int, components: bool = False, reading: float = 0) -> float:
        """Bytes that the whole process takes at most while it reads, segments and saves a scan on `source`."""
        model = self._model
        scan = self._scan(model, source, at_once=at_once, components=components, reading=reading)
        return self._holding(model) + scan

    def _holding(self, model: Model) -> float:
        """`held`, with the working memory of the model's own patch: it grows as the patch does."""
        small = self._model.small
        if small is None or model is small:
            return self.held
        working = max(0.0, self.held - self._loaded)
        return self.held + working * (prod(model.plan.patch) / prod(small.plan.patch) - 1)

    def _scan(self, model: Model, source: Geometry, *, at_once: int, components: bool, reading: float) -> float:
        """Bytes that a scan takes beside what the process holds."""
        plan, channels, classes = model.plan, model.in_channels, len(model.class_names)
        voxels, patch = prod(source.shape), _FLOAT * prod(plan.patch)
        shape = grid(plan, source).shape
        padded_shape = [max(n, width) for n, width in zip(shape, plan.patch, strict=True)]
        scan, preprocessed, padded = (_FLOAT * channels * prod(each) for each in (source.shape, shape, padded_shape))
        copies = 1 if all(rule["rule"] == "window" for rule in plan.intensity) else 2  # percentiles sort one more
        preprocessing = scan + max(copies * scan, scan + preprocessed, 2 * preprocessed) + _SLAB
        window = _FLOAT * classes * (plan.patch[0] + 1) * padded_shape[1] * padded_shape[2]
        labels = voxels if classes <= 256 else 2 * voxels
        patches = at_once * patch * (channels + classes) + patch
        passing = max(
            window / classes, patch * classes, 5 * _SLAB / 3
        )  # what one step of the averaging takes for a moment
        segmenting = preprocessed + (padded if padded > preprocessed else 0) + window + labels + patches + passing
        saving = preprocessed + (10 if components else 3) * voxels
        return _WASTED_SHARE * max(reading, preprocessing, segmenting, saving) + _WASTED_BYTES
