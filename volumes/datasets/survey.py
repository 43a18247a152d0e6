"""What a dataset holds, case by case and over all cases, and every fault."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import BadInputError, about
from ..io.scans import read_source
from ..prompt_parsing import read_prompts
from .cases import Case, Dataset, read_case_mask
from .parallel import in_threads


def check_dataset(dataset: Dataset, *, on_case: Callable[[dict[str, Any]], None] | None = None) -> list[dict[str, Any]]:
    """Read every case and describe it; a case's faults go into its row and the next case follows.

    A row holds JSON values: "name", "split" ("training" or "test"), "shape" (D, H, W), "spacing" (mm along d, h, w),
    "axis_codes", "intensity" (per channel name the percentiles "p0.5", "p50" and "p99.5"), "label_voxels" (per class
    name), and "fault", each None where it does not apply. `on_case` gets each row as it is done.
    """
    cases = [*(("training", case) for case in dataset.training), *(("test", case) for case in dataset.test)]
    rows = []
    for (kind, case), description in zip(cases, in_threads(lambda job: _describe(job[1], dataset), cases), strict=True):
        rows.append({"name": case.name, "split": kind, **description})
        if on_case is not None:
            on_case(rows[-1])
    return rows


def ranges(dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """What the readable cases among the rows of check_dataset have, by title: voxels, spacing, intensity, classes."""
    read = [row for row in rows if row["shape"]]
    distributions = [
        (f"{title}, {name}", [row[key][axis] for row in read])
        for title, key in (("voxels", "shape"), ("spacing, mm", "spacing"))
        for axis, name in enumerate("dhw")
    ]
    for channel in dataset.channels:
        for level in ("p0.5", "p50", "p99.5"):
            distributions.append(
                (f"{channel}, {level} of intensity", [row["intensity"][channel][level] for row in read])
            )
    distributions = [(title, values) for title, values in distributions if values]
    counted = [row["label_voxels"] for row in rows if row["label_voxels"]]
    for name in list(dataset.labels.values())[1:]:
        present = [voxels[name] for voxels in counted if voxels[name]]
        title = f"{name}, voxels ({len(present)} of {len(counted)} masks)"
        distributions += [(title, present or [0])] if counted else []
    return distributions


def absent_classes(dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classes that no readable mask of the training cases holds, by name; none where there is no mask at all."""
    counted = [row["label_voxels"] for row in rows if row["split"] == "training" and row["label_voxels"]]
    names = list(dataset.labels.values())[1:]
    return [name for name in names if counted and not any(voxels[name] for voxels in counted)]


def _describe(case: Case, dataset: Dataset) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("shape", "spacing", "axis_codes", "intensity", "label_voxels", "fault"))
    faults = []
    geometry = None
    try:
        volume = read_source(case.image, channels=len(dataset.channels))
        geometry = volume.geometry
        row["shape"] = list(geometry.shape)
        row["spacing"] = list(geometry.spacing)
        row["axis_codes"] = geometry.axis_codes
        row["intensity"] = {
            channel: dict(zip(("p0.5", "p50", "p99.5"), np.percentile(v, (0.5, 50, 99.5)).tolist(), strict=True))
            for channel, v in zip(dataset.channels, volume.array, strict=True)
        }
    except BadInputError as error:
        faults.append(str(error))
    if case.label is not None:
        try:
            mask = read_case_mask(case, dataset, geometry)
            counts = np.bincount(mask.ravel(), minlength=len(dataset.labels)).tolist()
            row["label_voxels"] = {name: counts[label] for label, name in dataset.labels.items()}
        except BadInputError as error:
            faults.append(str(error))
    if case.prompts is not None and geometry is not None:
        try:
            with about(case.prompts):
                prompts = read_prompts(case.prompts, dataset.labels)
                prompts.onto(geometry.oriented("SPL"), scan=geometry, classes=len(dataset.labels))
        except BadInputError as error:
            faults.append(str(error))
    row["fault"] = "\n".join(faults) or None
    return row
