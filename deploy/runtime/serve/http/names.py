"""The names of uploaded files: judged as the user gave them, replaced by our own on the disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .....volumes.io.scans import bare_name, is_nifti, is_picture
from .refusals import Refusal

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_LONGEST = 1024  # letters


def judged(name: str) -> PurePosixPath:
    """The name of a file, with the folders it lay in; Refusal for one that leads out of them."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = ":" in name.replace("\\", "/").split("/")[0]
    if not path.name or path.is_absolute() or drive or ".." in path.parts or "\0" in name or len(name) > _LONGEST:
        raise Refusal(
            400, f"{name[:200]!r}: is no name of a file in a folder. Give names without '..', '/' in front or a drive."
        )
    return path


@dataclass
class OwnNames:
    """Names in one flat folder that keep what is read from a name: its suffix, and which files are one scan.

    `original` is the user's name by ours.
    """

    original: dict[str, str] = field(default_factory=dict)
    _stems: dict[object, int] = field(default_factory=dict)

    def name(self, path: PurePosixPath) -> str:
        """A new name for a file."""
        file = Path(path.name)
        number = len(self.original)
        if is_nifti(file):
            part = _CHANNEL.fullmatch(bare_name(file))
            stem = self._stems.setdefault((path.parent, part[1]) if part else number, number)
            suffix = ".nii.gz" if file.name.lower().endswith(".gz") else ".nii"
            name = f"{stem}_{part[2]}{suffix}" if part else f"{stem}{suffix}"
        elif is_picture(file):
            name = f"{number}{file.suffix.lower()}"
        else:
            name = f"{number}.dcm"
        if name in self.original:
            raise Refusal(400, f"{path}: comes twice. Give each file once.")
        self.original[name] = str(path)
        return name

    def restored(self, text: str, folder: Path) -> str:
        """A message in the user's names: the paths of files in `folder` are replaced."""
        ours = rf"(?:{re.escape(str(folder))}/|(?<![\w./-]))(\d+(?:_\d{{4}})?(?:\.\w+){{1,2}})(?![\w-])"
        text = re.sub(ours, lambda match: self.original.get(match[1], match[0]), text)
        return text.replace(str(folder), "the upload")
