"""The raw layout of nnU-Net v2 (Isensee et al. 2021): imagesTr/CASE_0000.nii.gz, a file per channel,
labelsTr/CASE.nii.gz, and dataset.json with channel_names, labels {name: number} and file_ending. Ours alone: a training
case may have promptsTr/CASE.json in place of a mask.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import visible_entries
from ...io.pictures import is_picture
from ...io.scans import Source, is_nifti
from ..cases import Case, Dataset
from .listing import Layout, check_count, description, different, numbered, prompts_in, sound, strays, whole_number


def _fits(root: Path) -> bool:
    return "channel_names" in description(root)


def _read(root: Path) -> Dataset:
    content, faults = description(root), []
    channels = tuple(numbered(content, "channel_names", faults).values())
    labels = read_class_names(content.get("labels"), faults)
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not (is_nifti(Path(f"a{ending}")) or is_picture(Path(f"a{ending}"))):
        faults.append(
            f'"file_ending" is {json.dumps(ending)}; expected ".nii.gz", ".nii" or that of a picture, such as ".png": '
            "convert the files (3D Slicer and SimpleITK can), then correct it"
        )
        ending = ".nii.gz"
    if "dataset" in content:
        faults.append('"dataset" lists files of its own; only imagesTr and labelsTr are read')
    parts = [_cases(root, part, ending, channels, faults) for part in ("Tr", "Ts")]
    check_count(content, "numTraining", len(parts[0]), "imagesTr has", faults)
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


def read_class_names(value: Any, faults: list[str]) -> dict[int, str]:
    if not isinstance(value, Mapping) or not value:
        faults.append(f'"labels" is {json.dumps(value)}; expected {{"background": 0, name: 1, ...}}')
        return {}
    if all(whole_number(key) is not None for key in value) and all(isinstance(name, str) for name in value.values()):
        return numbered({"labels": value}, "labels", faults)  # as the Decathlon and nnU-Net v1 have it
    if any(isinstance(number, list) for number in value.values()) or "ignore" in value:
        faults.append(f'"labels" is {json.dumps(value)}; regions and an ignore label are not read: give plain classes')
        return {}
    numbers = {name: whole_number(number) for name, number in value.items()}
    if wrong := [name for name, number in numbers.items() if number is None]:
        faults.append(f'"labels" gives {json.dumps({name: value[name] for name in wrong})}; expected whole numbers')
        return {}
    if set(numbers.values()) != set(range(len(value))) or not different(list(value)):
        faults.append(f'"labels" has the numbers {list(numbers.values())}; expected 0, 1, ... without gaps')
        return {}
    return {
        number: name for name, number in sorted(numbers.items(), key=lambda item: item[1] or 0) if number is not None
    }


def _cases(root: Path, part: str, ending: str, channels: tuple[str, ...], faults: list[str]) -> tuple[Case, ...]:
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, path in _files(root / f"images{part}", ending, faults).items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None:
            faults.append(f"images{part}/{path.name} does not end with its channel, as in CASE_0000{ending}")
        else:
            files[match[1]][int(match[2])] = path
    labels = _files(root / f"labels{part}", ending, faults)
    prompts = prompts_in(root / "promptsTr") if part == "Tr" else {}
    # A picture holds all its channels in one file.
    wanted = [0] if is_picture(Path(f"a{ending}")) else list(range(len(channels)))
    for name, by_channel in sorted(files.items()):
        if sorted(by_channel) != wanted:
            faults.append(f"images{part}: {name} has the channels {sorted(by_channel)}; expected {wanted}")
        if part == "Tr" and name not in labels and name not in prompts:
            faults.append(f"labelsTr/{name}{ending} does not exist")
    for name in sorted(labels.keys() - files.keys()):
        faults.append(f"labels{part}/{labels[name].name} has no scan in images{part}")
    cases = tuple(
        Case(
            Source(name, tuple(path for _, path in sorted(by_channel.items()))),
            Source(name, (labels[name],)) if name in labels else None,
            prompts.get(name),
        )
        for name, by_channel in sorted(files.items())
    )
    faults += strays(prompts, cases)
    return cases


def _files(folder: Path, ending: str, faults: list[str]) -> dict[str, Path]:
    """The files of a folder that end with `ending`, in whatever letter case, by what is before it."""
    entries = [path for path in visible_entries(folder) if path.is_file()]
    files: dict[str, Path] = {}
    for path in entries:
        if path.name.lower().endswith(ending.lower()):
            first = files.setdefault(path.name[: -len(ending)], path)
            if first is not path:
                faults.append(f"{folder.name}/{path.name} has the name of {first.name}")
    if entries and not files:
        held = ", ".join(path.name for path in entries[:3])
        faults.append(f'{folder.name} has no file that ends with the "file_ending" {ending}; it holds {held}')
    return files


LAYOUT = Layout(
    "nnU-Net v2 raw",
    "dataset.json with channel_names, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz",
    _fits,
    _read,
)
