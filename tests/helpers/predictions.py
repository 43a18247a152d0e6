"""Folders of predictions as other tools write them, made from label maps."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samkd.volumes.geometry import Geometry, Volume, reorient
from samkd.volumes.io.nifti import write_labels, write_scan


def soft(labels: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities float32 [K, D, H, W]: 0.9 for the class of a voxel, the rest for the others."""
    hot = np.stack([labels == value for value in range(classes)]).astype(np.float32)
    return 0.9 * hot + 0.1 / (classes - 1) * (1 - hot)


def write_label_map(folder: Path, case: str, labels: np.ndarray, geometry: Geometry) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder / f"{case}.nii.gz", labels, geometry, like=None)


def write_probabilities(folder: Path, case: str, probabilities: np.ndarray, geometry: Geometry) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_scan(folder / f"{case}.nii.gz", Volume(probabilities, geometry))


def write_nnunet(
    folder: Path,
    case: str,
    labels: np.ndarray,
    geometry: Geometry,
    *,
    names: Mapping[int, str],
    probabilities: np.ndarray | None = None,
    order: str | None = None,
) -> None:
    """What nnU-Net v2 leaves with --save_probabilities; `order` is that of its reading, the file's own by default."""
    write_label_map(folder, case, labels, geometry)
    values = soft(labels, len(names)) if probabilities is None else probabilities
    read = geometry.oriented(order) if order else geometry
    np.savez_compressed(folder / f"{case}.npz", probabilities=reorient(values, geometry, read).astype(np.float16))
    (folder / f"{case}.pkl").write_bytes(b"never read")
    content = {"labels": {name: number for number, name in names.items()}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def write_organs(folder: Path, case: str, labels: np.ndarray, geometry: Geometry, *, names: Mapping[int, str]) -> None:
    """TotalSegmentator's folder for a case, with a mask for each organ."""
    for value, name in names.items():
        if value:
            write_label_map(folder / case, name, (labels == value).astype(np.uint8), geometry)
