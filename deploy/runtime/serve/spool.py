"""The spool: jobs on disk, so that a power cut at any moment loses nothing that was acknowledged and repeats nothing.

    incoming/STUDY/OBJECT.dcm   acknowledged objects of a study of which more may come
    taken/STUDY-.../OBJECT.dcm  a study that is complete, while it is made into jobs
    jobs/ID/job.json            one scan for one package: its state
    jobs/ID/scan/OBJECT.dcm     its files, where the door keeps no copy of its own
    jobs/ID/RESULT              its mask
    jobs/ID/report.json         what is known of the mask, where the door hands it on
    scans/ID/                   a scan that was uploaded: http/scans.py

    received --- segmented, its mask is here ---> segmented --- every destination has the mask ---> sent
        |\\--- the scan cannot be used ---> failed, its files stay here
        \\--- whoever brought it does not want it any more ---> cancelled

Every file is written under a temporary name, synced and renamed, and then its folder is synced. An ID is made of the
package and of the scan, so whatever is received, taken or segmented a second time is the same job.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ....errors import BadInputError, UsageError
from ....volumes.files import (
    atomic_folder,
    atomic_path,
    lock_file,
    make_folder,
    sync_folder,
    visible_entries,
    write_json,
)
from ....volumes.json_files import read_json

RECEIVED, SEGMENTED, SENT, FAILED, CANCELLED = "received", "segmented", "sent", "failed", "cancelled"
_JOB = "job.json"
_SCAN = "scan"
_REPORT = "report.json"
_LOG = logging.getLogger("samkd.serve")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan for one package, as job.json holds it."""

    id: str
    door: str  # through which the scan came, and the mask goes
    package: str  # the digest of its manifest
    name: str  # what messages call the scan: its path or its series UID, never a patient's name
    scan: tuple[str, ...]  # its files; those without a folder lie in scan/
    result: str  # the mask's name in the folder of the job
    target: str = ""  # of a watched folder: the mask's path below OUT
    state: str = RECEIVED
    attempts: int = 0  # segmentations begun, counted before each: a scan that ends the process lets others go first
    delivered: tuple[str, ...] = ()  # destinations that have the mask
    error: str = ""
    arrived: float = field(default_factory=time.time)  # seconds since 1970; 0 for jobs of releases that did not note it


