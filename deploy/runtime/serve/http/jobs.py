"""The jobs of the page: a scan for a package each, through the spool and the worker of all doors."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .....errors import BadInputError
from .....volumes.io.nifti import read_labels
from .....volumes.io.scans import write_mask
from ...package import Package
from ..spool import CANCELLED, FAILED, RECEIVED, SEGMENTED, SENT, Job, Spool, job_id
from ..worker import Progress, Worker
from .options import Limits
from .refusals import Refusal
from .scans import Scan, Scans, fitting

DOOR = "http"
# Where the stages begin in the whole, and how much of it they are.
_SHARES = {"reading": (0.0, 0.05), "preparing": (0.05, 0.05), "network": (0.1, 0.85), "writing": (0.95, 0.05)}
_STATES = {SEGMENTED: "done", SENT: "done", FAILED: "failed", CANCELLED: "cancelled", RECEIVED: "waiting"}
_MASK, _SEG = "mask.nii.gz", "mask.dcm"


class Jobs:
    """All methods may be called from any thread; some wait for the disk or the worker."""

    def __init__(self, *, spool: Spool, worker: Worker, scans: Scans, packages: Mapping[str, Package], limits: Limits):
        self._spool, self._worker, self._scans = spool, worker, scans
        self._packages, self._limits = packages, limits
        self._writing = threading.Lock()  # one DICOM-SEG at a time

    def submit(self, scan: Scan, digest: str) -> str:
        """Queue a scan for a package; the ID of the job, which is the old one for what was queued before. Refusal."""
        package = self._packages[digest]
        if package.prompts_required:
            raise Refusal(409, f"{package.manifest.name} segments what it is shown. Give it prompts, not a job.")
        if digest not in fitting(scan, self._packages):
            raise Refusal(
                409,
                f"{scan.name}: has {scan.channels} channel(s) of modality {scan.modality or 'unknown'}; "
                f"{package.manifest.name} takes {package.in_channels}, {', '.join(package.channel_names) or 'any'}.",
            )
        if sum(job.door == DOOR for job in self._worker.waiting()) >= self._limits.waiting:
            raise Refusal(503, f"{self._limits.waiting} jobs wait. Try again in a moment.")
        files = self._scans.paths(scan)
        job = Job(
            id=job_id(DOOR, digest, scan.id),
            door=DOOR,
            package=digest,
            name=f"scan {scan.id}",
            scan=scan.files,
            result=_MASK,
            target=scan.id,
        )
        self._scans.touch(scan.id)
        if self._spool.add(job, files):
            self._worker.submit(job)
        return job.id

    def shown(self, id: str) -> dict[str, Any]:
        """What the page is told of a job. Refusal 404."""
        job = self._job(id)
        progress = self._worker.in_hand
        if progress is not None and (progress.id != id or job.state != RECEIVED):
            progress = None
        state = _STATES[job.state] if progress is None else "running"
        waiting = [each.id for each in self._worker.waiting()] if state == "waiting" else []
        done = state == "done"
        return {
            "id": id,
            "scan": job.target,
            "package": job.package[:16],
            "state": state,
            "ahead": waiting.index(id) + (self._worker.in_hand is not None) if id in waiting else 0,
            "stage": progress.stage if progress else None,
            "fraction": _fraction(progress) if progress else float(done),
            "seconds_left": _seconds_left(progress) if progress else None,
            "error": self._in_the_users_words(job) or None,
            "report": _brief(self._spool.read_report(job)) if done else None,
        }

    def cancel(self, id: str) -> None:
        """End a job, or forget one that is done; nobody works on it when this returns. Refusal 404."""
        self._job(id)
        self._worker.cancel(id)
        job = self._job(id)
        if job.state == RECEIVED:
            self._spool.update(replace(job, state=CANCELLED))
        else:
            self._spool.remove(job)

    def mask(self, id: str) -> Path:
        """The mask as .nii.gz. Refusal 404, 409 when there is none."""
        return self._spool.result(self._done(id))

    def seg(self, id: str) -> Path:
        """The same mask as DICOM-SEG, written once. Refusal 404, 409; BadInputError where its slices lack UIDs."""
        job = self._done(id)
        scan = self._scans.get(job.target)
        if not scan.is_dicom:
            raise Refusal(409, f"{scan.name}: is no DICOM, and DICOM-SEG refers to DICOM slices. Take the NIfTI.")
        path = self._spool.result(job).with_name(_SEG)
        with self._writing:
            if not path.is_file():
                labels, geometry = read_labels(self._spool.result(job))
                names = self._packages[job.package].class_names
                write_mask(path, labels, geometry, source=self._scans.source(scan), names=names, seg_identity=job.id)
        return path

    def report(self, id: str) -> dict[str, Any]:
        """What made the mask, how long it took, and what is in it. Refusal 404, 409."""
        job = self._done(id)
        report = self._spool.read_report(job)
        return {
            **self._packages[job.package].facts(),
            **report,
            "scan": self._scans.get(job.target).name,
            "mask": _MASK,
        }

    def forget(self, scan_id: str) -> None:
        """End and remove the jobs of a scan."""
        for digest in self._packages:
            id = job_id(DOOR, digest, scan_id)
            self._worker.cancel(id)
            self._remove(id)

    def forget_lost(self) -> None:
        """Remove the jobs whose scans are gone, those for packages that were served before among them."""
        known = set(self._scans.ids())
        for job in list(self._spool.jobs()):
            if job.door == DOOR and job.target not in known:
                self._worker.cancel(job.id)
                self._spool.remove(job)

    def is_busy(self, scan_id: str) -> bool:
        """Whether a job of a scan waits or runs."""
        ids = {job_id(DOOR, digest, scan_id) for digest in self._packages}
        progress = self._worker.in_hand
        return (progress is not None and progress.id in ids) or any(job.id in ids for job in self._worker.waiting())

    def _job(self, id: str) -> Job:
        try:
            job = self._spool.read(id) if id.isalnum() else None
        except BadInputError:
            job = None
        if job is None or job.door != DOOR or job.package not in self._packages:
            raise Refusal(404, "This job is not here, or not any more: jobs go with their scans. Begin a new one.")
        return job

    def _done(self, id: str) -> Job:
        job = self._job(id)
        if job.state not in (SEGMENTED, SENT):
            raise Refusal(
                409, f"This job has no mask: it is {_STATES[job.state]}. {job.error and 'Look at its error.'}"
            )
        self._scans.touch(job.target)
        return job

    def _remove(self, id: str) -> None:
        try:
            self._spool.remove(self._job(id))
        except Refusal:
            return

    def _in_the_users_words(self, job: Job) -> str:
        """The error of a job with the user's name of the scan in the place of our paths."""
        if not job.error:
            return ""
        error = job.error
        try:
            name = self._scans.get(job.target).name
        except Refusal:
            name = "the scan"
        for path in (*self._spool.files(job), *(path.parent for path in self._spool.files(job))):
            error = error.replace(str(path), name)
        return error


def _fraction(progress: Progress) -> float:
    start, share = _SHARES[progress.stage]
    return round(start + share * min(1.0, progress.fraction), 4)


def _seconds_left(progress: Progress) -> float | None:
    """While the network works: what its patches will still take at the speed of those before."""
    if progress.stage != "network" or progress.fraction <= 0:
        return None
    spent = time.monotonic() - progress.since
    return round(spent / progress.fraction * (1 - progress.fraction), 1)


def _brief(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("volumes_ml", "flags", "seconds")}
