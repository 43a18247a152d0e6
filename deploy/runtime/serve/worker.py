"""The worker: one queue and one thread, which segments the scans of all doors and hands on their masks."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from ....errors import OutputError, SamkdError
from ....volumes.files import sync_folder
from ....volumes.io.scans import Source
from ..memory import Budget
from ..package import Package
from ..predict import predict_scan
from ..quality import modality_flags
from .spool import CANCELLED, FAILED, RECEIVED, SEGMENTED, SENT, Job, Spool

LONGEST_WAIT = 60.0  # seconds between two attempts to deliver a mask
LONGEST_REST = 600.0  # seconds that a scan rests which ended the process, or was there when the power went
KEPT_RECORDS = 30 * 86400.0  # seconds for which it is known that a job was sent
_TIDY = 3600.0  # seconds between two looks for records that are older
_LOG = logging.getLogger("samkd.serve")


class Cancelled(Exception):
    """Whoever brought the scan in hand does not want its mask any more."""


@dataclass(frozen=True)
class Progress:
    """How far the worker is with the job in hand."""

    id: str
    stage: str  # reading, preparing, network, writing
    fraction: float  # of that stage
    since: float  # time.monotonic() when the stage began


class Door(Protocol):
    """Where scans come in and masks go out."""

    name: str
    destinations: tuple[str, ...]
    keeps: bool  # whether scan, mask and report of a job that is done stay in the spool until the door removes them

    @property
    def place(self) -> str:
        """What a user is told once it is open: its kind, and where it is."""
        ...

    def start(self, worker: Worker) -> None:
        """Begin to submit jobs to the worker."""

    def stop(self) -> None:
        """Let no more scans in."""

    def deliver(self, job: Job, mask: Path, destination: str) -> None:
        """Hand a mask to a destination, once more if need be: it then holds it once. OutputError: not now."""

    def failed(self, job: Job) -> None:
        """Tell whoever brought the scan that it has no mask. OutputError: not now."""

    def may_forget(self, job: Job) -> bool:
        """Whether the record of a job that was sent long ago may go: its scan would then be one that is new."""
        ...


class Worker:
    """Brings every job of a spool from the state it is in to its end, with the packages, by their digests."""

    def __init__(self, spool: Spool, packages: Mapping[str, Package], doors: Mapping[str, Door]):
        self._spool, self._packages, self._doors = spool, packages, doors
        self._budgets = {digest: Budget(None, package) for digest, package in packages.items()}
        self._queue: list[tuple[float, int, Job]] = []  # by the time from which a job may be worked on
        self._order = count()
        self._waits: Counter[str] = Counter()  # how often a job was put off
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()  # what goes before the queue
        self._in_hand: Progress | None = None
        self._unwanted: set[str] = set()  # IDs of jobs to end between two patches
        self._tidied = 0.0
        self.ended: Counter[tuple[str, str]] = Counter()  # jobs by door and by the state they ended in, since the start
        self.seconds = 0.0  # spent on masks, since the start
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        """Go on with what the spool holds: scans that were begun and not ended last, lest one of them ends us again."""
        for job in sorted(self._spool.jobs(), key=lambda job: job.arrived):
            if job.state == SENT:
                self._clear(job)
            elif job.state not in (FAILED, CANCELLED):
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
            self._changed.notify_all()
        self._thread.join()
        for future, _ in self._tasks:
            future.cancel()

    # What doors ask that people wait at.

    def call(self, task: Callable[[], Any]) -> Future[Any]:
        """Run a task in the worker's thread, the one that may infer, at once or between two patches."""
        future: Future[Any] = Future()
        with self._changed:
            self._tasks.append((future, task))
            self._changed.notify_all()
        return future

    @property
    def in_hand(self) -> Progress | None:
        """How far the job is that is segmented now."""
        return self._in_hand

    @property
    def calls(self) -> int:
        """How many tasks wait."""
        return len(self._tasks)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def waiting(self) -> list[Job]:
        """The jobs in the queue, in their order."""
        with self._changed:
            return [job for _, _, job in sorted(self._queue, key=lambda entry: entry[:2])]

    def cancel(self, id: str) -> None:
        """Take a job out of the queue, or end it between two patches; nobody works on it when this returns."""
        with self._changed:
            self._unwanted.add(id)
            self._changed.wait_for(lambda: self._in_hand is None or self._in_hand.id != id or self._ended)
            self._queue = [entry for entry in self._queue if entry[2].id != id]
            heapq.heapify(self._queue)
            self._unwanted.discard(id)

    # The thread.

    def _work(self) -> None:
        while not self._ended:
            self._run_tasks()
            self._tidy()
            job = self._next()
            if job is None:
                continue
            try:
                self._advance(job)
            except Exception as error:  # its folder is gone, or cannot be read
                _LOG.error("error: %s: left alone (%s)", job.name, type(error).__name__)
            finally:
                with self._changed:
                    self._in_hand = None
                    self._changed.notify_all()

    def _next(self) -> Job | None:
        """The next job whose time has come; None when there is something else to do."""
        with self._changed:
            while not (self._ended or self._tasks):
                wait = self._queue[0][0] - time.monotonic() if self._queue else _TIDY
                if wait <= 0:
                    job = heapq.heappop(self._queue)[2]
                    self._in_hand = Progress(job.id, "reading", 0.0, time.monotonic())
                    return job
                if not self._changed.wait(min(wait, _TIDY)) and not self._queue:
                    return None
        return None

    def _run_tasks(self) -> None:
        while self._tasks:
            future, task = self._tasks.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

    def _watch(self, stage: str, fraction: float) -> None:
        """What predict_scan tells between two patches. Raises Cancelled."""
        before = self._in_hand
        assert before is not None
        since = before.since if before.stage == stage else time.monotonic()
        self._in_hand = Progress(before.id, stage, fraction, since)
        if before.id in self._unwanted:
            raise Cancelled
        self._run_tasks()

    def _tidy(self) -> None:
        """Forget jobs that were sent long ago; records would grow for ever."""
        if self._tidied and time.monotonic() - self._tidied < _TIDY:
            return
        self._tidied = time.monotonic()
        for job in self._spool.jobs():
            door = self._doors.get(job.door)
            if job.state == SENT and door is not None and not door.keeps and door.may_forget(job):
                with suppress(OSError):
                    if self._spool.age(job) > KEPT_RECORDS:
                        self._spool.remove(job)

    def _clear(self, job: Job) -> None:
        """Remove what a job that was sent leaves, unless its door still hands it on."""
        door = self._doors.get(job.door)
        if door is None or not door.keeps:
            self._spool.clear(job)

    def _advance(self, job: Job) -> None:
        """Bring a job to its end, or put it off. Whatever happens to it, the worker goes on."""
        if job.package not in self._packages or job.door not in self._doors:
            _LOG.warning("warning: %s: waits in the spool for its package or its door, which is not served", job.name)
            return
        try:
            if job.state == RECEIVED:
                job = self._segment(job)
            job = self._deliver(job)
            self._clear(self._spool.update(replace(job, state=SENT)))
            self.ended[job.door, SENT] += 1
        except Cancelled:
            self.ended[job.door, CANCELLED] += 1
            _LOG.info("%s: cancelled", job.name)
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
            watch=self._watch,
        )
        if self._doors[job.door].keeps:
            self._spool.write_report(job, row)
        sync_folder(mask.parent)
        for flag in row["flags"]:
            _LOG.warning("warning: %s: %s", job.name, flag)
        seconds = sum(row["seconds"].values())
        self.seconds += seconds
        _LOG.info("%s: segmented by %s in %.1f s", job.name, package.manifest.name, seconds)
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
            self.ended[job.door, FAILED] += 1
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
