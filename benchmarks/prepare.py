"""Seconds to prepare generated CT volumes: this project against MONAI, side by side on the same files.

    python benchmarks/prepare.py --volumes 40

Both read .nii.gz files of 100 x 256 x 256 voxels (2.5 x 0.9 x 0.9 mm), bring them to one orientation and to 2 mm,
linearly, map HU -175..250 to [0, 1] and write the result. MONAI does it with LoadImage, Orientation, Spacing and
ScaleIntensityRange, in as many worker processes as this project has threads; once with the 64 bits that Spacing
computes in by default, once with 32.

Both grids have the same size and spacing. MONAI lays its first voxel on the scan's first voxel, this project lays edge
on edge, so they are up to half a voxel apart; and MONAI clips after it has interpolated, this project before. The mean
difference printed comes from both.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset as MonaiDataset
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.io.array import LoadImage
from monai.transforms.spatial.array import Orientation, Spacing
from monai.transforms.utility.array import EnsureChannelFirst

from samkd.training.prepared import prepare_cases
from samkd.volumes import Plan
from samkd.volumes.datasets.cases import Case, Dataset
from samkd.volumes.datasets.parallel import cores, in_threads
from samkd.volumes.datasets.phantom.generate import make_case
from samkd.volumes.io.nifti import write_scan
from samkd.volumes.io.scans import Source

SHAPE = (100, 256, 256)
SPACING = (2.0, 2.0, 2.0)
LOW, HIGH = -175, 250
PLAN = Plan(
    orientation="SAR",  # MONAI's RAS, whose array is i, j, k
    spacing=SPACING,
    intensity=({"rule": "window", "low": LOW, "high": HIGH},),
    patch=(96, 96, 96),
)


def write_volumes(folder: Path, count: int) -> list[Path]:
    def write(index: int) -> Path:
        path = folder / f"ct_{index:03d}.nii.gz"
        write_scan(path, make_case(index, shape=SHAPE)[0])
        return path

    return list(in_threads(write, range(count)))


def ours(files: list[Path], cache: Path) -> tuple[float, list[np.ndarray]]:
    cases = tuple(Case(Source(path.name.removesuffix(".nii.gz"), (path,)), None) for path in files)
    dataset = Dataset("ct", files[0].parent, "generated", {0: "background"}, ("CT",), cases, ())
    started = time.perf_counter()
    prepared = prepare_cases(cases, dataset, PLAN, cache, on_case=lambda _: None)
    return time.perf_counter() - started, [np.asarray(case.image[0]) for case in prepared]


def monai(files: list[Path], cache: Path, dtype: type) -> tuple[float, list[np.ndarray]]:
    transform = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=None),
            Spacing(pixdim=SPACING, mode="bilinear", dtype=dtype),
            ScaleIntensityRange(a_min=LOW, a_max=HIGH, b_min=0, b_max=1, clip=True),
        ]
    )
    loader = DataLoader(
        MonaiDataset(files, transform), batch_size=1, num_workers=cores(), collate_fn=lambda batch: batch[0]
    )
    found = []
    started = time.perf_counter()
    for index, image in enumerate(loader):
        np.save(cache / f"{index}.npy", np.asarray(image, np.float32))  # as prepare_cases does
        found.append(cache / f"{index}.npy")
    return time.perf_counter() - started, [np.load(path, mmap_mode="r")[0].transpose(2, 1, 0) for path in found]


def compare(one: np.ndarray, other: np.ndarray) -> str:
    assert one.shape == other.shape, (one.shape, other.shape)
    return f"{one.shape} voxels, mean difference {np.abs(one - other).mean():.4f} of [0, 1]"


def main() -> None:
    parser = argparse.ArgumentParser(description="samkd against MONAI: preparing CT volumes.")
    parser.add_argument("--volumes", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)  # one thread in each worker process: with more they disturb each other
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_volumes(folder, options.volumes)
        size = sum(path.stat().st_size for path in files) / 1e6
        print(f"{len(files)} volumes of {SHAPE}, {size:.0f} MB, {cores()} cores", flush=True)
        seconds, mine = ours(files, folder)
        print(f"samkd: {seconds:.1f} s, {seconds / len(files):.2f} s a volume", flush=True)
        for dtype in (np.float64, np.float32):
            cache = folder / dtype.__name__
            cache.mkdir()
            theirs, other = monai(files, cache, dtype)
            each, ratio = theirs / len(files), theirs / seconds
            print(f"MONAI, {dtype.__name__}: {theirs:.1f} s, {each:.2f} s a volume, {ratio:.1f} times as long")
            print(f"  {compare(mine[0], other[0])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
