"""A scan that is clicked into shape: encoded once, decoded again for every line of prompts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import SamkdError, about
from ...volumes.io.scans import Source, read_source, write_mask
from ...volumes.prompt_parsing import parse_prompts
from .package import Package
from .report import volumes_ml


def answers(package: Package, scan: Source, mask: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Write the mask without prompts, then once more for each line: all the prompts that hold from then on, as JSON
    (volumes.prompt_parsing describes it). Gives, each time, "mask", "seconds" (from the line to the written mask, the
    first from the scan) and "volumes_ml"; or "error" for prompts that cannot be used, and the mask stays as it was.

    Raises BadInputError for a scan that cannot be used, UsageError for a package without prompts.
    """
    package.accept()
    started = time.perf_counter()
    volume = read_source(scan, channels=package.in_channels)
    source = volume.geometry
    with about(scan.place):
        session = package.session(package.preprocess(volume), source)

    def answer(prompts: Any, started: float) -> dict[str, Any]:
        labels = session.labels(prompts)
        write_mask(mask, labels, source, source=scan, names=package.class_names)
        seconds = time.perf_counter() - started
        return {"mask": str(mask), "seconds": seconds, "volumes_ml": volumes_ml(labels, source, package.class_names)}

    yield answer(None, started)
    for number, line in enumerate(lines, start=1):
        started = time.perf_counter()
        try:
            prompts = parse_prompts(line, package.class_names, source=f"line {number}")
            package.accept(prompts.kinds)
            result = answer(prompts, started)
        except SamkdError as error:
            result = {"error": str(error)}
        yield result
