"""A package run as the device runs it: by its own runtime.pyz, in another process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deploy.runtime.package import unpacked
from ..errors import SamkdError


@dataclass(frozen=True)
class DeviceRun:
    """What runtime.pyz did with some scans: the path of each mask by the name of its scan's file, and its report."""

    masks: dict[str, Path]
    report: dict[str, Any]


def on_device(package: Path, scans: Sequence[Path], out: Path, *, threads: int | None = None) -> DeviceRun:
    """Segment scans with the package's own runtime, as the device would: another process, no torch in it.

    `package` is a folder or a zip; every file is checked before its runtime is started. Masks and report.json are
    written into the folder `out`. Raises what deploy.runtime.package.unpacked raises, SamkdError when the runtime
    fails.
    """
    report = out / "report.json"
    (out / "masks").mkdir(parents=True, exist_ok=True)
    with unpacked(package) as folder:
        command = [sys.executable, str(folder / "runtime.pyz"), "predict", *map(str, scans)]
        command += ["-o", str(out / "masks"), "--report", str(report)]
        command += ["--threads", str(threads)] if threads else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SamkdError(f"{package}: its runtime failed with exit {done.returncode}: {done.stderr.strip()}")
    return DeviceRun(
        {path.name: out / "masks" / path.name for path in scans},
        json.loads(report.read_text(encoding="utf-8")),
    )
