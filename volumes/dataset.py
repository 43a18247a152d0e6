"""Datasets on disk, in the layout of the Medical Segmentation Decathlon (Antonelli et al. 2022): dataset.json,
imagesTr, labelsTr, imagesTs and, where the test masks are known, labelsTs.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInputError
from .geometry import Geometry, Volume
from .nifti import read_labels, read_scan


@dataclass(frozen=True)
class Case:
    """One scan with its mask, if that is known; the name is the scan's file name without .nii or .nii.gz."""

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    name: str
    root: Path
    labels: dict[int, str]  # every class from 0, the background, without gaps
    channels: tuple[str, ...]  # what each channel of a scan is, e.g. ("CT",)
    training: tuple[Case, ...]
    test: tuple[Case, ...]


def read_dataset(root: str | Path) -> Dataset:
    """Read `root`/dataset.json and check all that can be checked without opening a scan.

    A test entry that names only its scan gets the mask of the same file name in labelsTs, if there is one. Raises one
    BadInputError with every fault: keys and classes, files that are missing, lie outside the dataset or are listed
    twice, cases in both training and test, no case at all.
    """
    root = Path(root)
    path = root / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(
            f"{path}: cannot be read ({error.strerror or error}). A dataset is a folder with a dataset.json in the "
            "layout of the Medical Segmentation Decathlon."
        ) from error
    except ValueError as error:
        raise BadInputError(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: holds a {type(content).__name__}; expected an object.")
    faults: list[str] = []
    labels = _numbered(content, "labels", faults)
    channels = _numbered(content, "modality", faults)
    entries = _Entries(root, faults)
    training, test = entries.cases(content, "training"), entries.cases(content, "test")
    if not training and not test and isinstance(content.get("training"), list):
        faults.append("lists no case, neither for training nor for test")
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise BadInputError(f"{path}: has {len(faults)} fault(s); correct them:{listed}")
    return Dataset(
        name=str(content.get("name") or root.resolve().name),
        root=root,
        labels=labels,
        channels=tuple(channels.values()),
        training=training,
        test=test,
    )


def read_case(case: Case, dataset: Dataset) -> tuple[Volume, np.ndarray | None]:
    """Scan [C, D, H, W] and mask [D, H, W] (None without one), which share one grid and hold declared classes only.

    Raises BadInputError.
    """
    volume = read_scan(case.image, channels=len(dataset.channels))
    if case.label is None:
        return volume, None
    return volume, _read_mask(case.label, case, dataset, volume.geometry)


def read_labelled_case(case: Case, dataset: Dataset) -> tuple[Volume, np.ndarray]:
    """Scan and mask of a case that must have one. Raises BadInputError."""
    volume, mask = read_case(case, dataset)
    if mask is None:
        raise BadInputError(f"{case.image}: this case has no mask; name one in dataset.json, or leave the case out.")
    return volume, mask


def split(cases: Sequence[Case], *, validation: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Cut cases into training and validation, each sorted by name.

    A case's side depends on the seed and the names alone, not on the order of the list. A `validation` fraction
    above 0 keeps at least one of two or more cases for validation, and one for training.
    """
    count = min(max(round(validation * len(cases)), int(validation > 0)), max(len(cases) - 1, 0))
    drawn = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case.name}".encode()).digest())
    held_out, rest = drawn[:count], drawn[count:]
    return (
        tuple(sorted(rest, key=lambda case: case.name)),
        tuple(sorted(held_out, key=lambda case: case.name)),
    )


def check_dataset(dataset: Dataset, *, on_case: Callable[[dict[str, Any]], None] | None = None) -> list[dict[str, Any]]:
    """Read every case and describe it; a case's faults go into its row and the next case follows.

    A row holds JSON values: "name", "split" ("training" or "test"), "shape" (D, H, W), "spacing" (mm along d, h, w),
    "axis_codes", "intensity" (per channel name the percentiles "p0.5", "p50" and "p99.5"), "label_voxels" (per class
    name), and "fault", each None where it does not apply. `on_case` gets each row as it is done.
    """
    rows = []
    for kind, cases in (("training", dataset.training), ("test", dataset.test)):
        for case in cases:
            rows.append({"name": case.name, "split": kind, **_describe(case, dataset)})
            if on_case is not None:
                on_case(rows[-1])
    return rows


def ranges(dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """What the readable cases among the rows of check_dataset have, by title: voxels, spacing, intensity, classes."""
    read = [row for row in rows if row["shape"]]
    found = [
        (f"{title}, {name}", [row[key][axis] for row in read])
        for title, key in (("voxels", "shape"), ("spacing, mm", "spacing"))
        for axis, name in enumerate("dhw")
    ]
    for channel in dataset.channels:
        for level in ("p0.5", "p50", "p99.5"):
            found.append((f"{channel}, {level} of intensity", [row["intensity"][channel][level] for row in read]))
    counted = [row["label_voxels"] for row in rows if row["label_voxels"]]
    for name in list(dataset.labels.values())[1:]:
        present = [voxels[name] for voxels in counted if voxels[name]]
        found.append((f"{name}, voxels ({len(present)} of {len(counted)} masks)", present))
    return [(title, values) for title, values in found if values]


def _describe(case: Case, dataset: Dataset) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("shape", "spacing", "axis_codes", "intensity", "label_voxels", "fault"))
    faults = []
    geometry = None
    try:
        volume = read_scan(case.image, channels=len(dataset.channels))
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
            mask = _read_mask(case.label, case, dataset, geometry)
            counts = np.bincount(mask.ravel(), minlength=len(dataset.labels)).tolist()
            row["label_voxels"] = {name: counts[label] for label, name in dataset.labels.items()}
        except BadInputError as error:
            faults.append(str(error))
    row["fault"] = "\n".join(faults) or None
    return row


def _read_mask(path: Path, case: Case, dataset: Dataset, scan: Geometry | None) -> np.ndarray:
    mask, geometry = read_labels(path)
    faults = []
    if scan is not None and geometry.shape != scan.shape:
        faults.append(f"has the shape {geometry.shape}, its scan {case.image.name} has {scan.shape}")
    elif scan is not None and not geometry.same_grid(scan, tolerance_mm=min(scan.spacing) / 10):
        distance = np.linalg.norm(geometry.corners() - scan.corners(), axis=1).max()
        faults.append(f"lies up to {distance:.3g} mm away from its scan {case.image.name}")
    unknown = [value for value in np.unique(mask).tolist() if value not in dataset.labels]
    if unknown:
        faults.append(f"holds the labels {unknown}; dataset.json declares {list(dataset.labels)}")
    if faults:
        raise BadInputError(
            f"{path}: {' and '.join(faults)}. Correct the mask, or declare its classes in dataset.json."
        )
    return mask


def _numbered(content: Mapping[str, Any], key: str, faults: list[str]) -> dict[int, str]:
    """The entries of {"0": name, "1": name, ...} in order; a fault when it is anything else."""
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        faults.append(f'"{key}" is {json.dumps(value)}; expected {{"0": name, ...}}')
        return {}
    wanted = [str(number) for number in range(len(value))]
    if set(value) != set(wanted):
        faults.append(f'"{key}" has the numbers {sorted(value)}; expected {wanted}, without gaps')
        return {}
    names = [value[number] for number in wanted]
    if any(not isinstance(name, str) or not name for name in names) or len(set(names)) != len(names):
        faults.append(f'"{key}" has the names {names}; expected different, non-empty ones')
        return {}
    return dict(enumerate(names))


class _Entries:
    """Turns the entries of dataset.json into cases and remembers what it has seen, across training and test."""

    def __init__(self, root: Path, faults: list[str]):
        self.root = root
        self.faults = faults
        self.files: dict[Path, str] = {}
        self.names: dict[str, str] = {}

    def cases(self, content: Mapping[str, Any], key: str) -> tuple[Case, ...]:
        entries = content.get(key, [] if key == "test" else None)
        if not isinstance(entries, list):
            self.faults.append(f'"{key}" is {json.dumps(entries)}; expected a list of cases')
            return ()
        announced = content.get("numTraining" if key == "training" else "numTest", len(entries))
        if announced != len(entries):
            self.faults.append(f'"{key}" lists {len(entries)} case(s) where {announced} are announced')
        cases = (self._case(entry, f"{key}[{i}]", key) for i, entry in enumerate(entries))
        return tuple(case for case in cases if case is not None)

    def _case(self, entry: Any, where: str, key: str) -> Case | None:
        if isinstance(entry, str) and key == "test":
            entry = {"image": entry}
        wanted = {"image", "label"} if key == "training" else {"image"}
        if not isinstance(entry, dict) or not wanted <= set(entry):
            self.faults.append(f"{where} is {json.dumps(entry)}; expected an object with {sorted(wanted)}")
            return None
        image = self._file(entry["image"], f"{where} image")
        if image is None:
            return None
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        first = self.names.setdefault(name, where)
        if first != where:
            self.faults.append(f"{where} is the case {name!r} again, after {first}")
        if "label" in entry:
            return Case(name, image, self._file(entry["label"], f"{where} label"))
        known = self.root / "labelsTs" / image.name
        return Case(name, image, known if known.is_file() else None)

    def _file(self, value: Any, where: str) -> Path | None:
        if not isinstance(value, str) or not value.endswith((".nii", ".nii.gz")):
            self.faults.append(f"{where} is {json.dumps(value)}; expected a path to a .nii or .nii.gz file")
            return None
        # By its spelling: a link inside the folder was put there by its owner and may point elsewhere.
        relative = Path(os.path.normpath(value))
        if relative.is_absolute() or relative.parts[0] == "..":
            self.faults.append(f"{where} {value!r} leaves the dataset's folder")
            return None
        path = self.root / relative
        if not path.is_file():
            self.faults.append(f"{where} {value!r} does not exist")
            return None
        first = self.files.setdefault(path.resolve(), where)
        if first != where:
            self.faults.append(f"{where} {value!r} is the same file as {first}")
        return path
