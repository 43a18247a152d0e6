"""`samkd predict`: any model through the device's own pipeline; and a package's own runtime as a device runs it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deploy.runtime.package import unpacked
from ..deploy.runtime.predict import PredictOptions
from ..deploy.runtime.predict import predict as predict_with
from ..errors import SamkdError
from .models import load_model


def predict(
    model: Path,
    options: PredictOptions,
    *,
    base: Path | None = None,
    trust: Path | None = None,
    threads: int | None = None,
) -> int:
    """Segment scans with a package or a run and return the exit code; what is printed is what runtime.pyz prints.

    `base` is the published file that a run adapts, where it has moved; `trust` the public key (PEM) whose owner must
    have signed a package. Raises what deploy.runtime.predict.predict and models.load_model raise.
    """
    return predict_with(options, lambda: load_model(model, base=base, trust=trust, threads=threads))


@dataclass(frozen=True)
class DeviceRun:
    """What runtime.pyz, in a process of its own, did with some scans."""

    masks: dict[str, Path]
    report: dict[str, Any]


def on_device(package: Path, scans: Sequence[Path], out: Path, *, threads: int | None = None) -> DeviceRun:
    """Segment scans with the package's own runtime, as the device would: another process, no torch in it.

    `package` is a folder or a zip; every file is checked before its runtime is started.
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
