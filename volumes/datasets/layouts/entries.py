"""Cases as dataset.json lists them in the Medical Segmentation Decathlon and in AMOS22."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io.scans import Source, bare_name
from ..cases import Case


class Entries:
    """Turns the entries of dataset.json into cases and notes what is wrong with them."""

    def __init__(self, root: Path, faults: list[str]):
        self.root = root
        self.faults = faults

    def cases(self, content: Mapping[str, Any], key: str, *, labelled: bool) -> tuple[Case, ...]:
        """The cases of one list; one that need not be `labelled` may be missing, and its masks lie in labelsTs."""
        entries = content.get(key, None if labelled else [])
        if not isinstance(entries, list):
            self.faults.append(f'"{key}" is {json.dumps(entries)}; expected a list of cases')
            return ()
        announced = content.get(f"num{key.capitalize()}", len(entries))
        if announced != len(entries):
            self.faults.append(f'"{key}" lists {len(entries)} case(s) where {announced} are announced')
        cases = (self._case(entry, f"{key}[{i}]", labelled) for i, entry in enumerate(entries))
        return tuple(case for case in cases if case is not None)

    def _case(self, entry: Any, where: str, labelled: bool) -> Case | None:
        if isinstance(entry, str) and not labelled:
            entry = {"image": entry}
        wanted = {"image", "label"} if labelled else {"image"}
        if not isinstance(entry, dict) or not wanted <= set(entry):
            self.faults.append(f"{where} is {json.dumps(entry)}; expected an object with {sorted(wanted)}")
            return None
        image = self._file(entry["image"], f"{where} image")
        if image is None:
            return None
        name = bare_name(image)
        if "label" in entry:
            label = self._file(entry["label"], f"{where} label")
        else:
            known = self.root / "labelsTs" / image.name
            label = known if known.is_file() else None
        return Case(Source(name, (image,)), Source(name, (label,)) if label else None)

    def _file(self, value: Any, where: str) -> Path | None:
        if not isinstance(value, str) or not value.endswith((".nii", ".nii.gz")):
            self.faults.append(f"{where} is {json.dumps(value)}; expected a path to a .nii or .nii.gz file")
            return None
        # By its spelling: a link inside the folder was put there by its owner and may point elsewhere.
        relative = Path(os.path.normpath(value))
        if relative.is_absolute() or relative.parts[0] == "..":
            self.faults.append(f"{where} {value!r} leaves the dataset's folder")
            return None
        path = self.root / relative
        if not path.is_file():
            self.faults.append(f"{where} {value!r} does not exist")
            return None
        return path
