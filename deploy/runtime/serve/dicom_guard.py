"""What peers may make the DICOM node hold: the length and time of a message, and the bytes of all that arrive at once.

pynetdicom bounds none of it: it waits for ever for the rest of a PDU, reads one of any length, and gathers the parts of
an object until its end comes. The limits are kept with its events alone, so that this file does not import it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST_PDU = 1 << 20  # bytes; we ask for 16 kB, and the longest association request has some tens of them
PDU_SECONDS = 30.0  # from the first byte of a PDU to its last, and for the taking of an answer
OBJECT_SECONDS = 600.0  # from the first PDU of an object to its last
_P_DATA = 4  # the type of the PDUs that carry parts of messages
_CHUNK = 1 << 16
_LOG = logging.getLogger("samkd.serve")


@dataclass
class _Arrivals:
    """What an association has sent that is not answered yet, in bytes."""

    whole: deque[int] = field(default_factory=deque)  # each message that waits for its answer
    part: int = 0  # of the message that is arriving
    since: float = 0.0  # when the first of it came

    @property
    def size(self) -> int:
        return sum(self.whole) + self.part


class Guard:
    """Breaks off an association that goes beyond a limit; what it had sent of an object is dropped.

    `largest` is in bytes, and that of all objects together that are arriving or are being written.
    """

    def __init__(self, *, largest: int):
        self._largest = largest
        self._arrivals: defaultdict[Any, _Arrivals] = defaultdict(_Arrivals)  # by association
        self._lock = threading.Lock()

    # What pynetdicom calls, each with its event.

    def opened(self, event: Any) -> None:
        """A connection was made: nothing is read from it yet, and its threads have not begun."""
        association = event.assoc
        association.dul.daemon = True  # a peer that sends nothing must not keep the process from its end
        for thread in (association, association.dul):
            thread.run = functools.partial(told_in_a_line, thread.run, association)
        transport = association.dul.socket
        transport.recv = functools.partial(receive, transport.socket)

    def received(self, event: Any) -> None:
        """A whole PDU came."""
        if event.data[0] != _P_DATA:
            return
        now = time.monotonic()
        with self._lock:
            arrivals = self._arrivals[event.assoc]
            if not arrivals.part:
                arrivals.since = now
            arrivals.part += len(event.data)
            large = sum(each.size for each in self._arrivals.values()) > self._largest
            slow = now - arrivals.since > OBJECT_SECONDS
            if large or slow:
                del self._arrivals[event.assoc]
        if large or slow:
            why = f"objects of more than {self._largest / 1e6:.0f} MB at once" if large else "an object without an end"
            _LOG.warning("warning: %s: association broken off: %s", event.assoc.requestor.address, why)
            event.assoc.abort()
            transport = event.assoc.dul.socket
            transport.recv = functools.partial(receive, transport.socket, longest=0)  # not a byte more

    def gathered(self, event: Any) -> None:
        """A message is whole."""
        with self._lock:
            arrivals = self._arrivals[event.assoc]
            arrivals.whole.append(arrivals.part)
            arrivals.part = 0

    def answered(self, event: Any) -> None:
        """The answer to a message was sent."""
        with self._lock:
            if whole := self._arrivals[event.assoc].whole:
                whole.popleft()

    def closed(self, event: Any) -> None:
        """A connection ended."""
        with self._lock:
            self._arrivals.pop(event.assoc, None)
        if not event.assoc.is_established:
            event.assoc.dul.to_user_queue.put(None)  # its thread waits for a request, which comes no more

    def forget_dead(self) -> None:
        """Drop what associations held whose end was never told, because their threads broke down."""
        with self._lock:
            for association in [one for one in self._arrivals if not one.is_alive()]:
                del self._arrivals[association]


def receive(connection: socket.socket, count: int, *, longest: int = LONGEST_PDU) -> bytearray:
    """`count` bytes of a PDU; fewer when the peer hung up. Raises OSError when they are too many or take too long."""
    content = bytearray()
    end = time.monotonic() + PDU_SECONDS
    try:
        if count > longest:
            raise OSError(f"a PDU of {count} bytes")
        while len(content) < count:
            connection.settimeout(max(end - time.monotonic(), 1e-3))
            part = connection.recv(min(count - len(content), _CHUNK))
            if not part:
                break
            content += part
            if len(content) < count and time.monotonic() > end:
                raise TimeoutError("a PDU that takes too long")
        connection.settimeout(PDU_SECONDS)  # for the answer
    except OSError:
        connection.close()  # pynetdicom takes the connection for one that its peer has closed
        raise
    return content


def told_in_a_line(run: Callable[[], None], association: Any) -> None:
    """Run a thread of pynetdicom, whose state machine raises what it likes for PDUs that it does not expect."""
    try:
        run()
    except Exception as error:
        address = association.requestor.address
        _LOG.warning("warning: %s: association broken off: PDUs in no order (%s)", address, type(error).__name__)


def hang_up(association: Any) -> None:
    """End an association from our side, whatever its threads wait for."""
    association.abort(block=False)
    association.join(1.0)
    connection = association.dul.socket.socket if association.dul.socket else None
    if connection is not None:
        with contextlib.suppress(OSError):  # closed by the peer or by its own threads
            connection.shutdown(socket.SHUT_RDWR)
