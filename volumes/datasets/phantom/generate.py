"""The built-in phantom: a family of generated abdominal CTs with six labelled organs, for demos, tests and benchmarks.

It needs no download and holds no patient. Intensity alone does not find the organs (bowel, stomach, vena cava and
muscle share theirs), nor does position (patients differ in size, pose and where their organs lie).
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....errors import OutputError, UsageError
from ...files import atomic_folder, make_folder, write_json
from ...geometry import Geometry, Volume, reorient
from ...io.nifti import write_labels, write_scan
from .anatomy import LABELS, Abdomen, Canvas, rotation

__all__ = ["LABELS", "make_case", "write_phantom"]

VERSION = 1  # counts the changes that make a seed another patient
_ORIENTATIONS = ("SPL", "SPR", "SAL", "SAR", "IPL", "RIP")  # how archives store scans; NIfTI writes them backwards
_FRACTIONS = (0.4, 0.1, 0.15, 0.15, 0.1, 0.1)


def make_case(
    seed: int, *, shape: tuple[int, int, int] | None = None, orientation: str | None = None
) -> tuple[Volume, np.ndarray]:
    """One patient: CT in whole HU, float32 [1, D, H, W], and its mask uint8 [D, H, W] with the classes `LABELS`.

    `shape` is (slices, rows, columns) of the axial stack; another shape shows the same patient in other voxels.
    Without one there are 36 to 44 slices, each about 80 x 96. `orientation` is the direction in which d, h and w
    increase, e.g. "SPL"; without one each patient has their own. Raises UsageError for a negative seed.
    """
    _refuse_negative(seed)
    rng = np.random.default_rng((seed, 0))
    codes = orientation or str(rng.choice(_ORIENTATIONS, p=_FRACTIONS))
    cavity = (128 * rng.uniform(0.88, 1.1), 86 * rng.uniform(0.88, 1.12))
    fat = rng.uniform(8, 26)
    pose = np.eye(4)
    pose[:3, :3] = rotation(rng.uniform(-4, 4, 3))
    pose[:3, 3] = rng.uniform(-60, 60, 3)
    geometry = _grid(rng, pose, cavity, fat, shape)
    canvas = Canvas(np.linalg.inv(pose) @ geometry.affine, geometry.shape)
    Abdomen(canvas, rng, cavity, fat=fat).paint()
    noise = _noise(np.random.default_rng((seed, 1)), geometry.shape)
    hu = np.clip(np.rint(canvas.hu + noise), -1024, 3071)
    stored = geometry.oriented(codes)
    array = np.ascontiguousarray(reorient(hu[None], geometry, stored))
    return Volume(array, stored), np.ascontiguousarray(reorient(canvas.mask, geometry, stored))


def write_phantom(root: str | Path, *, training: int, test: int, seed: int, organs_apart: bool = False) -> Path:
    """Write a dataset in the layout of the Medical Segmentation Decathlon and return its folder, `root`.

    With `organs_apart` every organ of every scan is a case of its own, `phantom_train_003_2`, with label 1: which organ
    is meant only a prompt can say.

    The folder appears under its name only when it is complete. One that already holds this phantom is returned as it
    is. Raises OutputError when it holds anything else, UsageError for a negative seed.
    """
    root = Path(root)
    _refuse_negative(seed)
    made = {"version": VERSION, "training": training, "test": test, "seed": seed}
    if organs_apart:
        made["organs_apart"] = True
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if _phantom_in(root) != made:
            raise OutputError(
                f"{root}: holds something else than the phantom {made}. Name another folder, or remove this one."
            )
        return root
    try:
        with atomic_folder(root) as draft:
            _write_cases(draft, made)
    except OutputError:
        if _phantom_in(root) != made:
            raise
    return root  # written now, or by another process meanwhile


def _write_cases(root: Path, made: dict[str, int]) -> None:
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        make_folder(root / name)
    apart = "organs_apart" in made
    training = list(_write_split(root, "Tr", made["training"], made["seed"], organs_apart=apart))
    test = list(_write_split(root, "Ts", made["test"], made["seed"], organs_apart=apart))
    content = {
        "name": "phantom",
        "description": "Generated abdominal CTs, no patient data. Written by samkd.",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": LABELS[0], "1": "organ"} if apart else {str(v): name for v, name in LABELS.items()},
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": test,
        "phantom": made,
    }
    write_json(root / "dataset.json", content)


def _write_split(root: Path, split: str, count: int, seed: int, *, organs_apart: bool) -> Iterator[dict[str, str]]:
    for index in range(count):
        # Each split counts on its own: more training cases leave the test cases as they are.
        source = np.random.SeedSequence((seed, split == "Ts", index))
        volume, mask = make_case(int(source.generate_state(1)[0]))
        masks = {"": mask}
        if organs_apart:
            masks = {
                f"_{organ}": (mask == organ).astype(np.uint8) for organ in LABELS if organ and (mask == organ).any()
            }
        scan = None
        for part, one in masks.items():
            name = f"phantom_{'test' if split == 'Ts' else 'train'}_{index:03d}{part}.nii.gz"
            image, label = f"images{split}/{name}", f"labels{split}/{name}"
            if scan is None:
                scan = root / image
                write_scan(scan, volume)
            else:
                shutil.copyfile(scan, root / image)  # the same bytes: it is the same scan
            write_labels(root / label, one, volume.geometry, like=scan)
            yield {"image": f"./{image}", "label": f"./{label}"}


def _phantom_in(root: Path) -> object:
    try:
        content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("phantom") if isinstance(content, dict) else None


def _grid(
    rng: np.random.Generator,
    pose: np.ndarray,
    cavity: tuple[float, float],
    fat: float,
    shape: tuple[int, int, int] | None,
) -> Geometry:
    """The axial stack (d, h, w) -> (S, P, L) around the patient, its axes turned from theirs by up to 10 degrees."""
    length, pixel = rng.uniform(195, 225), rng.uniform(3.5, 4.5)  # mm
    drawn = (int(rng.integers(36, 45)), int(rng.integers(72, 89)), int(rng.integers(92, 105)))
    height, width = 2 * (cavity[1] + fat + 35), 2 * (cavity[0] + fat + 36)
    fitting = max(height / (shape or drawn)[1], width / (shape or drawn)[2])
    shape, pixel = (shape, fitting) if shape else (drawn, max(fitting, pixel))
    turned = rng.uniform() < 0.6
    turn = rotation(rng.uniform(-10, 10) * np.array([1, 0, 0]) + rng.uniform(-4, 4, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]) * np.array([length / shape[0], pixel, pixel])
    if turned:
        affine[:3, :3] = turn @ affine[:3, :3]
    middle = pose[:3, :3] @ (np.array([0, -8, -4]) + rng.uniform(-8, 8, 3)) + pose[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(affine, shape)


def _noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Scanner noise in HU, correlated between neighbouring voxels as a reconstruction filter leaves it."""
    sigma = rng.uniform(15, 25)
    d, h, w = shape
    white = rng.standard_normal((d, h + 2, w + 2), dtype=np.float32)
    rows = white[:, :-2] + 2 * white[:, 1:-1] + white[:, 2:]
    both = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return both * np.float32(sigma / math.sqrt(6 * 6))  # 1 + 4 + 1 per axis


def _refuse_negative(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"the phantom's seed is {seed}; expected 0 or more")
