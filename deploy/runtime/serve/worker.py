"""The worker: one queue and one thread, which segments the scans of all doors and hands on their masks."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Protocol

from ....errors import OutputError, SamkdError
from ....volumes.files import sync_folder
from ....volumes.io.scans import Source
from ..memory import Budget
from ..package import Package
from ..predict import predict_scan
from ..quality import modality_flags
from .spool import FAILED, RECEIVED, SEGMENTED, SENT, Job, Spool

LONGEST_WAIT = 60.0  # seconds between two attempts to deliver a mask
LONGEST_REST = 600.0  # seconds that a scan rests which ended the process, or was there when the power went
_LOG = logging.getLogger("samkd.serve")


class Door(Protocol):
    """Where scans come in and masks go out."""

    name: str
    destinations: tuple[str, ...]

    def start(self, worker: Worker) -> None:
        """Begin to submit jobs to the worker."""

    def stop(self) -> None:
        """Let no more scans in."""

    def deliver(self, job: Job, mask: Path, destination: str) -> None:
        """Hand a mask to a destination, once more if need be: it then holds it once. OutputError: not now."""

    def failed(self, job: Job) -> None:
        """Tell whoever brought the scan that it has no mask. OutputError: not now."""


class Worker:
    """Brings every job of a spool from the state it is in to its end, with the packages, by their digests."""

    def __init__(self, spool: Spool, packages: Mapping[str, Package], doors: Mapping[str, Door]):
        self._spool, self._packages, self._doors = spool, packages, doors
        self._budgets = {digest: Budget(None, package) for digest, package in packages.items()}
        self._queue: list[tuple[float, int, Job]] = []  # by the time from which a job may be worked on
        self._order = count()
        self._waits: Counter[str] = Counter()  # how often a job was put off
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        """Go on with what the spool holds: scans that were begun and not ended last, lest one of them ends us again."""
        for job in self._spool.jobs():
            if job.state == SENT:
                self._spool.clear(job)
            elif job.state != FAILED:
                self.submit(job, after=_rest(job))
        self._thread.start()

    def submit(self, job: Job, *, after: float = 0.0) -> None:
        """Queue a job of the spool, to be worked on when `after` seconds have passed."""
        with self._changed:
            heapq.heappush(self._queue, (time.monotonic() + after, next(self._order), job))
            self._changed.notify()

    def stop(self) -> None:
        """Wait for the job in hand; the others are in the spool."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._advance(job)

    def _next(self) -> Job | None:
        """The next job whose time has come; None at the end."""
        with self._changed:
            while not self._ended:
                wait = self._queue[0][0] - time.monotonic() if self._queue else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._queue)[2]
                self._changed.wait(wait)
        return None

    def _advance(self, job: Job) -> None:
        """Bring a job to its end, or put it off. Whatever happens to it, the worker goes on."""
        if job.package not in self._packages or job.door not in self._doors:
            _LOG.warning("warning: %s: waits in the spool for its package or its door, which is not served", job.name)
            return
        try:
            if job.state == RECEIVED:
                job = self._segment(job)
            job = self._deliver(job)
            self._spool.clear(self._spool.update(replace(job, state=SENT)))
        except (OutputError, OSError) as error:
            self._put_off(job, error)
        except SamkdError as error:
            self._fail(job, str(error))
        except Exception as error:  # its words may be those of a header
            self._fail(job, f"{job.name}: {type(error).__name__} in samkd, a fault of its own")

    def _segment(self, job: Job) -> Job:
        """From the scan to the mask in the spool. Raises SamkdError; OutputError when only writing failed."""
        job = self._spool.update(replace(job, attempts=job.attempts + 1))
        package, mask = self._packages[job.package], self._spool.result(job)
        row = predict_scan(
            package,
            Source(Path(job.target or job.id).name, self._spool.files(job)),
            mask,
            budget=self._budgets[job.package],
            seg_identity=job.id,
        )
        sync_folder(mask.parent)
        for flag in row["flags"]:
            _LOG.warning("warning: %s: %s", job.name, flag)
        _LOG.info("%s: segmented by %s in %.1f s", job.name, package.manifest.name, sum(row["seconds"].values()))
        return self._spool.update(replace(job, state=SEGMENTED))

    def _deliver(self, job: Job) -> Job:
        """Hand the mask to every destination that has none, noting each at once. Raises OutputError of the last."""
        door, trouble = self._doors[job.door], None
        for destination in door.destinations:
            if destination in job.delivered:
                continue
            try:
                door.deliver(job, self._spool.result(job), destination)
            except OutputError as error:
                trouble = error
                continue
            job = self._spool.update(replace(job, delivered=(*job.delivered, destination)))
            _LOG.info("%s: mask delivered to %s", job.name, destination)
        if trouble is not None:
            raise trouble
        return job

    def _put_off(self, job: Job, error: Exception) -> None:
        """Queue a job again as the spool knows it, each time after twice as long."""
        wait = min(LONGEST_WAIT, 2.0 ** self._waits[job.id])
        self._waits[job.id] += 1
        _LOG.warning("warning: %s: %s Again in %.0f s.", job.name, error, wait)
        self.submit(self._spool.read(job.id), after=wait)

    def _fail(self, job: Job, error: str) -> None:
        _LOG.error("error: %s", error if job.name in error else f"{job.name}: {error}")
        job = replace(job, state=FAILED, error=error)
        try:
            self._doors[job.door].failed(job)
            self._spool.update(job)
        except (OutputError, OSError) as trouble:
            self._put_off(job, trouble)


def _rest(job: Job) -> float:
    """Seconds before a scan is begun again: twice as many each time that the process ended with it in hand."""
    if job.state != RECEIVED or not job.attempts:
        return 0.0
    seconds = min(LONGEST_REST, 2.0**job.attempts)
    _LOG.warning("warning: %s: was begun %d time(s) and not ended. Again in %.0f s.", job.name, job.attempts, seconds)
    return seconds


def fits(package: Package, modality: str | None) -> bool:
    """Whether a scan of that modality (DICOM's word; None: unknown) can be one that the package was trained on."""
    return not modality_flags(modality, package.channel_names)
