"""The DICOM node: studies come in by C-STORE, their DICOM-SEGs go out by C-STORE. The only file that knows pynetdicom.

Nothing of a header is logged but UIDs, and DICOM's own word for a modality.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socketserver import BaseServer
from types import ModuleType
from typing import Any

from ....errors import MissingExtraError, OutputError, SamkdError, UsageError, translated
from ....volumes.io.dicom.files import study_and_instance
from ....volumes.io.dicom.seg import load_highdicom
from ..package import Package
from .dicom_guard import Guard, hang_up
from .dicom_jobs import DOOR, jobs_of
from .dicom_peer import Peer
from .spool import FAILED, Job, Spool
from .worker import Worker

SUCCESS, DUPLICATE, NO_SPACE, UNFIT, NOT_UNDERSTOOD = 0x0000, 0x0111, 0xA700, 0xA900, 0xC000
MOST_ASSOCIATIONS = 16  # at once; more are refused, and twice as many connections are not even listened to
AFTER_RELEASE = 2.0  # seconds without an object: some senders open an association for every image
_DEFLATED = tuple(f"1.2.840.10008.1.2.{tail}" for tail in ("1.99", "4.95", "4.205", "8.1"))
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with something to say about it
_TO_ASSOCIATE = 10  # seconds from the connection to the request for an association
_LOOK = 0.25  # seconds between two looks for quiet studies
_PAUSE = 10  # seconds, after a look that failed
_INSTALL = "pip install 'samkd[serve]'; on a device without samkd: pip install pynetdicom pydicom highdicom"
_LOG = logging.getLogger("samkd.serve")


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """Where the node listens, whom it lets in, and when it takes a study or refuses one."""

    title: str
    port: int  # 0: any that is free
    host: str = "127.0.0.1"
    peers: tuple[Peer, ...]  # who gets the masks
    callers: tuple[str, ...] = ()  # AE titles that are let in; empty: all
    addresses: tuple[str, ...] = ()  # hosts that are let in; empty: all
    quiet: float = 10.0  # seconds without an object after which a study is taken
    reserve: int = 1 << 30  # bytes that the disk must keep
    largest: int = 1 << 30  # bytes of an object, and of all together that arrive at the same time


class DicomDoor:
    """Keeps every object on disk before it says so, and sends a mask of every series that fits a package."""

    name = DOOR
    keeps = False

    def __init__(self, options: NodeOptions, *, spool: Spool, packages: Mapping[str, Package]):
        """Raises MissingExtraError without pynetdicom or highdicom."""
        load_pynetdicom()
        load_highdicom()
        self._options, self._spool, self._packages = options, spool, packages
        self._peers = {str(peer): peer for peer in options.peers}
        self.destinations = tuple(self._peers)
        self._due: dict[str, float] = {}  # when a study that is arriving will have been quiet
        self._open: defaultdict[threading.Thread, set[str]] = defaultdict(set)  # the studies of an association
        self._guard = Guard(largest=options.largest)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="studies", daemon=True)
        self.port = options.port

    @property
    def place(self) -> str:
        return f"dicom {self._options.host}:{self.port}"

    def start(self, worker: Worker) -> None:
        """Go on with what the spool holds, and listen. Raises UsageError when the port cannot be had."""
        self._worker = worker
        for study in self._spool.arriving():
            self._due[study] = time.monotonic() + self._options.quiet
        self._server = self._listen()
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="listener", daemon=True).start()
        self._thread.start()

    def stop(self) -> None:
        BaseServer.shutdown(self._server)  # pynetdicom's own wants a server that it started itself
        self._server.server_close()
        for association in self._server.active_associations:
            hang_up(association)
        self._ended.set()
        self._thread.join()

    def deliver(self, job: Job, mask: Path, destination: str) -> None:
        """Send a DICOM-SEG. Its UIDs are the job's, so that a peer that has it already keeps one."""
        library, peer = load_pynetdicom(), self._peers[destination]
        entity = library.AE(ae_title=self._options.title)
        entity.connection_timeout = entity.acse_timeout = 10
        entity.dimse_timeout = entity.network_timeout = 120
        entity.add_requested_context(library.sop_class.SegmentationStorage)  # type: ignore[attr-defined]
        with translated(destination, "cannot be sent to", OutputError):
            association = entity.associate(peer.host, peer.port, ae_title=peer.title)
            try:
                if not association.is_established:
                    raise OutputError(f"{destination}: cannot be reached, or lets {self._options.title} not in.")
                status = association.send_c_store(mask).get("Status")
            finally:
                if association.is_established:
                    association.release()
        if status not in (SUCCESS, DUPLICATE, *_WARNINGS):
            raise OutputError(
                f"{destination}: {'no answer' if status is None else f'refused with status {status:04X}'}."
            )

    def failed(self, job: Job) -> None:
        """Nobody waits: the log has it, and the files stay in the spool."""

    def may_forget(self, job: Job) -> bool:
        return True  # whoever sends it again gets the same mask, with the same UIDs

    def _listen(self) -> Any:
        library, options = load_pynetdicom(), self._options
        entity = library.AE(ae_title=options.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(options.callers)
        entity.maximum_associations = MOST_ASSOCIATIONS
        entity.acse_timeout = _TO_ASSOCIATE
        entity.add_supported_context(library.sop_class.Verification)  # type: ignore[attr-defined]
        for context in library.AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, _transfer_syntaxes(library))
        handlers = [
            (library.evt.EVT_CONN_OPEN, self._guard.opened),
            (library.evt.EVT_DATA_RECV, self._guard.received),
            (library.evt.EVT_DIMSE_RECV, self._guard.gathered),
            (library.evt.EVT_DIMSE_SENT, self._guard.answered),
            (library.evt.EVT_CONN_CLOSE, self._guard.closed),
            (library.evt.EVT_C_STORE, self._store),
            (library.evt.EVT_RELEASED, self._released),
            (library.evt.EVT_CONN_CLOSE, self._closed),
            (library.evt.EVT_REJECTED, _tell_rejected),
        ]
        try:
            return entity.make_server(
                (options.host, options.port), evt_handlers=handlers, server_class=_server_for(options.addresses)
            )
        except OSError as error:
            place = f"{options.host}:{options.port}"
            raise UsageError(f"--dicom: cannot listen on {place} ({error.strerror or error})") from error

    # What pynetdicom calls, in a thread for each association.

    def _store(self, event: Any) -> int:
        """Keep one object; success means that it is on the disk."""
        try:
            content = event.encoded_dataset()
            study, instance = study_and_instance(content)
        except Exception:
            return NOT_UNDERSTOOD
        if not study or instance != str(event.request.AffectedSOPInstanceUID):
            return UNFIT
        if self._spool.free_bytes() - len(content) < self._options.reserve:
            _LOG.error("error: %s: less than %d MB free: objects are refused", self._spool.root, self._megabytes)
            return NO_SPACE
        key = _key(study)
        try:
            with self._lock:
                self._spool.store(key, f"{_key(instance)}.dcm", content)
                self._due[key] = time.monotonic() + self._options.quiet
                self._open[event.assoc].add(key)
        except (OutputError, OSError) as error:
            _LOG.error("error: %s", error)
            return NO_SPACE
        return SUCCESS

    def _released(self, event: Any) -> None:
        """A sender said that it is done, unless it goes on in its next association."""
        with self._lock:
            for key in self._open.pop(event.assoc, ()):
                if key in self._due:
                    self._due[key] = min(self._due[key], time.monotonic() + AFTER_RELEASE)

    def _closed(self, event: Any) -> None:
        """An association that broke: its sender may come again with all of it."""
        with self._lock:
            self._open.pop(event.assoc, None)

    @property
    def _megabytes(self) -> int:
        return self._options.reserve // 1_000_000

    # From studies to jobs.

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            self._forget_dead()
            try:
                self._take_quiet()
                for taken in self._spool.taken():
                    self._make_jobs(taken)
            except (SamkdError, OSError) as error:  # the disk is full or away; what was not done is still there
                _LOG.error("error: %s Again in %d s.", error, _PAUSE)
                self._ended.wait(_PAUSE)

    def _forget_dead(self) -> None:
        """Drop what is known of associations whose end pynetdicom never told: their threads broke down."""
        self._guard.forget_dead()
        with self._lock:
            for association in [one for one in self._open if not one.is_alive()]:
                del self._open[association]

    def _take_quiet(self) -> None:
        """Take the studies of which nothing has come for long enough. Raises OSError."""
        with self._lock:
            for key in [key for key, at in self._due.items() if at <= time.monotonic()]:
                self._spool.take(key)
                del self._due[key]

    def _make_jobs(self, taken: Path) -> None:
        """Add the jobs of a taken study, then forget it; once more if need be. Raises OSError, OutputError."""
        for job, files in jobs_of(taken, self._packages):
            if not self._spool.add(job, files):
                _LOG.info("%s: was received before", job.name)
                continue
            _LOG.info("%s: received, %d files", job.name, len(files))
            if job.state != FAILED:
                self._worker.submit(job)
        self._spool.forget(taken)


