"""The raw layout of nnU-Net v2 (Isensee et al. 2021): imagesTr/CASE_0000.nii.gz, a file per channel,
labelsTr/CASE.nii.gz, and dataset.json with channel_names, labels {name: number} and file_ending.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io.pictures import is_picture
from ...io.scans import Source, is_nifti
from ..cases import Case, Dataset
from .listing import Layout, description, different, numbered, sound


def _fits(root: Path) -> bool:
    return "channel_names" in description(root)


def _read(root: Path) -> Dataset:
    content, faults = description(root), []
    channels = tuple(numbered(content, "channel_names", faults).values())
    labels = _labels(content.get("labels"), faults)
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not (is_nifti(Path(f"a{ending}")) or is_picture(Path(f"a{ending}"))):
        faults.append(f'"file_ending" is {json.dumps(ending)}; expected one such as ".nii.gz" or ".png"')
        ending = ".nii.gz"
    if "dataset" in content:
        faults.append('"dataset" lists files of its own; only imagesTr and labelsTr are read')
    parts = [_cases(root, part, ending, channels, faults) for part in ("Tr", "Ts")]
    announced = content.get("numTraining", len(parts[0]))
    if announced != len(parts[0]):
        faults.append(f"imagesTr has {len(parts[0])} case(s) where numTraining announces {announced}")
    dataset = Dataset(
        name=str(content.get("name") or root.resolve().name),
        root=root,
        layout=LAYOUT.name,
        labels=labels,
        channels=channels,
        training=parts[0],
        test=parts[1],
    )
    return sound(dataset, faults, source=root / "dataset.json")


def _labels(value: Any, faults: list[str]) -> dict[int, str]:
    if not isinstance(value, Mapping) or not value:
        faults.append(f'"labels" is {json.dumps(value)}; expected {{"background": 0, name: 1, ...}}')
        return {}
    if any(not isinstance(number, int) or isinstance(number, bool) for number in value.values()) or "ignore" in value:
        faults.append(f'"labels" is {json.dumps(value)}; regions and an ignore label are not read: give plain classes')
        return {}
    labels = {number: name for name, number in value.items()}
    if sorted(labels) != list(range(len(value))) or not different(list(value)):
        faults.append(f'"labels" has the numbers {sorted(value.values())}; expected 0, 1, ... without gaps')
        return {}
    return dict(sorted(labels.items()))


def _cases(root: Path, part: str, ending: str, channels: tuple[str, ...], faults: list[str]) -> tuple[Case, ...]:
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _files(root / f"images{part}", ending):
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match is None:
            faults.append(f"images{part}/{path.name} does not end with its channel, as in CASE_0000{ending}")
        else:
            files[match[1]][int(match[2])] = path
    labels = {path.name.removesuffix(ending): path for path in _files(root / f"labels{part}", ending)}
    # A picture holds all its channels in one file.
    wanted = [0] if is_picture(Path(f"a{ending}")) else list(range(len(channels)))
    for name, found in sorted(files.items()):
        if sorted(found) != wanted:
            faults.append(f"images{part}: {name} has the channels {sorted(found)}; expected {wanted}")
        if part == "Tr" and name not in labels:
            faults.append(f"labelsTr/{name}{ending} does not exist")
    for name in sorted(labels.keys() - files.keys()):
        faults.append(f"labels{part}/{labels[name].name} has no scan in images{part}")
    return tuple(
        Case(
            Source(name, tuple(path for _, path in sorted(found.items()))),
            Source(name, (labels[name],)) if name in labels else None,
        )
        for name, found in sorted(files.items())
    )


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{ending}") if path.is_file())


LAYOUT = Layout(
    "nnU-Net v2 raw",
    "dataset.json with channel_names, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz",
    _fits,
    _read,
)
