"""The watched folder: scans that are put into IN have their masks in OUT, or a text that says why not."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ....errors import BadInputError, OutputError, SamkdError, UsageError
from ....volumes.files import atomic_folder, atomic_path, make_folder, sync_folder, visible_entries, visible_files
from ....volumes.io.dicom.files import is_dicom, read_header
from ....volumes.io.scans import Source, bare_name, find_scans, group_channels, is_nifti, is_picture, modality
from ..package import Package
from .spool import Job, Spool, job_id
from .worker import Worker, fits

_LOG = logging.getLogger("samkd.serve")
_LOOK = 0.5  # seconds between two looks into the folder


class FolderDoor:
    """Takes each file and each folder in `inbox` once, when its sizes and times have been quiet, and writes to `out`.

    With several packages each has a folder of its own in `out`. A scan that changes is segmented again. Nothing is
    removed from `inbox`, and nothing in `out` is written over that did not come from the same scan.
    """

    name = "folder"
    keeps = False

    def __init__(self, inbox: Path, out: Path, *, spool: Spool, packages: Mapping[str, Package], quiet: float):
        """Raises UsageError when OUT lies in IN, or two packages have one name; BadInputError, OutputError."""
        self._inbox, self._out = inbox.absolute(), out.absolute()
        self._place = f"folder {inbox}"
        if not inbox.is_dir():
            raise BadInputError(f"--folder {inbox}: is no folder; make it, or name the one that the scans come into")
        if out.resolve().is_relative_to(inbox.resolve()):
            raise UsageError(f"--out {out}: the masks would lie among the scans; choose another folder")
        make_folder(out)
        self.destinations = (str(out),)
        self._spool, self._packages, self._quiet = spool, packages, quiet
        self._below = _folders(packages)
        self._seen: dict[str, tuple[str, float]] = {}  # what an entry looked like, and since when
        self._done: dict[str, str] = {}  # what it looked like when it was taken
        self._source_of = {job.target: _entry_of(job) for job in spool.jobs() if job.door == self.name}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="folder", daemon=True)

    @property
    def place(self) -> str:
        return self._place

    def start(self, worker: Worker) -> None:
        self._worker = worker
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def deliver(self, job: Job, mask: Path, destination: str) -> None:
        target = self._out / job.target
        make_folder(target.parent)
        if mask.is_dir():
            with atomic_folder(target, replace=True) as draft:
                shutil.copytree(mask, draft, dirs_exist_ok=True)
        else:
            with atomic_path(target) as temporary:
                shutil.copyfile(mask, temporary)
        sync_folder(target.parent)
        self._error_file(_entry_of(job)).unlink(missing_ok=True)

    def failed(self, job: Job) -> None:
        self._write_error(_entry_of(job), job.error)

    def may_forget(self, job: Job) -> bool:
        return not any(map(Path.exists, map(Path, job.scan)))  # it would be segmented again after the next start

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            try:
                self.look()
            except (SamkdError, OSError) as error:  # the folder is away, or cannot be written
                _LOG.warning("warning: %s: %s", self._inbox, error)
                self._ended.wait(10)

    def look(self) -> None:
        """Look at every entry once, and take those that are quiet. Raises BadInputError, OutputError, OSError."""
        for entry in visible_entries(self._inbox):
            look = _look_of(entry)
            if look is None or look == self._done.get(entry.name):
                continue
            before, since = self._seen.get(entry.name, ("", 0.0))
            if look != before:
                self._seen[entry.name] = (look, time.monotonic())
            elif time.monotonic() - since >= self._quiet:
                self._take(entry, look)
                self._done[entry.name] = look

    def _take(self, entry: Path, look: str) -> None:
        """Make the jobs of an entry; what cannot be one is told in its error file. Raises OSError, OutputError."""
        try:
            jobs = self._jobs_of(entry, look)
        except (OutputError, OSError):
            raise
        except Exception as error:
            known = isinstance(error, SamkdError)
            text = str(error) if known else f"{entry}: {type(error).__name__} in samkd, a fault of its own"
            _LOG.error("error: %s", text)
            self._write_error(entry.name, text)
            return
        for job in jobs:
            if self._spool.add(job):
                _LOG.info("%s: received", job.name)
                self._worker.submit(job)

    def _jobs_of(self, entry: Path, look: str) -> list[Job]:
        _refuse_loose_slice(entry)
        jobs, unfit = [], []
        for digest, package in self._packages.items():
            for scan in group_channels(find_scans([entry]), channels=package.in_channels):
                word = modality(scan)
                if not fits(package, word):
                    unfit.append(f"{scan.name} ({word})")
                    continue
                target = Path(self._below[digest], scan.mask_name).as_posix()
                self._claim(target, entry)
                jobs.append(self._job(digest, scan, entry=entry, look=look, target=target))
        if not jobs:
            raise BadInputError(f"{entry}: its modality is none of the packages': {', '.join(unfit)}")
        return jobs

    def _job(self, digest: str, scan: Source, *, entry: Path, look: str, target: str) -> Job:
        return Job(
            id=job_id(self.name, digest, str(self._inbox), entry.name, look, target),
            door=self.name,
            package=digest,
            name=str(entry),
            scan=tuple(map(str, scan.files)),
            result=scan.mask_name,
            target=target,
        )

    def _claim(self, target: str, entry: Path) -> None:
        """Refuse a mask that would be written over that of another scan, or over a file that is none of ours."""
        owner = self._source_of.get(target)
        if owner == entry.name:
            return
        if owner is not None or (self._out / target).exists():
            what = f"the mask of {owner}" if owner else "a file that did not come from this folder"
            raise BadInputError(
                f"{entry}: its mask would overwrite {self._out / target}, {what}. Rename the scan, or move that file."
            )
        self._source_of[target] = entry.name

    def _error_file(self, entry: str) -> Path:
        return self._out / f"{bare_name(Path(entry))}.error.txt"

    def _write_error(self, entry: str, error: str) -> None:
        path = self._error_file(entry)
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            temporary.write_text(f"{error}\n", encoding="utf-8")
        sync_folder(path.parent)


def _folders(packages: Mapping[str, Package]) -> dict[str, str]:
    """The folder in OUT for each package, by its digest: OUT itself for one alone. Raises UsageError."""
    if len(packages) == 1:
        return dict.fromkeys(packages, "")
    names = {digest: re.sub(r"[^\w-]", "-", package.manifest.name) for digest, package in packages.items()}
    if len(set(names.values())) < len(names):
        raise UsageError(f"--out: two packages of one name ({', '.join(sorted(names.values()))}) need a folder each")
    return names


def _entry_of(job: Job) -> str:
    return Path(job.name).name


def _look_of(entry: Path) -> str | None:
    """What changes when a file, or one in the folder, does: paths, sizes and times; None of a folder without files."""
    try:
        files = visible_files(entry) if entry.is_dir() else [entry]
        states = [(file, file.stat()) for file in files]
    except OSError:  # a file went while it was looked at
        return None
    text = "\n".join(f"{file.relative_to(entry)} {state.st_size} {state.st_mtime_ns}" for file, state in states)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() if states else None


def _refuse_loose_slice(entry: Path) -> None:
    """Refuse one slice of a DICOM series outside of a folder: each would be a scan. Raises BadInputError."""
    if entry.is_dir() or is_nifti(entry) or is_picture(entry) or not is_dicom(entry):
        return
    if str(read_header(entry).get("NumberOfFrames") or "1") == "1":
        raise BadInputError(f"{entry}: is one slice. Put the files of a series into a folder, and the folder here.")