def _key(uid: str) -> str:
    """The name of a file or folder for a UID, which its sender chose."""
    return hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _tell_rejected(event: Any) -> None:
    _LOG.warning("warning: %s: association refused: its AE title is not allowed, or ours is another", _address(event))


def _address(event: Any) -> str:
    return str(event.assoc.requestor.address)


@functools.cache
def load_pynetdicom() -> ModuleType:
    """The module `pynetdicom`, its log off: it repeats what peers say. Raises MissingExtraError."""
    with translated("--dicom", f"needs pynetdicom, which is not here; {_INSTALL}", MissingExtraError):
        import pynetdicom
        import pynetdicom.sop_class
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    return pynetdicom


def _transfer_syntaxes(library: ModuleType) -> list[str]:
    """All that an image can come in, but the deflated ones: a few bytes of those may stand for more than any memory."""
    return [uid for uid in library.ALL_TRANSFER_SYNTAXES if uid not in _DEFLATED]


def _server_for(addresses: Sequence[str]) -> type:
    """The class of a server that hangs up on everybody whose address is not listed, if any is, and on a crowd."""
    load_pynetdicom()
    from pynetdicom.transport import ThreadedAssociationServer

    class Server(ThreadedAssociationServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            allowed = not addresses or client_address[0] in addresses
            if not allowed:
                _LOG.warning("warning: %s: connection refused: its address is not allowed", client_address[0])
                return False
            if len(self.active_associations) >= 2 * MOST_ASSOCIATIONS:
                _LOG.warning("warning: %s: connection refused: there are too many", client_address[0])
                return False
            return True

    return Server
