"""The door of the page: uvicorn in a thread of its own, and the removal of what nobody uses any more."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from .....errors import UsageError, translated
from ...package import Package
from ..spool import Job, Spool
from ..worker import Worker
from .app import Api, application
from .jobs import DOOR
from .options import HttpOptions
from .page_files import VIEWER, page_files
from .protocol import protocol_with
from .scans import Scans

_CONNECTIONS = 256
_LOOK = 15.0  # seconds between two looks for what has expired
_LOG = logging.getLogger("samkd.serve")


class HttpDoor:
    """Serves the page. Masks are not delivered but fetched, until their scan expires."""

    name = DOOR
    destinations: tuple[str, ...] = ()
    keeps = True

    def __init__(self, options: HttpOptions, *, spool: Spool, packages: Mapping[str, Package]):
        """Listen, and answer nothing yet. Raises UsageError for a port that cannot be had and a wrong certificate."""
        _check_certificate(options)
        if VIEWER not in page_files():
            _LOG.warning("warning: the page has no viewer: `make web` in samkd's sources builds it for new packages")
        self._options, self._spool, self._packages = options, spool, packages
        limits = options.limits
        self._scans = Scans(spool.root / "scans", keep=limits.keep, largest=limits.expanded)
        self._socket = _listen(options)
        self._ended = threading.Event()
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where the page is, without the token."""
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        return f"{'https' if self._options.cert else 'http'}://{host}:{self.port}"

    @property
    def place(self) -> str:
        return f"page {self.url}"

    def start(self, worker: Worker) -> None:
        options = self._options
        api = Api(options, spool=self._spool, worker=worker, scans=self._scans, packages=self._packages)
        self._api = api
        api.jobs.forget_lost()
        self._expire()
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # it repeats what clients send
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        config = uvicorn.Config(
            application(api, options),
            http=protocol_with(options.limits.patience),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=5,
            ssl_certfile=options.cert,
            ssl_keyfile=options.key,
        )
        self._server = uvicorn.Server(config)
        self._threads = [
            threading.Thread(target=self._server.run, args=([self._socket],), name="page", daemon=True),
            threading.Thread(target=self._sweep, name="expiry", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def deliver(self, job: Job, mask: Path, destination: str) -> None:
        """There is no destination: masks are fetched."""

    def failed(self, job: Job) -> None:
        """Whoever brought the scan asks for the job, and is told."""

    def may_forget(self, job: Job) -> bool:
        return False  # jobs go with their scans

    def _sweep(self) -> None:
        while not self._ended.wait(_LOOK):
            try:
                self._expire()
            except Exception as error:  # the disk is full or away; the next look may do
                _LOG.error("error: page: expired scans cannot be removed (%s)", type(error).__name__)

    def _expire(self) -> None:
        """Remove the scans that nobody has used for long enough, with all that was made of them."""
        for id in self._scans.ids():
            if self._api.jobs.is_busy(id):
                self._scans.touch(id)
            elif self._scans.expires(id) <= time.time():
                self._api.forget(id)
                _LOG.info("scan %s: removed, it had expired", id)


def _listen(options: HttpOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--http: cannot listen on {options.host}:{options.port} ({reason})") from error


def _check_certificate(options: HttpOptions) -> None:
    if options.cert is not None:
        with translated(f"--cert {options.cert}", "is no certificate with its --key, both as PEM", UsageError):
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.cert, options.key)
