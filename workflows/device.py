"""A package run as a device runs it: the runtime as one file, in a process of its own, without PyTorch."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deploy.package.zipping import write_runtime
from ..errors import BadInputError, IntegrityError, MissingExtraError, SamkdError, UsageError

_ERRORS = {each.exit_code: each for each in (UsageError, BadInputError, IntegrityError, MissingExtraError)}


@dataclass(frozen=True)
class DeviceRun:
    """What the runtime did with some scans: the path of each mask by the name of its scan's file, its report, and the
    seconds that its process lived, the start of the interpreter included.
    """

    masks: dict[str, Path]
    report: dict[str, Any]
    seconds: float


def on_device(
    package: Path, scans: Sequence[Path], out: Path, *, threads: int | None = None, trust: Path | None = None
) -> DeviceRun:
    """Segment scans with a package, a folder or a zip, as a device would: another process, no torch in it.

    The runtime is this samkd's own, written as one file. The package's runtime.pyz is never run: it is code of whoever
    made the package. With `trust`, a public key (PEM), its owner must have signed the package. The runtime, masks and
    report.json are written into the folder `out`. Raises the error of the exit code that the runtime ended with.
    """
    runtime, report, masks = out / "runtime.pyz", out / "report.json", out / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    write_runtime(runtime)
    command = [sys.executable, runtime, "predict", *scans, "-o", masks, "--report", report, "--package", package]
    command += ["--threads", threads] if threads else []
    command += ["--trust", trust] if trust else []
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        faults = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise _ERRORS.get(done.returncode, SamkdError)(" ".join(faults) or f"{package}: {done.stderr.strip()}")
    return DeviceRun(
        {path.name: masks / path.name for path in scans}, json.loads(report.read_text(encoding="utf-8")), seconds
    )
