"""`samkd bench serve PACKAGE SCAN`: many people at one server, as fast as they can be served."""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from ...deploy.package.zipping import write_runtime
from ...errors import BadInputError, SamkdError, UsageError
from ...volumes.files import temporary_folder
from ..models import checked_manifest

ANSWERED, REFUSED, LOST = "answered", "refused", "lost"
_POLL = 0.05  # seconds between two looks at a job
_PATIENCE = 600  # seconds for a mask
_FULL = 503


@dataclass(frozen=True)
class ServeCosts:
    """What became of the uploads; seconds from the first byte sent to the last byte of the mask, over the answered."""

    counts: dict[str, int]
    faults: list[str]  # what happened to those that were lost, the first few
    seconds: float  # for all of them
    p50: float
    p95: float
    peak_memory_mb: float | None  # of the server


def bench_serve(
    package: Path,
    scan: Path,
    *,
    clients: int,
    uploads: int,
    threads: int | None = None,
    trust: Path | None = None,
    words: Sequence[str] = (),
) -> ServeCosts:
    """Start a server of this samkd's own runtime in a process of its own, and let `clients` upload the scan `uploads`
    times, wait for each mask and fetch it. `words` are further options of the server.

    Nobody tries again: an upload or a job that is answered with 503 is refused, and whatever else keeps a mask away is
    lost. Raises what opening the package raises, BadInputError for a scan that cannot be read or does not fit.
    """
    checked_manifest(package, threads=threads, trust=trust)
    try:
        content = scan.read_bytes()
    except OSError as error:
        raise BadInputError(f"{scan}: cannot be read ({error.strerror or error}). Name one file.") from error
    with temporary_folder() as folder, _server(package, Path(folder), threads, trust, words) as port:
        name = _package_that_fits(port, scan, content)
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            outcomes = list(pool.map(lambda _: _one(port, scan.name, content, name), range(uploads)))
        seconds = time.perf_counter() - started
        peak = _peak(port)
    latencies = sorted(latency for state, latency, _ in outcomes if state == ANSWERED) or [float("nan")]
    cuts = quantiles(latencies, n=20) if len(latencies) > 1 else latencies * 19
    counts = Counter(state for state, _, _ in outcomes)
    faults = [fault for state, _, fault in outcomes if state == LOST][:5]
    rows = {state: counts[state] for state in (ANSWERED, REFUSED, LOST)}
    return ServeCosts(rows, faults, seconds, cuts[9], cuts[18], peak and peak / 1e6)


@contextmanager
def _server(
    package: Path, folder: Path, threads: int | None, trust: Path | None, words: Sequence[str]
) -> Iterator[int]:
    """The port of a server that lives as long as the block. Raises SamkdError when it does not start."""
    runtime, log = folder / "runtime.pyz", folder / "log"
    write_runtime(runtime)
    command = [sys.executable, runtime, "serve", package.absolute(), "--http", "0", "--spool", folder / "spool", *words]
    command += ["--threads", threads] if threads else []
    command += ["--trust", trust.absolute()] if trust else []
    with (
        log.open("wb") as errors,
        subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            if not ready.startswith("serving: page "):
                process.wait(60)
                faults = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
                raise SamkdError(faults[0].removeprefix("error: ") if faults else f"{package}: cannot be served.")
            yield int(ready.rsplit(":", 1)[1])
        finally:
            process.terminate()


def _package_that_fits(port: int, scan: Path, content: bytes) -> str:
    """The ID of the package, after one scan that also loads what the server loads late. Raises BadInputError."""
    status, answer = _send(port, "POST", "/api/scans", *_form(scan.name, content))
    if status != 201:
        raise BadInputError(f"{scan}: {_error(answer)}")
    fits = json.loads(answer)["scans"][0]["fits"]
    if not fits:
        raise UsageError(f"{scan}: is no scan for this package: other channels, or another modality")
    state, _, fault = _one(port, scan.name, content, fits[0])
    if state != ANSWERED:
        raise BadInputError(f"{scan}: {fault}")
    return fits[0]


def _one(port: int, name: str, content: bytes, package: str) -> tuple[str, float, str]:
    """One upload: what became of it, in how many seconds, and if it was lost, why."""
    started = time.perf_counter()
    try:
        status, answer = _send(port, "POST", "/api/scans", *_form(name, content))
        if status == 201:
            job = {"scan": json.loads(answer)["scans"][0]["id"], "package": package}
            status, answer = _send(port, "POST", "/api/jobs", json.dumps(job).encode(), "application/json")
        if status == _FULL:
            return REFUSED, 0.0, ""
        if status != 201:
            return LOST, 0.0, f"{status}: {_error(answer)}"
        id = json.loads(answer)["id"]
        while (shown := json.loads(_send(port, "GET", f"/api/jobs/{id}")[1]))["state"] in ("waiting", "running"):
            if time.perf_counter() - started > _PATIENCE:
                return LOST, 0.0, f"no mask after {_PATIENCE} s"
            time.sleep(_POLL)
        status, mask = _send(port, "GET", f"/api/jobs/{id}/mask")
        if status != 200 or not mask:
            return LOST, 0.0, f"{status}: {shown['error'] or _error(mask)}"
        return ANSWERED, time.perf_counter() - started, ""
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return LOST, 0.0, f"{type(error).__name__}: {error}"


def _send(port: int, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _form(name: str, content: bytes) -> tuple[bytes, str]:
    """A body of multipart/form-data with one file, and its media type."""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _error(answer: bytes) -> str:
    try:
        values: Any = json.loads(answer)
        return str(values["error"])
    except (ValueError, KeyError, TypeError):
        return "no answer that is one"


def _peak(port: int) -> float | None:
    """The most memory that the server has had, in bytes, as it says itself."""
    lines = _send(port, "GET", "/metrics")[1].decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return float(values["samkd_peak_memory_bytes"]) if "samkd_peak_memory_bytes" in values else None
