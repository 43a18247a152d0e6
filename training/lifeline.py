"""Notices when a process of those that train together is gone, and says which: a collective alone would wait for ever.

Every process holds a connection to the first one, which its kernel closes when it dies, however it dies; of a machine
that is gone, keepalive tells within SILENCE seconds. Nothing is sent over it but the last words of a process that ends.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SamkdError
from .ranks import of_main, rank, world_size

SILENCE = 30  # seconds
GRACE = 10.0  # seconds for the work to notice by itself that another process is gone
_LONGEST = 1 << 20  # bytes of a line
_CONNECT = 60.0  # seconds for the others to connect


class ProcessLostError(SamkdError):
    """Another process of this training ended; a code other than 1 is that of its own error."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Process:
    """Who is at the other end."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


@dataclass(frozen=True)
class Loss:
    """Why training cannot go on; `told` if another process prints it."""

    message: str
    exit_code: int
    told: bool


class Lifeline:
    """The connections of this process; to be made by all of them at the same point."""

    def __init__(self, address: str) -> None:
        self._changed = threading.Event()
        self._over = threading.Event()
        self._loss: Loss | None = None
        self._peers = self._listen() if rank() == 0 else self._connect(address)
        threading.Thread(target=self._watch, name="samkd lifeline", daemon=True).start()

    def loss(self, *, within: float) -> Loss | None:
        """What is known of another process that ended, waiting for it for so many seconds."""
        self._changed.wait(within)
        return self._loss

    def end(self, words: dict[str, Any]) -> None:
        """Tell the others how this process ends: {} in good order, else its `error` and `code`."""
        self._over.set()
        self._send(words)

    def _send(self, words: dict[str, Any]) -> None:
        """Only the first words count: they are all that the others read."""
        for connection in self._peers:
            try:
                connection.sendall(json.dumps({"end": words}).encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # it is gone already

    def _listen(self) -> dict[socket.socket, _Process]:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=world_size()) as server:
            server.settimeout(_CONNECT)
            token = secrets.token_hex(16)
            of_main((server.getsockname()[1], token, asdict(_this_process())))
            peers: dict[socket.socket, _Process] = {}
            while len(peers) < world_size() - 1:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT)
                words = _hello(connection)
                if words.pop("token", None) == token:  # else somebody else's
                    peers[_kept_alive(connection)] = _Process(**words)
        return peers

    def _connect(self, address: str) -> dict[socket.socket, _Process]:
        port, token, first = of_main((0, "", {}))
        connection = socket.create_connection((address, port), timeout=_CONNECT)
        connection.sendall(json.dumps({"token": token, **asdict(_this_process())}).encode() + b"\n")
        return {_kept_alive(connection): _Process(**first)}

    def _watch(self) -> None:
        """Until every other process has ended in good order, or one has not."""
        with selectors.DefaultSelector() as selector:
            for connection in self._peers:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    connection: Any = key.fileobj
                    selector.unregister(connection)
                    words = _last_words(connection)
                    if words != {}:
                        self._lost(self._peers[connection], words)
                        return

    def _lost(self, peer: _Process, words: dict[str, Any] | None) -> None:
        if words is None:
            what, code = "was killed, ran out of memory, or its machine is gone", 1
        else:
            what, code = f"ended with: {words['error']}", int(words["code"])
        told = words is not None and peer.rank == 0  # which prints its own error
        message = (
            f"{peer} of the {world_size()} that train together {what}. Nothing goes on without it; start all of them "
            "again, and the run continues from its last state"
        )
        self._loss = Loss(message, code, told)
        self._changed.set()
        self._send({"error": message, "code": code})
        if not self._over.wait(GRACE):
            if not told:
                sys.stderr.write(f"error: {message}\n")
                sys.stderr.flush()
            os._exit(code)


def _this_process() -> _Process:
    return _Process(rank(), socket.gethostname(), os.getpid())


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE // 3), ("TCP_KEEPINTVL", SILENCE // 6), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _hello(connection: socket.socket) -> dict[str, Any]:
    """Who connects, by its first line; {} for a stranger, who may say anything."""
    try:
        words = json.loads(_line(connection))
    except ValueError:
        return {}
    return words if isinstance(words, dict) else {}


def _line(connection: socket.socket) -> bytes:
    """What comes until a line ends, or the connection does, or more than a line of ours."""
    content = b""
    try:
        while not content.endswith(b"\n") and len(content) < _LONGEST and (part := connection.recv(65536)):
            content += part
    except OSError:
        pass  # reset, or silent for too long
    return content


def _last_words(connection: socket.socket) -> dict[str, Any] | None:
    """The first line, for a process may send more; None where the connection ended without any."""
    content = _line(connection)
    return json.loads(content.split(b"\n")[0])["end"] if content.endswith(b"\n") else None
