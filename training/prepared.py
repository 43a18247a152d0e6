"""Cases prepared once, by their plan, and read back as memory maps: a training set may be larger than memory."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import BadInputError, about
from ..volumes.datasets.parallel import in_threads
from ..volumes.datasets.registry import Case, Dataset, read_case, scan_digest
from ..volumes.files import file_digest
from ..volumes.geometry import Geometry
from ..volumes.plan import Plan
from ..volumes.preprocess import preprocess, preprocess_labels
from .prepared_files import has_arrays, read_arrays, write_arrays

ANCHORS = 2048  # voxels remembered per class, from which patches are centred


class Targets(Protocol):
    """A teacher's class probabilities for one case, uint8 [K, D, H, W]: an array, or a file that yields pieces."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any, /) -> np.ndarray: ...

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on its plan's grid: image float32 [C, D, H, W], labels [D, H, W] if it has a mask, teacher targets."""

    name: str
    image: np.ndarray
    labels: np.ndarray | None
    spacing: tuple[float, float, float]
    class_locations: dict[int, np.ndarray]  # class -> [N, 3] voxel indices
    floor: float  # lowest prepared intensity: what lies around the scan
    soft_targets: Targets | None = None
    scan: str = ""  # the same for cases that are masks of one scan, byte by byte; "": a scan of its own

    @property
    def shape(self) -> tuple[int, int, int]:
        d, h, w = self.image.shape[1:]
        return d, h, w

    def with_soft_targets(self, targets: Targets) -> "PreparedCase":
        """Patches of a case without a mask are then centred on what its teacher found."""
        class_locations = (
            _class_locations(np.asarray(targets).argmax(0)) if self.labels is None else self.class_locations
        )
        return replace(self, soft_targets=targets, class_locations=class_locations)


def few_labels(dataset: Dataset, count: int, *, seed: int) -> Dataset:
    """The dataset with the masks of `count` training cases, drawn by the seed and the names; the others lose theirs.

    Raises BadInputError when fewer have one.
    """
    labelled = [case.name for case in dataset.training if case.label is not None]
    if len(labelled) < count:
        raise BadInputError(f"{dataset.root}: {len(labelled)} labelled training case(s), but labelled={count}")
    drawn = sorted(labelled, key=lambda name: hashlib.sha256(f"labelled:{seed}:{name}".encode()).digest())[:count]
    kept = tuple(case if case.name in drawn else replace(case, label=None) for case in dataset.training)
    return replace(dataset, training=kept)


def fingerprint(case: Case) -> str:
    """sha256 over the bytes of a case's scan and mask, or of its scan and prompts without a mask, file by file."""
    digest = hashlib.sha256()
    for source in (case.image, case.label):
        for path in source.files if source else ():
            digest.update(bytes.fromhex(file_digest(path)))
    if case.label is None and case.prompts is not None:
        digest.update(bytes.fromhex(file_digest(case.prompts)))
    return digest.hexdigest()


def prepare_case(case: Case, dataset: Dataset, plan: Plan, cache: Path) -> PreparedCase:
    """Prepare one case, or read it from the cache, which is keyed by the plan, the files' bytes and the masks' classes.

    Raises BadInputError when the scan or its mask cannot be used, IntegrityError for a damaged file of the cache.
    """
    folder = cache / "prepared" / plan.digest()[:16]
    stem = fingerprint(replace(case, prompts=None))[:32]
    if dataset.codes is not None or dataset.merged is not None:
        stem += "-" + hashlib.sha256(repr((dataset.codes, dataset.merged)).encode()).hexdigest()[:8]
    parts = ("image", "affine") if case.label is None else ("image", "affine", "labels")
    if not has_arrays(folder, stem, parts):
        volume, mask = read_case(case, dataset)
        with about(case.image.place):
            prepared = preprocess(volume, plan)
        made = {"image": prepared.array, "affine": prepared.geometry.affine}
        if mask is not None:
            made["labels"] = preprocess_labels(mask, volume.geometry, plan)
        write_arrays(folder, stem, made)
    arrays = read_arrays(folder, stem, parts)
    image, labels = arrays["image"], arrays.get("labels")
    geometry = Geometry(affine=np.array(arrays["affine"]), shape=image.shape[1:])
    class_locations = {} if labels is None else _class_locations(labels)
    floor, scan = float(image.min()), scan_digest(case)
    return PreparedCase(case.name, image, labels, geometry.spacing, class_locations, floor, scan=scan)


def prepare_cases(
    cases: Sequence[Case], dataset: Dataset, plan: Plan, cache: Path, *, on_case: Callable[[str], None]
) -> list[PreparedCase]:
    """Several at a time, a thread per core; `on_case` gets each name in the order of the cases."""
    prepared = []
    for case in in_threads(lambda case: prepare_case(case, dataset, plan, cache), cases):
        prepared.append(case)
        on_case(case.name)
    return prepared


def _class_locations(labels: np.ndarray) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    locations = {}
    for value in np.unique(labels):
        if value:
            voxels = np.argwhere(labels == value)
            if len(voxels) > ANCHORS:
                voxels = voxels[rng.choice(len(voxels), ANCHORS, replace=False)]
            locations[int(value)] = voxels
    return locations
