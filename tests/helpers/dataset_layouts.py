"""Every layout of a dataset that samkd reads, written tiny: LAYOUTS maps a name to a function that fills a folder.

Scans are generated: a bright box, the mask, on noise. Each dataset has `training` and `test` cases, the latter with
masks wherever the layout has a place for them.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from samkd.volumes import Geometry, Volume
from samkd.volumes.io.nifti import write_labels, write_scan

SHAPE = (6, 24, 32)  # slices, rows, columns
COLOURS = ((0, 0, 0), (0, 255, 0), (125, 255, 12))


def affine_of(codes: str, spacing: tuple[float, float, float] = (2.5, 1.0, 0.8)) -> np.ndarray:
    """The affine (d, h, w) -> RAS+ mm of axes that increase towards `codes`, e.g. "SPL"."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = (-40.5, 12.25, 7)
    return affine


def box(seed: int, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """A mask with a box of every class but the background, each somewhere else in every case."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for label in range(1, classes):
        corner = [int(rng.integers(0, max(1, n - n // 3))) for n in shape]
        mask[tuple(slice(c, c + max(1, n // 3)) for c, n in zip(corner, shape, strict=True))] = label
    return mask


def scan(seed: int, mask: np.ndarray, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.rint(rng.normal(0, 20, (channels, *mask.shape)) + 100 * (mask > 0) + 10 * mask).astype(np.float32)


def write_nifti(
    image: Path | Iterable[Path], label: Path | None, *, seed: int, classes: int, codes: str = "SPL", channels: int = 1
) -> None:
    """A scan (several files: one per channel) and its mask, `codes` naming the directions of its axes."""
    geometry = Geometry(affine_of(codes), SHAPE)
    mask = box(seed, SHAPE, classes)
    array = scan(seed, mask, channels)
    files = [image] if isinstance(image, Path) else list(image)
    for path in (*files, *([label] if label else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
    parts = [array] if len(files) == 1 else [array[i : i + 1] for i in range(channels)]
    for path, part in zip(files, parts, strict=True):
        write_scan(path, Volume(part, geometry))
    if label:
        write_labels(label, mask, geometry, like=files[0])


def write_picture(
    image: Path, label: Path | None, *, seed: int, classes: int, rgb: bool = True, values=None, mode: str = "L"
) -> None:
    """A picture and its mask; `values` stand for the classes in the mask (numbers, or colours in the mode RGB)."""
    mask = box(seed, SHAPE[1:], classes)
    pixels = np.clip(scan(seed, mask, 3 if rgb else 1) + 60, 0, 255).astype(np.uint8)
    for path in (image, *([label] if label else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.moveaxis(pixels, 0, -1) if rgb else pixels[0]).save(image)
    if label:
        stored = Image.fromarray(np.array(values or range(classes), np.uint8)[mask])
        if mode == "P":
            stored.putpalette([v for colour in COLOURS for v in colour])
        stored.save(label)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def decathlon(
    root: Path,
    *,
    training: int = 3,
    test: int = 1,
    codes: str = "SPL",
    labels: tuple[str, ...] = ("organ", "tumour"),
    modality: tuple[str, ...] = ("CT",),
) -> Path:
    listed = {}
    for part, count in (("Tr", training), ("Ts", test)):
        listed[part] = [f"{'case' if part == 'Tr' else 'test'}_{i:03d}.nii.gz" for i in range(count)]
        for i, name in enumerate(listed[part]):
            files = (root / f"images{part}" / name, root / f"labels{part}" / name)
            seed = i + 100 * (part == "Ts")
            write_nifti(*files, seed=seed, classes=len(labels) + 1, codes=codes, channels=len(modality))
    write_json(
        root / "dataset.json",
        {
            "name": "toy",
            "modality": {str(i): name for i, name in enumerate(modality)},
            "labels": {str(i): name for i, name in enumerate(("background", *labels))},
            "numTraining": training,
            "numTest": test,
            "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in listed["Tr"]],
            "test": [f"./imagesTs/{n}" for n in listed["Ts"]],
        },
    )
    return root


def nnunet(root: Path, *, training: int = 3, test: int = 1, codes: str = "SPL") -> Path:
    channels = ("T1", "FLAIR")
    for part, count in (("Tr", training), ("Ts", test)):
        for i in range(count):
            name, seed = f"{'case' if part == 'Tr' else 'test'}_{i:03d}", i + 100 * (part == "Ts")
            files = [root / f"images{part}" / f"{name}_{c:04d}.nii.gz" for c in range(len(channels))]
            label = root / f"labels{part}" / f"{name}.nii.gz"
            write_nifti(files, label, seed=seed, classes=3, codes=codes, channels=len(channels))
    write_json(
        root / "dataset.json",
        {
            "channel_names": {str(i): name for i, name in enumerate(channels)},
            "labels": {"background": 0, "organ": 1, "tumour": 2},
            "numTraining": training,
            "file_ending": ".nii.gz",
        },
    )
    return root


def btcv(root: Path, *, training: int = 3, test: int = 1, codes: str = "SPL") -> Path:
    for folder, first, count in (("Training", 1, training), ("Testing", 61, test)):
        for number in range(first, first + count):
            image = root / folder / "img" / f"img{number:04d}.nii.gz"
            label = root / folder / "label" / f"label{number:04d}.nii.gz" if folder == "Training" else None
            write_nifti(image, label, seed=number, classes=14, codes=codes)
    return root


def amos(root: Path, *, training: int = 3, test: int = 1, codes: str = "SPL") -> Path:
    """As many MR cases (numbers above 500) as CT cases, in each list."""
    listed: dict[str, list[str]] = {}
    for part, first, count in (("Tr", 1, training), ("Va", 101, test), ("Ts", 201, test)):
        listed[part] = [f"amos_{n + shift:04d}.nii.gz" for shift in (0, 500) for n in range(first, first + count)]
        for name in listed[part]:
            label = None if part == "Ts" else root / f"labels{part}" / name
            write_nifti(root / f"images{part}" / name, label, seed=int(name[5:9]), classes=16, codes=codes)
    pairs = {
        part: [{"image": f"./images{part}/{n}", "label": f"./labels{part}/{n}"} for n in listed[part]]
        for part in ("Tr", "Va")
    }
    write_json(
        root / "dataset.json",
        {
            "name": "AMOS",
            "modality": {"0": "CT"},
            "labels": {str(i): f"organ {i}" if i else "background" for i in range(16)},
            "numTraining": 999,  # the released file's counts are not those of its lists
            "training": pairs["Tr"],
            "validation": pairs["Va"],
            "test": [{"image": f"./imagesTs/{n}"} for n in listed["Ts"]],
        },
    )
    return root


def folders(root: Path, *, training: int = 3, test: int = 1, codes: str = "SPL") -> Path:
    for part, count in (("train", training), ("test", test)):
        for i in range(count):
            name = f"{part}_{i:03d}.nii.gz"
            files = (root / part / "images" / name, root / part / "masks" / name)
            write_nifti(*files, seed=i + 100 * (part == "test"), classes=3, codes=codes)
    return root


def pictures(
    root: Path,
    *,
    training: int = 3,
    test: int = 1,
    rgb: bool = True,
    suffix: str = ".png",
    values: tuple[int, ...] = (0, 128, 255),
    mode: str = "L",
    labels: tuple[str, ...] = ("disc", "cup"),
) -> Path:
    for part, count in (("train", training), ("test", test)):
        for i in range(count):
            files = (root / part / "images" / f"{part}_{i:03d}{suffix}", root / part / "masks" / f"{part}_{i:03d}.png")
            seed = i + 100 * (part == "test")
            write_picture(*files, seed=seed, classes=len(values), rgb=rgb, values=values, mode=mode)
    names = dict(zip(map(str, values), ("background", *labels), strict=True))
    write_json(root / "labels.json", names)
    return root


def endovis(root: Path, *, training: int = 3, test: int = 1, frames: int = 5) -> Path:
    for part, count in (("", training), ("test", test)):
        for i in range(count):
            sequence = root / part / f"seq_{i + 1}"
            for frame in range(frames):
                files = (
                    sequence / "left_frames" / f"frame{frame:03d}.png",
                    sequence / "labels" / f"frame{frame:03d}.png",
                )
                seed = frame + 10 * i + 1000 * (part == "test")
                write_picture(*files, seed=seed, classes=3, values=COLOURS)
    names = ("background-tissue", "instrument-shaft", "thread")
    write_json(
        root / "labels.json",
        [{"name": n, "color": list(COLOURS[i]), "classid": i} for i, n in enumerate(names)],
    )
    return root


NIFTI: dict[str, Callable[..., Path]] = {
    "Medical Segmentation Decathlon": decathlon,
    "nnU-Net v2 raw": nnunet,
    "BTCV": btcv,
    "AMOS22": amos,
    "pair of folders": folders,
}
LAYOUTS: dict[str, Callable[..., Path]] = {**NIFTI, "2-D pictures": pictures, "EndoVis videos": endovis}
