"""`samkd bench PACKAGE...`: what a scan costs on the device, and what the torch network it came from costs."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...deploy.runtime.manifest import Manifest
from ...volumes.datasets.phantom.generate import make_case
from ...volumes.files import temporary_folder
from ...volumes.io.nifti import write_scan
from ..device import on_device
from ..models import checked_manifest

STAGES = ("load", "read", "preprocess", "network", "postprocess", "save")


def bench_packages(
    packages: Sequence[Path],
    *,
    shape: tuple[int, int, int],
    threads: int | None,
    torch: Path | None,
    trust: Path | None = None,
) -> list[dict[str, Any]]:
    """One generated CT of `shape` (slices, rows, columns) through every package and through its torch network.

    The torch network is that of the run `torch`, else of the runs the packages were made from where they still lie
    beside the folder of packages. Each row is a process of its own: "seconds" by stage, "process" (its whole life, the
    start of the interpreter included), "peak_memory_mb", "precision". Packages are checked before anything else is
    done, with `trust`, a public key (PEM), their signatures, too. Raises what deploy.runtime.package.Package.open,
    workflows.device.on_device and training.run.Run.read raise.
    """
    manifests = {package: checked_manifest(package, threads=threads, trust=trust) for package in packages}
    origins = [run for package, manifest in manifests.items() for run in _origin(package, manifest)]
    runs = [torch] if torch else list(dict.fromkeys(origins))
    with temporary_folder() as scratch:
        scan = Path(scratch) / "scan.nii.gz"
        write_scan(scan, make_case(0, shape=shape)[0])
        rows = [_device(package, scan, threads, trust) for package in packages]
        return rows + [_torch(run, scan, threads) for run in runs]


def _origin(package: Path, manifest: Manifest) -> list[Path]:
    """The run that a package was made from, where it lies beside the folder of packages; [] where it does not."""
    run = package.absolute().parent.parent / str(manifest.provenance.get("run"))
    return [run] if (run / "config.yaml").is_file() else []


def _device(package: Path, scan: Path, threads: int | None, trust: Path | None) -> dict[str, Any]:
    with temporary_folder() as out:
        device = on_device(package, [scan], Path(out), threads=threads, trust=trust)
    report = device.report
    (scan_report,) = report["scans"]
    return {
        "model": package.name,
        "seconds": {"load": report["seconds_load"], **scan_report["seconds"]},
        "process": device.seconds,
        "peak_memory_mb": report["peak_memory_mb"],
        "precision": report["precision"],
        "threads": report["threads"],
    }


def _torch(run: Path, scan: Path, threads: int | None) -> dict[str, Any]:
    started = time.perf_counter()
    # Spawned: nothing of this process is in its time or its memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        row = pool.submit(segment_with_torch, run, scan, threads).result()
    return {**row, "process": time.perf_counter() - started}


def segment_with_torch(run: Path, scan: Path, threads: int | None) -> dict[str, Any]:
    """A run's network in PyTorch, eager, float32, through the pipeline of the device, and measured by its clock."""
    started = time.perf_counter()
    from ...deploy.runtime.predict import predict_scan
    from ...volumes.io.scans import sources
    from ...volumes.memory import peak_bytes
    from ..models import load_run

    model = load_run(run, threads=threads)
    seconds_load = time.perf_counter() - started
    (source,) = sources(scan, channels=model.in_channels)
    with temporary_folder() as out:
        row = predict_scan(model, source, Path(out) / "mask.nii.gz")
    peak = peak_bytes()
    return {
        "model": run.name,
        "seconds": {"load": seconds_load, **row["seconds"]},
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "precision": "torch fp32",
        "threads": model.threads,
    }
