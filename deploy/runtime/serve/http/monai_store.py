"""MONAI Label's datastore: the scans that came in through it, by the names that their clients gave, and their labels.

datastore.json in the folder of a scan holds its name and its labels; scans that came in another way are not listed, so
that nobody finds a scan of another user by looking. All of it goes with the scan.
"""

from __future__ import annotations

import filecmp
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .....errors import BadInputError
from .....volumes.files import atomic_path
from .....volumes.io.dicom.files import read_header
from .....volumes.io.nifti import read_labels
from .....volumes.json_files import read_json
from .refusals import Refusal
from .scans import Scan, Scans

FINAL = "final"  # the tag of a label that a user saved
_RECORD = "datastore.json"
_TAG = re.compile(r"[\w.-]{1,64}")
_UID = re.compile(r"\d[\d.]{4,63}")


class Datastore:
    """All methods may be called from any thread; they wait for the disk."""

    def __init__(self, scans: Scans, *, forget: Callable[[str], None]):
        """`forget` removes a scan with all that was made of it."""
        self._scans, self._forget = scans, forget
        self._lock = threading.Lock()

    def add(self, scan: Scan, name: str) -> Scan:
        """List a scan under a name; the one that has it already when both are the same bytes. Refusal 409."""
        with self._lock:
            known = self._listed().get(name)
            if known is None:
                self._write(scan, {"image": name, "labels": {}})
                return scan
        same = len(known.files) == len(scan.files) and all(
            filecmp.cmp(*pair, shallow=False)
            for pair in zip(self._scans.paths(known), self._scans.paths(scan), strict=True)
        )
        self._forget(scan.id)
        if not same:
            raise Refusal(409, f"image {name[:80]!r}: another scan has this name. Take another, or remove that scan.")
        self._scans.touch(known.id)
        return known

    def find(self, image: str) -> Scan:
        """By its name here, its ID, or the UID of a DICOM series. Refusal 404."""
        known = self._listed().get(image)
        if known is None and _UID.fullmatch(image):
            known = self._of_series(image)
        scan = known or self._scans.get(image)
        self._scans.touch(scan.id)
        return scan

    def shown(self) -> dict[str, Any]:
        """All of it, as output=all has it."""
        objects = {}
        for name, scan in self._listed().items():
            labels = self._read(scan)["labels"]
            objects[name] = {
                "image": {"ext": ".nii.gz", "info": self.info(scan)},
                "labels": {tag: {"ext": ".nii.gz", "info": info} for tag, info in labels.items()},
            }
        return {"name": "samkd", "description": "Scans are removed after a while.", "objects": objects}

    def stats(self) -> dict[str, Any]:
        """How many images there are, and how many have which label."""
        tags: dict[str, int] = {}
        listed = self._listed()
        records = [self._read(scan)["labels"] for scan in listed.values()]
        for tag in (tag for labels in records for tag in labels):
            tags[tag] = tags.get(tag, 0) + 1
        return {"total": len(listed), "completed": sum(FINAL in labels for labels in records), "label_tags": tags}

    def info(self, scan: Scan) -> dict[str, Any]:
        """What is known of an image."""
        return {"shape": scan.shape, "spacing": scan.spacing, "modality": scan.modality, "name": scan.name}

    def save_label(self, scan: Scan, file: Path, *, tag: str, params: Mapping[str, Any]) -> None:
        """Keep a mask of a scan. Refusal 400; BadInputError for one that cannot be read or lies on another grid."""
        path = self.label_path(scan, tag)
        labels, _ = read_labels(file)
        if labels.shape[::-1] != tuple(scan.shape):
            raise BadInputError(f"label: has {labels.shape[::-1]} voxels, its scan {tuple(scan.shape)}.")
        with self._lock:
            with atomic_path(path) as temporary:
                temporary.write_bytes(file.read_bytes())
            record = self._read(scan)
            record["labels"][tag] = {"ts": int(time.time()), "params": dict(params)}
            self._write(scan, record)

    def label(self, scan: Scan, tag: str) -> Path:
        """The file of a label. Refusal 404."""
        path = self.label_path(scan, tag)
        if not path.is_file():
            raise Refusal(404, f"label: this scan has none with the tag {tag[:40]!r}.")
        return path

    def remove_label(self, scan: Scan, tag: str) -> None:
        """Refusal 404."""
        with self._lock:
            self.label(scan, tag).unlink(missing_ok=True)
            record = self._read(scan)
            record["labels"].pop(tag, None)
            self._write(scan, record)

    def label_path(self, scan: Scan, tag: str) -> Path:
        """Where a label lies, or will. Refusal 400 for a tag that is no word."""
        if not _TAG.fullmatch(tag):
            raise Refusal(400, f"tag {tag[:40]!r}: expected one word of letters, digits, '.', '_' and '-'.")
        return self._scans.folder(scan.id) / f"label-{tag}.nii.gz"

    def _listed(self) -> dict[str, Scan]:
        listed = {}
        for id in self._scans.ids():
            with suppress(Refusal, BadInputError, KeyError):
                if (self._scans.folder(id) / _RECORD).is_file():
                    scan = self._scans.get(id)
                    listed[self._read(scan)["image"]] = scan
        return listed

    def _of_series(self, uid: str) -> Scan | None:
        """The DICOM scan of a series, however it came in: who knows the UID has the series."""
        for id in self._scans.ids():
            with suppress(Refusal, BadInputError):
                scan = self._scans.get(id)
                if scan.is_dicom and str(read_header(self._scans.paths(scan)[0]).get("SeriesInstanceUID")) == uid:
                    return scan
        return None

    def _read(self, scan: Scan) -> dict[str, Any]:
        path = self._scans.folder(scan.id) / _RECORD
        if not path.is_file():
            return {"image": scan.id, "labels": {}}
        values: Any = read_json(path)
        return values

    def _write(self, scan: Scan, record: Mapping[str, Any]) -> None:
        with atomic_path(self._scans.folder(scan.id) / _RECORD) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")
