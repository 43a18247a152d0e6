"""Cases as dataset.json lists them in the Medical Segmentation Decathlon, in nnU-Net v1 and in AMOS22."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import is_hidden
from ...io.scans import Source, bare_name, is_nifti
from ..cases import Case
from .listing import check_count, prompts_in, strays, with_any_suffix_case


class Entries:
    """Turns the entries of dataset.json into cases and notes what is wrong with them.

    A listed scan X.nii.gz that lies there as X_0000.nii.gz, X_0001.nii.gz, ... is nnU-Net v1's: a file per channel. A
    training case may have promptsTr/CASE.json in place of a mask, which is our own.
    """

    def __init__(self, root: Path, faults: list[str], *, channels: int = 1):
        self.root = root
        self.faults = faults
        self.channels = channels

    def cases(self, content: Mapping[str, Any], key: str, *, labelled: bool) -> tuple[Case, ...]:
        """The cases of one list; one that need not be `labelled` may be missing, and its masks lie in labelsTs."""
        entries = content.get(key, None if labelled else [])
        if not isinstance(entries, list):
            self.faults.append(f'"{key}" is {json.dumps(entries)}; expected a list of cases')
            return ()
        check_count(content, f"num{key.capitalize()}", len(entries), f'"{key}" lists', self.faults)
        prompts = prompts_in(self.root / "promptsTr") if labelled else {}
        read = (self._case(entry, f"{key}[{i}]", labelled, prompts) for i, entry in enumerate(entries))
        cases = tuple(case for case in read if case is not None)
        self.faults += strays(prompts, cases)
        return cases

    def _case(self, entry: Any, where: str, labelled: bool, prompts: Mapping[str, Path]) -> Case | None:
        if isinstance(entry, str) and not labelled:
            entry = {"image": entry}
        wanted = {"image", "label"} if labelled and _listed_name(entry) not in prompts else {"image"}
        if not isinstance(entry, dict) or not wanted <= set(entry):
            self.faults.append(f"{where} is {json.dumps(entry)}; expected an object with {sorted(wanted)}")
            return None
        if isinstance(entry["image"], str) and is_hidden(Path(entry["image"])):
            return None  # listed by a tool that took every file of the folder
        listed = self._path(entry["image"], f"{where} image")
        if listed is None:
            return None
        files = self._channel_files(listed)
        if not all(path.is_file() for path in files):
            absent = [path.name for path in files if not path.is_file()]
            also = "" if files == (listed,) else f" as nnU-Net v1 names it, {', '.join(absent)}"
            self.faults.append(f"{where} image {entry['image']!r} does not exist{also}")
            return None
        if "label" in entry:
            label = self._path(entry["label"], f"{where} label")
            if label is not None and not label.is_file():
                self.faults.append(f"{where} label {entry['label']!r} does not exist")
                label = None
        else:
            known = with_any_suffix_case(self.root / "labelsTs" / listed.name)
            label = known if known.is_file() and not labelled else None
        name = bare_name(listed)
        return Case(Source(name, files), Source(name, (label,)) if label else None, prompts.get(name))

    def _channel_files(self, listed: Path) -> tuple[Path, ...]:
        """The listed file, or where it does not exist and its first channel does, one for each channel."""
        stem, suffix = bare_name(listed), listed.name[len(bare_name(listed)) :]
        parts = tuple(
            with_any_suffix_case(listed.with_name(f"{stem}_{channel:04d}{suffix}")) for channel in range(self.channels)
        )
        return parts if not listed.is_file() and any(path.is_file() for path in parts) else (listed,)

    def _path(self, value: Any, where: str) -> Path | None:
        """Where a listed file lies, whether it exists or not; None, and a fault, when that is not below the root."""
        if not isinstance(value, str) or not is_nifti(Path(value)):
            self.faults.append(f"{where} is {json.dumps(value)}; expected a path to a .nii or .nii.gz file")
            return None
        # By its spelling: a link inside the folder was put there by its owner and may point elsewhere.
        spellings = [value, value.replace("\\", "/")]  # Windows writes imagesTr\a.nii.gz
        path = next((path for path in map(self._below_root, spellings) if path and path.is_file()), None)
        path = path or self._below_root(value)
        if path is None:
            self.faults.append(f"{where} {value!r} leaves the dataset's folder; write it relative to that")
        return path and with_any_suffix_case(path)

    def _below_root(self, value: str) -> Path | None:
        path = Path(os.path.normpath(value))
        if path.is_absolute():
            for root in (Path(os.path.normpath(self.root.absolute())), self.root.resolve()):
                if path.is_relative_to(root):
                    return self.root / path.relative_to(root)
            return None
        return None if path.parts[0] == ".." else self.root / path


def _listed_name(entry: Any) -> str | None:
    """The name of the case whose scan an entry lists; None for an entry that lists none."""
    image = entry.get("image") if isinstance(entry, dict) else None
    return bare_name(Path(image.replace("\\", "/"))) if isinstance(image, str) else None
