"""Cases prepared once, by their plan, and read back as memory maps: a training set may be larger than memory."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..volumes.dataset import Case, Dataset, read_labelled_case
from ..volumes.files import atomic_path, make_folder
from ..volumes.geometry import Geometry
from ..volumes.plan import Plan, prepare, prepare_labels

ANCHORS = 2048  # voxels remembered per class, from which patches are centred


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on its plan's grid: image float32 [C, D, H, W], labels [D, H, W], teacher uint8 [K, D, H, W]."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    anchors: dict[int, np.ndarray]  # class -> [N, 3] voxel indices
    floor: float  # lowest prepared intensity: what lies around the scan
    teacher: np.ndarray | None = None

    def with_teacher(self, probabilities: np.ndarray) -> "PreparedCase":
        return replace(self, teacher=probabilities)


def fingerprint(case: Case) -> str:
    """sha256 over the bytes of a case's image and mask."""
    digest = hashlib.sha256()
    for path in (case.image, case.label):
        if path is not None:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def prepare_case(case: Case, dataset: Dataset, plan: Plan, cache: Path) -> PreparedCase:
    """Prepare one labelled case, or read it from the cache, which is keyed by the plan and the files' bytes.

    Raises BadInputError when the scan or its mask cannot be used.
    """
    folder = cache / "prepared" / plan.digest()[:16]
    stem = fingerprint(case)[:32]
    files = [folder / f"{stem}.{part}.npy" for part in ("image", "labels", "affine")]
    if not all(path.exists() for path in files):
        volume, mask = read_labelled_case(case, dataset)
        prepared = prepare(volume, plan)
        labels = prepare_labels(mask, volume.geometry, plan)
        make_folder(folder)
        for path, array in zip(files, (prepared.array, labels, prepared.geometry.affine), strict=True):
            save_array(path, array)
    image, labels, affine = (np.load(path, mmap_mode="r") for path in files)
    geometry = Geometry(affine=np.array(affine), shape=labels.shape)
    return PreparedCase(case.name, image, labels, geometry.spacing, _anchors(labels), float(image.min()))


def prepare_cases(
    cases: Sequence[Case], dataset: Dataset, plan: Plan, cache: Path, *, on_case: Callable[[str], None]
) -> list[PreparedCase]:
    prepared = []
    for case in cases:
        prepared.append(prepare_case(case, dataset, plan, cache))
        on_case(case.name)
    return prepared


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one .npy atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def _anchors(labels: np.ndarray) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for value in np.unique(labels):
        if value:
            voxels = np.argwhere(labels == value)
            if len(voxels) > ANCHORS:
                voxels = voxels[rng.choice(len(voxels), ANCHORS, replace=False)]
            found[int(value)] = voxels
    return found
