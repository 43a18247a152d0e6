"""`samkd bench PACKAGE...`: what a scan costs on the device, and what the torch network it came from costs."""

import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...deploy.runtime.package import unpacked
from ..session import on_device

STAGES = ("load", "read", "preprocess", "network", "postprocess", "save")


def bench_packages(
    packages: Sequence[Path], *, shape: tuple[int, int, int], threads: int | None, torch: Path | None
) -> list[dict[str, Any]]:
    """One generated CT of `shape` (slices, rows, columns) through every package and through its torch network.

    The torch network is that of the run `torch`, else of the runs the packages were made from where they still lie
    beside the folder of packages. Each row is a process of its own: "seconds" by stage, "process" (its whole life, the
    start of the interpreter included), "peak_memory_mb", "precision". Raises what session.on_device and
    training.run.Run.read raise.
    """
    from ...volumes.datasets.phantom.generate import make_case
    from ...volumes.io.nifti import write_scan

    runs = [torch] if torch else list(dict.fromkeys(run for package in packages for run in _origin(package)))
    with tempfile.TemporaryDirectory() as scratch:
        scan = Path(scratch) / "scan.nii.gz"
        write_scan(scan, make_case(0, shape=shape)[0])
        rows = [_device(package, scan, threads) for package in packages]
        return rows + [_torch(run, scan, threads) for run in runs]


def _origin(package: Path) -> list[Path]:
    with unpacked(package) as folder:
        name = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["provenance"].get("run")
    run = package.absolute().parent.parent / str(name)
    return [run] if (run / "config.yaml").is_file() else []


def _device(package: Path, scan: Path, threads: int | None) -> dict[str, Any]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        report = on_device(package, [scan], Path(out), threads=threads).report
    (made,) = report["scans"]
    return {
        "model": package.name,
        "seconds": {"load": report["seconds_load"], **made["seconds"]},
        "process": time.perf_counter() - started,
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
    """A run's network in PyTorch, eager, float32, through the same pipeline; measured as the device measures."""
    times = [time.perf_counter()]
    import torch

    from ...deploy.runtime.memory import peak_bytes
    from ...distill.networks import load_network
    from ...training.predictor import make_predictor
    from ...training.run import Run
    from ...volumes.io.nifti import read_scan, write_labels
    from ...volumes.pipeline import segment_prepared
    from ...volumes.plan import prepare

    torch.set_num_threads(threads or torch.get_num_threads())
    source = Run.read(run)
    infer, waited = make_predictor(load_network(source)), 0.0

    def timed(patches: Any) -> Any:
        nonlocal waited
        started = time.perf_counter()
        found = infer(patches)
        waited += time.perf_counter() - started
        return found

    times.append(time.perf_counter())
    volume = read_scan(scan, channels=len(source.config.channels))
    times.append(time.perf_counter())
    prepared = prepare(volume, source.plan)
    times.append(time.perf_counter())
    labels = segment_prepared(prepared, volume.geometry, source.plan, timed, classes=len(source.labels))
    times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as out:
        write_labels(Path(out) / "mask.nii.gz", labels, volume.geometry, like=scan)
    times.append(time.perf_counter())
    load, read, preprocess, both, save = (after - before for before, after in pairwise(times))
    peak = peak_bytes()
    return {
        "model": run.name,
        "seconds": dict(zip(STAGES, (load, read, preprocess, waited, both - waited, save), strict=True)),
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "precision": "torch fp32",
        "threads": torch.get_num_threads(),
    }
