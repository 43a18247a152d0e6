"""`runtime.pyz serve` as a process of its own, and Orthanc as its PACS: started, killed and measured."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")  # None where it is not installed


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(until: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until `until` is true; a test fails when it is not in time."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)


def states(spool: Path) -> list[str]:
    """The state of every job of a spool."""
    return [json.loads(path.read_text())["state"] for path in (spool / "jobs").glob("*/job.json")]


class Server:
    """`runtime.pyz serve` with the options `words`; its log is added to the file `log`."""

    def __init__(
        self, package: Path, *words: object, log: Path, cwd: Path | None = None, python: str | Path = sys.executable
    ):
        self._command = [str(python), str(package / "runtime.pyz"), "serve", *map(str, words)]
        self._log, self._cwd = log, cwd

    def start(self) -> str:
        """Start it, and wait until it is ready; the line that says so."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._cwd,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        assert ready, f"the server ended by itself: {self.log()}"
        return ready

    def log(self) -> str:
        return self._log.read_text()

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self, seconds: float = 60) -> int:
        """Ask it to end; its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def memory(self, *, peak: bool = False) -> float:
        """What it holds, or the most that it ever held, in MB. Linux alone."""
        name = "VmHWM:" if peak else "VmRSS:"
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

    def open_files(self) -> int:
        """How many files and connections it has open. Linux alone."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def threads(self) -> int:
        """How many threads it runs. Linux alone."""
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))


class Orthanc:
    """A PACS with an index of its own, that can be away."""

    def __init__(self, folder: Path):
        self.dicom, self._http, self._folder = free_port(), free_port(), folder
        config = {
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom,
            "HttpPort": self._http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "Plugins": [],
        }
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))

    def start(self) -> None:
        if ORTHANC is None:
            raise SystemExit("Orthanc is not installed (Debian: apt-get install orthanc)")
        self._process = subprocess.Popen([ORTHANC, self._folder / "config.json"], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def objects(self) -> list[dict[str, Any]]:
        """The header of every object that it holds, by names."""
        return [self._ask(f"instances/{instance}/simplified-tags") for instance in self._ask("instances")]

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/{path}") as answer:
            return json.load(answer)
