"""A server of the page in this process or in one of its own, and a client of its HTTP interface."""

import http.client
import json
import secrets
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import served
from helpers.served import wait
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.serve.http.door import HttpDoor
from samkd.deploy.runtime.serve.http.options import HttpOptions
from samkd.deploy.runtime.serve.spool import Spool
from samkd.deploy.runtime.serve.worker import Worker
from samkd.volumes.geometry import Volume
from samkd.volumes.io.nifti import write_scan


def nifti_bytes(volume: Volume) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_scan(path, volume)
        return path.read_bytes()


class Server:
    """A door of the page in this process, with its own spool and worker."""

    def __init__(self, packages: list[Path], spool: Path, options: HttpOptions | None = None):
        opened = [Package.open(path, threads=1) for path in packages]
        self.packages = {package.manifest.digest: package for package in opened}
        self.id = next(iter(self.packages))[:16]
        self.spool, self._options = spool, options or HttpOptions(port=0)

    def __enter__(self):
        self._spool = Spool(self.spool)
        self.door = HttpDoor(self._options, spool=self._spool, packages=self.packages)
        self.worker = Worker(self._spool, self.packages, {self.door.name: self.door})
        self.worker.start()
        self.door.start(self.worker)
        self.port = self.door.port
        return self

    def __exit__(self, *_: object) -> None:
        self.door.stop()
        self.worker.stop()
        self._spool.close()


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Talks to a server on this machine; `headers` go with every request."""

    def __init__(self, port: int, **headers: str):
        self.port, self.headers = port, headers

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            names = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def delete(self, path: str, **headers: str) -> Answer:
        return self.request("DELETE", path, None, **headers)

    def post(self, path: str, values: object, **headers: str) -> Answer:
        return self.request("POST", path, json.dumps(values).encode(), Content_Type="application/json", **headers)

    def send(self, files: Mapping[str, bytes]) -> Answer:
        """POST /api/scans."""
        body, kind = form(files)
        return self.request("POST", "/api/scans", body, Content_Type=kind)

    def upload(self, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        answer = self.send(files)
        assert answer.status == 201, answer.body
        return answer.json["scans"]

    def begin(self, scan: str, package: str) -> str:
        answer = self.post("/api/jobs", {"scan": scan, "package": package})
        assert answer.status == 201, answer.body
        return answer.json["id"]

    def finish(self, scan: str, package: str) -> dict[str, Any]:
        id = self.begin(scan, package)
        wait(lambda: self.get(f"/api/jobs/{id}").json["state"] not in ("waiting", "running"))
        return self.get(f"/api/jobs/{id}").json


def form(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A body of multipart/form-data, and its media type."""
    boundary = secrets.token_hex(16)
    parts = []
    for name, content in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class ServerProcess:
    """`serve` in a process of its own, as a device runs it."""

    def __init__(self, package: Path, folder: Path, *words: str, python: str | Path = sys.executable):
        self.folder = folder
        options = ["--http", "0", "--spool", "spool", *words]
        self._server = served.Server(package, *options, log=folder / "log", cwd=folder, python=python)
        self.ready = self._server.start()
        assert self.ready.startswith("serving: page "), (self.ready, self.log())
        self.port = int(self.ready.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def kill(self) -> None:
        """As a power cut would."""
        self._server.kill()

    @property
    def is_alive(self) -> bool:
        return self._server.alive()

    def log(self) -> str:
        return self._server.log()

    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        return int(self._server.memory(peak=True) * 1e6)

    def files(self) -> list[str]:
        """What lies in its spool of scans and of uploads that are under way."""
        return sorted(path.name for path in (self.folder / "spool" / "scans").iterdir())
