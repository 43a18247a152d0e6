"""`samkd serve` and `runtime.pyz serve`: packages, a spool, the doors that were asked for, and the worker."""

from __future__ import annotations

import logging
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ....errors import UsageError
from ....volumes.byte_sizes import parse_bytes
from ..package import Package, warn_before_use
from .dicom_node import DicomDoor, NodeOptions
from .dicom_peer import Peer, ae_title
from .durations import parse_duration
from .folder import FolderDoor
from .http import require_libraries
from .http.options import PORT, HttpOptions, Limits, is_loopback
from .spool import Spool
from .worker import Door, Worker

_LOG = logging.getLogger("samkd.serve")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What a user can say to `serve`, on either command line."""

    spool: Path
    folder: Path | None = None  # watched for scans
    out: Path | None = None  # where their masks go
    dicom: str | None = None  # AET:PORT
    send: Sequence[str] = ()  # AET@HOST:PORT
    allow: str | None = None  # AE titles, separated by commas
    allow_address: str | None = None  # addresses, separated by commas
    host: str = "127.0.0.1"
    quiet: float = 10.0  # seconds
    reserve: str = "1G"
    largest_object: str = "1G"
    http: int | None = None  # the page's port, 0 for any; 8080 where no other door is open
    names: str | None = None  # by which browsers may call the page, separated by commas
    token_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    plain_http: bool = False  # for everybody, behind something that does TLS
    keep: str = "1h"
    max_upload: str = "2G"
    max_expanded: str = "8G"
    max_files: int = 10_000
    max_uploads: int = 8
    max_waiting: int = 64
    session_memory: str = "2G"
    patience: str = "30s"


def serve(options: ServeOptions, open_packages: Callable[[], Sequence[Package]]) -> int:
    """Segment what comes through the doors until a signal ends it; the exit code of that signal: 130 or 143.

    Raises SamkdError for what is wrong before the first scan.
    """
    _check(options)
    node, page = _node_options(options), _page_options(options)
    with _log_to_stderr(), ExitStack() as stack:
        packages = _by_digest(open_packages(), every_door_prompts=node is None and options.folder is None)
        spool = Spool(options.spool)
        stack.callback(spool.close)
        doors = _doors(options, node, page, spool=spool, packages=packages)
        worker = Worker(spool, packages, doors)
        worker.start()
        stack.callback(worker.stop)
        for door in doors.values():
            door.start(worker)
            stack.callback(door.stop)
        ready = f"serving: {', '.join(door.place for door in doors.values())}"
        if options.plain_http and page is not None:
            _LOG.warning("warning: --plain-http: scans, masks and the token pass in the clear to whoever connects here")
        if page is not None and page.token is not None and options.token_file is None:
            ready += f"\ntoken, printed this once: {page.token} (open the page with /?token= and it)"
        return _until_a_signal(ready)


def _check(options: ServeOptions) -> None:
    if (options.folder is None) != (options.out is None):
        raise UsageError("--folder and --out belong together: where scans come from, and where their masks go")
    if (options.dicom is None) != (not options.send):
        raise UsageError("--dicom and --send belong together: where studies come in, and who gets their masks")
    if (options.cert is None) != (options.key is None):
        raise UsageError("--cert and --key belong together: a certificate and its key, both as PEM")


def _node_options(options: ServeOptions) -> NodeOptions | None:
    if options.dicom is None:
        return None
    title, _, port = options.dicom.rpartition(":")
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise UsageError(f"--dicom {options.dicom!r}: expected AET:PORT, for example SAMKD:11112")
    return NodeOptions(
        title=ae_title(title, option="--dicom"),
        port=int(port),
        host=options.host,
        peers=tuple(Peer.parse(text, option="--send") for text in options.send),
        callers=tuple(ae_title(text, option="--allow") for text in _listed(options.allow)),
        addresses=tuple(_listed(options.allow_address)),
        quiet=options.quiet,
        reserve=int(parse_bytes(options.reserve, option="--reserve")),
        largest=int(parse_bytes(options.largest_object, option="--largest-object")),
    )


def _page_options(options: ServeOptions) -> HttpOptions | None:
    """What the page is told; None where it is not asked for and another door is open. Raises UsageError."""
    if options.http is None and (options.folder is not None or options.dicom is not None):
        return None
    port = PORT if options.http is None else options.http
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--http {port}: expected a port, 0 to 65535")
    if not is_loopback(options.host) and options.cert is None and not options.plain_http:
        raise UsageError(
            f"--host {options.host}: scans and the token would pass through the network in the clear; give --cert and "
            "--key, or --plain-http behind a proxy that does TLS"
        )
    require_libraries()
    return HttpOptions(
        port=port,
        host=options.host,
        names=tuple(_listed(options.names)),
        token=_token(options),
        cert=options.cert,
        key=options.key,
        limits=Limits(
            upload=int(parse_bytes(options.max_upload, option="--max-upload")),
            expanded=int(parse_bytes(options.max_expanded, option="--max-expanded")),
            files=options.max_files,
            uploads=options.max_uploads,
            waiting=options.max_waiting,
            sessions=int(parse_bytes(options.session_memory, option="--session-memory")),
            reserve=int(parse_bytes(options.reserve, option="--reserve")),
            patience=parse_duration(options.patience, option="--patience"),
            keep=parse_duration(options.keep, option="--keep"),
        ),
    )


def _token(options: ServeOptions) -> str | None:
    """That of the file; a new one for a page that others than this machine can reach. Raises UsageError."""
    if options.token_file is None:
        return None if is_loopback(options.host) else secrets.token_urlsafe(32)
    try:
        token = options.token_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--token-file {options.token_file}: cannot be read ({type(error).__name__})") from error
    if len(token) < 16 or not token.isprintable() or set(token) & set(' ",;\\'):
        raise UsageError(f"--token-file {options.token_file}: expected one line of at least 16 letters and digits")
    return token


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _by_digest(packages: Sequence[Package], *, every_door_prompts: bool) -> dict[str, Package]:
    """The packages by the digests of their manifests. Raises UsageError for those that no scan alone is enough for,
    unless every door takes prompts.
    """
    for package in packages:
        warn_before_use(package)
        if package.prompts_required and not every_door_prompts:
            raise UsageError(f"{package.path}: finds nothing without a prompt, and here nobody gives one")
    return {package.manifest.digest: package for package in packages}


def _doors(
    options: ServeOptions,
    node: NodeOptions | None,
    page: HttpOptions | None,
    *,
    spool: Spool,
    packages: Mapping[str, Package],
) -> dict[str, Door]:
    doors: list[Door] = []
    if options.folder is not None and options.out is not None:
        doors.append(FolderDoor(options.folder, options.out, spool=spool, packages=packages, quiet=options.quiet))
    if node is not None:
        for package in packages.values():
            if package.in_channels != 1:
                raise UsageError(f"{package.path}: takes {package.in_channels} channels, a DICOM series is one")
        doors.append(DicomDoor(node, spool=spool, packages=packages))
    if page is not None:
        from .http.door import HttpDoor

        doors.append(HttpDoor(page, spool=spool, packages=packages))
    else:
        shutil.rmtree(spool.root / "scans", ignore_errors=True)  # of a page that was served before: nobody can ask
    return {door.name: door for door in doors}


def _until_a_signal(ready: str) -> int:
    """Say that all is ready, wait for Ctrl-C or SIGTERM, and return the exit code; a second one ends at once."""
    ended = threading.Event()
    received: list[int] = []

    def end(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(ready, flush=True)
        while not ended.wait(1.0):  # so that Windows looks at signals, too
            pass
    finally:
        for number, handler in before.items():
            if number not in received:
                signal.signal(number, handler)
    return 128 + received[0]


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """The lines of samkd's log on stderr, as they are."""
    log, handler = logging.getLogger("samkd"), logging.StreamHandler(sys.stderr)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