def job_id(*parts: str) -> str:
    """An ID that equal parts share and others do not."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Spool:
    """The folder of the jobs, held by one process at a time. All methods may be called from any thread."""

    def __init__(self, root: Path):
        """Open or make the spool, readable by its owner alone. Raises UsageError when another server holds it."""
        self.root = root.absolute()
        self._incoming, self._taken, self._jobs = (self.root / name for name in ("incoming", "taken", "jobs"))
        make_folder(self.root)
        self.root.chmod(0o700)
        for folder in (self._incoming, self._taken, self._jobs):
            make_folder(folder)
        sync_folder(self.root)
        try:
            self._held = lock_file(self.root)
        except BlockingIOError as error:
            raise UsageError(f"--spool {root}: another samkd serve works on it; name another folder") from error
        self._lock = threading.Lock()
        for forgotten in (*self._taken.glob(".*"), *self._jobs.glob(".*")):
            shutil.rmtree(forgotten, ignore_errors=True)

    def close(self) -> None:
        """Let another process have it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    # Objects that arrive, one by one.

    def free_bytes(self) -> int:
        """What its disk has left."""
        return shutil.disk_usage(self.root).free

    def store(self, study: str, name: str, content: bytes) -> None:
        """Write an object that arrived; it is safe when this returns. Raises OSError, OutputError."""
        with self._lock:
            folder = self._incoming / study
            if not folder.is_dir():
                folder.mkdir()
                sync_folder(self._incoming)
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
            sync_folder(folder)

    def arriving(self) -> list[str]:
        """The studies of which objects have arrived and none was taken since."""
        return [folder.name for folder in visible_entries(self._incoming)]

    def take(self, study: str) -> Path:
        """Close a study: what arrives from now on is another one. The folder of its objects, as `taken` lists it."""
        folder = self._taken / f"{study}-{secrets.token_hex(4)}"
        with self._lock:
            (self._incoming / study).rename(folder)
            sync_folder(self._taken)
            sync_folder(self._incoming)
        return folder

    def taken(self) -> list[Path]:
        """The folders of studies that are not known to be made into jobs."""
        return visible_entries(self._taken)

    def forget(self, taken: Path) -> None:
        """Remove a taken study, once all its jobs are added: at one moment, or part of it would be a study."""
        hidden = taken.with_name(f".{taken.name}")
        taken.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    # Jobs.

    def add(self, job: Job, files: Sequence[Path] = ()) -> bool:
        """Keep a new job, with `files` in its scan/; whether there is anything to do. Raises OSError, OutputError.

        A job that is known already is not begun again, unless it failed or was cancelled.
        """
        folder = self._jobs / job.id
        if folder.is_dir():
            if self.read(job.id).state not in (FAILED, CANCELLED):
                return False
            self.update(job)
            return True
        with atomic_folder(folder) as draft:
            if files:
                (draft / _SCAN).mkdir()
                for file in files:
                    _link(file, draft / _SCAN / file.name)
                sync_folder(draft / _SCAN)
            _write(job, draft / _JOB)
        sync_folder(self._jobs)
        return True

    def update(self, job: Job) -> Job:
        """Write the new state of a job. Raises OSError, OutputError."""
        _write(job, self._jobs / job.id / _JOB)
        return job

    def read(self, id: str) -> Job:
        """A job by its ID. Raises BadInputError."""
        path = self._jobs / id / _JOB
        values: Any = read_json(path)
        try:
            lists = {name: tuple(values[name]) for name in ("scan", "delivered")}
            return Job(**{"arrived": 0.0, **values, **lists})
        except (TypeError, KeyError) as error:
            raise BadInputError(f"{path}: does not describe a job. Remove its folder.") from error

    def jobs(self) -> Iterator[Job]:
        """All jobs, those that were sent too. One that cannot be read is named in the log and left alone."""
        for folder in visible_entries(self._jobs):
            try:
                yield self.read(folder.name)
            except BadInputError as error:
                _LOG.error("error: %s", error)

    def files(self, job: Job) -> tuple[Path, ...]:
        """The files of a job's scan."""
        return tuple(self._jobs / job.id / _SCAN / name for name in job.scan)  # a whole path stays what it is

    def result(self, job: Job) -> Path:
        """Where the mask of a job lies, or will."""
        return self._jobs / job.id / job.result

    def write_report(self, job: Job, report: Mapping[str, Any]) -> None:
        """Keep what is known of a job's mask. Raises OutputError."""
        write_json(self._jobs / job.id / _REPORT, report)

    def read_report(self, job: Job) -> Any:
        """What is known of a job's mask. Raises BadInputError."""
        return read_json(self._jobs / job.id / _REPORT)

    def age(self, job: Job) -> float:
        """Seconds since the state of a job changed. Raises OSError."""
        return time.time() - (self._jobs / job.id / _JOB).stat().st_mtime

    def remove(self, job: Job) -> None:
        """Remove all of a job: at one moment, or part of it would be a job. One that is gone is fine."""
        hidden = self._jobs / f".{job.id}-{secrets.token_hex(4)}"
        try:
            (self._jobs / job.id).rename(hidden)
        except FileNotFoundError:
            return
        shutil.rmtree(hidden, ignore_errors=True)

    def clear(self, job: Job) -> None:
        """Remove the scan and the mask of a job that was sent; that it was stays known."""
        folder = self._jobs / job.id
        for path in (folder / _SCAN, folder / job.result):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _write(job: Job, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(job), indent=1) + "\n", encoding="utf-8")
    sync_folder(path.parent)


def _link(source: Path, path: Path) -> None:
    """A second name for a file that is synced already; a synced copy where the file system knows no links."""
    try:
        path.hardlink_to(source)
    except OSError:
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)
