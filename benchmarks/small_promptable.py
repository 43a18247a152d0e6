"""The training data of a small promptable student: every organ of every scan a case of its own, its mask "object".

    python benchmarks/small_promptable.py OUT --data chaos-t2 --data hippocampus=6 --pair ct.nii.gz organs.nii.gz

Labelled training cases of datasets in any layout, of each the first so many where a number is given, and single scans
with a label map, whose largest `--organs` organs are taken. OUT is a dataset of the Decathlon's layout.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from zero_shot import thinned

from samkd.volumes.datasets.registry import read_labelled_case
from samkd.volumes.geometry import Volume
from samkd.volumes.io.nifti import read_labels, read_scan, write_labels, write_scan
from samkd.workflows.data import read_dataset

FEWEST = 100  # voxels of an organ


def write_objects(out: Path, name: str, volume: Volume, masks: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """The scan and each mask [D, H, W] that is not next to empty as a case; the rows of dataset.json."""
    rows = []
    for organ, mask in masks.items():
        if np.count_nonzero(mask) < FEWEST:
            continue
        case = f"{name}_{organ.replace(' ', '-')}"
        files = {kind: f"./{kind}sTr/{case}.nii.gz" for kind in ("image", "label")}
        write_scan(out / files["image"], volume)
        write_labels(out / files["label"], mask.astype(np.uint8), volume.geometry, like=None)
        rows.append(files)
    return rows


def of_dataset(out: Path, text: str, every: int) -> list[dict[str, str]]:
    folder, _, count = text.partition("=")
    dataset, rows = read_dataset(Path(folder)), []
    for case in [case for case in dataset.training if case.label is not None][: int(count) if count else None]:
        volume, labels = read_labelled_case(case, dataset)
        if every > 1:
            volume, labels = thinned(volume, labels, axis=np.argmax(volume.geometry.spacing).item(), every=every)
        masks = {name: labels == value for value, name in dataset.labels.items() if value}
        rows += write_objects(out, case.name, volume, masks)
    return rows


def of_pair(out: Path, image: Path, mask: Path, organs: int) -> list[dict[str, str]]:
    (labels, geometry), volume = read_labels(mask), read_scan(image)
    if not geometry.same_grid(volume.geometry):
        raise SystemExit(f"{mask}: not on the grid of {image}")
    sizes = {value: np.count_nonzero(labels == value) for value in np.unique(labels[labels > 0]).tolist()}
    largest = sorted(sizes, key=lambda value: -sizes[value])[:organs]
    name = image.name.removesuffix(".nii.gz")
    return write_objects(out, name, volume, {str(value): labels == value for value in largest})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--pair", type=Path, nargs=2, action="append", default=[], metavar=("IMAGE", "MASK"))
    parser.add_argument("--organs", type=int, default=12)
    parser.add_argument("--every", type=int, default=1, help="use every so many-th slice of the datasets' scans")
    options = parser.parse_args()
    for folder in ("imagesTr", "labelsTr"):
        (options.out / folder).mkdir(parents=True)
    rows = [row for text in options.data for row in of_dataset(options.out, text, options.every)]
    rows += [row for image, mask in options.pair for row in of_pair(options.out, image, mask, options.organs)]
    about = {
        "name": "objects",
        "modality": {"0": "any"},
        "labels": {"0": "background", "1": "object"},
        "numTraining": len(rows),
        "numTest": 0,
        "training": rows,
        "test": [],
    }
    (options.out / "dataset.json").write_text(json.dumps(about, indent=1))
    print(f"{options.out}: {len(rows)} objects")


if __name__ == "__main__":
    main()
