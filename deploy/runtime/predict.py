"""One scan from file to file on the device, and what was measured on the way."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...errors import about
from ...volumes.components import largest_components
from ...volumes.io.nifti import read_geometry
from ...volumes.io.scans import Source, is_nifti, read_source, write_mask
from ...volumes.prompts import ScanPrompts
from .memory import Budget
from .package import AT_ONCE, Package
from .quality import flags
from .report import volumes_ml


def predict(
    package: Package,
    scan: Source,
    mask: Path,
    *,
    budget: Budget | None = None,
    largest_component: bool = False,
    prompts: ScanPrompts | None = None,
) -> dict[str, Any]:
    """Write the mask of a scan; its part of the run report, seconds by stage included.

    "network" is the time spent waiting for the engine, "postprocess" that of stitching and resampling, most of it while
    the engine works on the next patch. Raises BadInputError for a scan that cannot be used or does not fit the budget.
    """
    times = [time.perf_counter()]
    if budget is not None and is_nifti(scan.files[0]):  # from the header, before the voxels take any memory
        budget.at_once(read_geometry(scan.files[0]), most=1, components=largest_component)
    volume = read_source(scan, channels=package.in_channels)
    source = volume.geometry
    at_once = budget.at_once(source, most=AT_ONCE, components=largest_component) if budget else AT_ONCE
    times.append(time.perf_counter())
    with about(scan.place):
        prepared = package.prepare(volume)
    del volume  # the network sees the prepared scan only
    times.append(time.perf_counter())
    busy = package.engine.seconds
    labels = package.labels_of(prepared, source, at_once=at_once, prompts=prompts)
    busy = package.engine.seconds - busy
    if largest_component:
        labels = largest_components(labels)
    times.append(time.perf_counter())
    write_mask(mask, labels, source, source=scan, names=package.labels)
    times.append(time.perf_counter())
    read, preprocess, segment, save = (after - before for before, after in pairwise(times))
    return {
        "scan": str(scan.place),
        "mask": str(mask),
        "shape": list(source.shape),
        "spacing_mm": list(source.spacing),
        "seconds": {
            "read": read,
            "preprocess": preprocess,
            "network": busy,
            "postprocess": segment - busy,
            "save": save,
        },
        "volumes_ml": volumes_ml(labels, source, package.labels),
        "flags": flags(
            prepared,
            source,
            labels,
            profile=package.manifest.intensities,
            spacing=package.plan.spacing,
        ),
    }
