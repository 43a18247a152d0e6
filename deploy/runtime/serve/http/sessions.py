"""Scans that are clicked into shape: encoded once, and kept in memory while there is room for them."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .....errors import UsageError, about
from .....volumes.geometry import Geometry
from .....volumes.io.scans import read_source, write_mask
from .....volumes.prompt_parsing import parse_prompts
from .....volumes.prompts import ScanPrompts
from ...package import Package
from ...promptable import Session
from ...report import volumes_ml
from ..spool import job_id
from ..worker import Worker
from .refusals import Refusal
from .scans import Scan, Scans

_MOST = 4  # sessions, however small
Key = tuple[str, str]  # the scan's ID and the package's digest


@dataclass(frozen=True)
class Answer:
    """A mask for prompts, .nii.gz or DICOM-SEG, the volumes in it, and the seconds it took."""

    mask: bytes
    volumes_ml: dict[str, float]
    seconds: float


class Sessions:
    """The last few sessions. All that infers runs in the worker's thread, between the patches of other scans."""

    def __init__(self, worker: Worker, scans: Scans, *, most_bytes: int, most_calls: int):
        self._worker, self._scans = worker, scans
        self._most_bytes, self._most_calls = most_bytes, most_calls
        self._sessions: OrderedDict[Key, tuple[Session, Geometry]] = OrderedDict()
        self._encoding: dict[Key, float] = {}  # how much of a scan is encoded
        self._lock = threading.Lock()

    def answer(self, scan: Scan, package: Package, body: bytes, *, as_seg: bool = False) -> Answer:
        """The mask for prompts as JSON, as volumes.prompt_parsing describes them; null or no classes: none.

        The DICOM-SEG of the same prompts has the same UIDs. Raises BadInputError and UsageError for prompts that
        cannot be used, Refusal 503 while others wait.
        """
        started = time.perf_counter()
        if as_seg and not scan.is_dicom:
            raise Refusal(409, f"{scan.name}: is no DICOM, and DICOM-SEG refers to DICOM slices. Take the NIfTI.")
        package.accept()
        prompts = _parsed(body, package)
        if self._worker.calls >= self._most_calls:
            raise Refusal(503, "Others are clicking. Try again in a moment.")
        labels, geometry = self._worker.call(lambda: self._labels(scan, package, prompts)).result()
        with tempfile.TemporaryDirectory(prefix=".answer-", dir=self._scans.folder(scan.id)) as folder:
            path = Path(folder) / ("mask.dcm" if as_seg else "mask.nii.gz")
            identity = job_id("prompts", scan.id, package.manifest.digest, body.decode())
            source, names = self._scans.source(scan), package.class_names
            write_mask(path, labels, geometry, source=source, names=names, seg_identity=identity)
            mask = path.read_bytes()
        volumes = volumes_ml(labels, geometry, package.class_names)
        return Answer(mask, volumes, time.perf_counter() - started)

    def state(self, scan: Scan, package: Package) -> dict[str, Any]:
        """How much of a scan is encoded, of one that is being clicked into shape."""
        key = (scan.id, package.manifest.digest)
        with self._lock:
            if key in self._encoding:
                return {"state": "encoding", "fraction": self._encoding[key]}
            ready = key in self._sessions
        return {"state": "ready" if ready else "none", "fraction": float(ready)}

    def forget(self, scan_id: str) -> None:
        """Let the memory of a scan go."""
        with self._lock:
            for key in [key for key in self._sessions if key[0] == scan_id]:
                del self._sessions[key]

    def _labels(self, scan: Scan, package: Package, prompts: ScanPrompts | None) -> tuple[np.ndarray, Geometry]:
        """In the worker's thread: labels [D, H, W] and their grid."""
        key = (scan.id, package.manifest.digest)
        try:
            session, geometry = self._session(key, scan, package)
            with about(scan.name):
                labels = session.labels(prompts)
            if prompts is None and package.prompts_required:
                labels = np.zeros_like(labels)  # it finds nothing but what it is shown
        finally:
            with self._lock:
                self._encoding.pop(key, None)
        if not self._scans.expires(scan.id):  # it was removed meanwhile
            self.forget(scan.id)
        self._shrink()
        return labels, geometry

    def _session(self, key: Key, scan: Scan, package: Package) -> tuple[Session, Geometry]:
        with self._lock:
            if key in self._sessions:
                self._sessions.move_to_end(key)
                return self._sessions[key]
            self._encoding[key] = 0.0
        self._scans.get(scan.id)  # it may have been removed since

        def watch(fraction: float) -> None:
            self._encoding[key] = fraction
            self._scans.get(scan.id)  # it may have been removed: nobody waits any more

        volume = read_source(self._scans.source(scan), channels=package.in_channels)
        with about(scan.name):
            session = package.session(package.preprocess(volume), volume.geometry, watch=watch)
        with self._lock:
            self._sessions[key] = session, volume.geometry
        return session, volume.geometry

    def _shrink(self) -> None:
        """Forget those that were not used for longest, until the rest fits."""
        with self._lock:
            while self._sessions and (
                len(self._sessions) > _MOST
                or sum(session.nbytes for session, _ in self._sessions.values()) > self._most_bytes
            ):
                self._sessions.popitem(last=False)


def _parsed(body: bytes, package: Package) -> ScanPrompts | None:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = body  # parse_prompts says what is wrong
    if values is None or (isinstance(values, dict) and values.get("classes") == {}):
        return None
    prompts = parse_prompts(body, package.class_names, source="prompts")
    package.accept(prompts.kinds)
    if not prompts.classes:
        raise UsageError("prompts: name no class")
    return prompts
