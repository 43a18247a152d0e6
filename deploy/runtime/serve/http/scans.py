"""Scans that were uploaded: a folder each in the spool, until nobody has used it for a while.

scans/ID/scan.json is what the page knows of it, scans/ID/FILE are its files, under names of ours: the user's own may
be a patient's, and are shown to the user alone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from .....errors import BadInputError
from .....volumes.files import atomic_folder, atomic_path, make_folder, sync_folder, visible_entries
from .....volumes.geometry import Volume
from .....volumes.io.dicom.series import assemble
from .....volumes.io.nifti import read_channel_count, write_for_display
from .....volumes.io.pictures import memory_to_read_picture, picture_channels
from .....volumes.io.scans import Source, is_nifti, is_picture, memory_to_read_files, modality, read_source
from .....volumes.json_files import read_json
from ...package import Package
from ..worker import fits
from .refusals import Refusal

_RECORD = "scan.json"
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """An uploaded scan, as scan.json holds it. `shape` and `spacing` (mm) are along the file's i, j, k."""

    id: str
    name: str  # the user's
    files: tuple[str, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    modality: str | None  # DICOM's word
    channels: int
    is_dicom: bool


class Scans:
    """The folder of the uploaded scans. All methods may be called from any thread."""

    def __init__(self, root: Path, *, keep: float, largest: int):
        """`keep` in seconds after the last use; `largest` is what reading one scan may take, in bytes."""
        self._root, self._keep, self._largest = root, keep, largest
        make_folder(root)
        for forgotten in root.glob(".*"):
            shutil.rmtree(forgotten, ignore_errors=True)
        self._reading = threading.Lock()  # one scan in memory at a time, whoever uploads

    def folder(self, id: str) -> Path:
        """Where a scan lies."""
        return self._root / id

    def draft(self) -> Path:
        """A new folder for what is being uploaded, which the next start removes."""
        folder = self._root / f".upload-{secrets.token_hex(8)}"
        folder.mkdir()
        return folder

    def add(self, source: Source, *, name: str) -> Scan:
        """Keep a scan whose files lie in a draft: they are moved. Raises BadInputError for one that cannot be read,
        Refusal for one that is too large, OutputError.
        """
        scan = self._described(source, name=name)
        with atomic_folder(self._root / scan.id) as folder:
            for file in source.files:
                _sync(file)
                file.rename(folder / file.name)
            with atomic_path(folder / _RECORD) as temporary:
                temporary.write_text(json.dumps(asdict(scan)), encoding="utf-8")
            sync_folder(folder)
        sync_folder(self._root)
        return scan

    def get(self, id: str) -> Scan:
        """A scan by its ID; Refusal 404 where there is none, or none any more."""
        if _ID.fullmatch(id) and self.expires(id) > time.time():
            with suppress(BadInputError, KeyError, TypeError):
                values: Any = read_json(self._root / id / _RECORD)
                lists = {key: tuple(values[key]) for key in ("files", "shape", "spacing")}
                return Scan(**{**values, **lists})
        raise Refusal(404, "This scan is not here, or not any more: scans are removed after a while. Upload it again.")

    def ids(self) -> list[str]:
        """Those of all scans, the expired ones too."""
        return [folder.name for folder in visible_entries(self._root) if _ID.fullmatch(folder.name)]

    def expires(self, id: str) -> float:
        """When a scan is removed, in seconds since 1970; 0 for one that is not here."""
        try:
            return (self._root / id / _RECORD).stat().st_mtime + self._keep
        except OSError:
            return 0.0

    def touch(self, id: str) -> None:
        """Note that a scan is used."""
        with suppress(OSError):
            os.utime(self._root / id / _RECORD)

    def remove(self, id: str) -> None:
        """Remove a scan at one moment; one that is gone is fine."""
        hidden = self._root / f".{id}-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            (self._root / id).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def paths(self, scan: Scan) -> tuple[Path, ...]:
        return tuple(self._root / scan.id / name for name in scan.files)

    def source(self, scan: Scan) -> Source:
        return Source(scan.id, self.paths(scan))

    def image(self, scan: Scan, *, channel: int) -> Path:
        """A channel of a scan as .nii.gz, converted once. Raises BadInputError, OutputError."""
        first = self.paths(scan)[0]
        if not 0 <= channel < scan.channels:
            raise BadInputError(f"channel {channel}: this scan has {scan.channels}, counted from 0.")
        if scan.channels == 1 and first.name.endswith(".nii.gz"):
            return first
        path = self.folder(scan.id) / f"image-{channel}.nii.gz"
        with self._reading:
            if not path.is_file():
                volume = read_source(self.source(scan), channels=scan.channels)
                write_for_display(path, Volume(volume.array[channel : channel + 1], volume.geometry))
        return path

    def _described(self, source: Source, *, name: str) -> Scan:
        """Read a scan, strictly, and say what it is. Raises BadInputError, Refusal."""
        with self._reading:
            self._refuse_large(source)
            channels = _channels(source)
            volume = read_source(source, channels=channels)
        return Scan(
            id=secrets.token_hex(16),
            name=name,
            files=tuple(file.name for file in source.files),
            shape=volume.geometry.shape[::-1],
            spacing=volume.geometry.spacing[::-1],
            modality=modality(source),
            channels=channels,
            is_dicom=source.is_dicom,
        )

    def _refuse_large(self, source: Source) -> None:
        """From the headers alone, before the voxels take any memory. Raises BadInputError, Refusal 413."""
        if source.is_dicom:
            _, geometry = assemble(source.files)
            needed = 2 * 4.0 * prod(geometry.shape)
        elif is_nifti(source.files[0]):
            needed = memory_to_read_files(source, channels=_channels(source))
        else:
            needed = memory_to_read_picture(source.files[0])
        if needed > self._largest:
            raise Refusal(413, f"This scan takes {needed / 1e9:.1f} GB; expected at most {self._largest / 1e9:.1f} GB.")


def _sync(file: Path) -> None:
    """Let the bytes of a file outlast a power cut."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _channels(source: Source) -> int:
    """How many values a voxel has. Raises BadInputError."""
    first = source.files[0]
    if is_picture(first):
        return len(picture_channels(first))
    if source.is_dicom:
        return 1
    return len(source.files) if len(source.files) > 1 else read_channel_count(first)


def fitting(scan: Scan, packages: Mapping[str, Package]) -> list[str]:
    """The digests of the packages that take a scan: as many channels, and of its modality where both are known."""
    return [
        digest
        for digest, package in packages.items()
        if package.in_channels == scan.channels and fits(package, scan.modality)
    ]


def shown(scan: Scan, *, fits: Sequence[str], expires: float) -> dict[str, Any]:
    """What the page is told of a scan."""
    return {
        "id": scan.id,
        "name": scan.name,
        "shape": scan.shape,
        "spacing": scan.spacing,
        "modality": scan.modality,
        "channels": scan.channels,
        "dicom": scan.is_dicom,
        "files": len(scan.files),
        "fits": fits,
        "expires": expires,
    }
