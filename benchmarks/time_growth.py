"""How the time of the runtime grows with the scan, the classes and the threads; a table, and DIR/growth.svg.

    python benchmarks/time_growth.py RUN PACKAGE --out DIR

The networks are of the run's kind with random weights, in float32, at its plan; PACKAGE lends its manifest. Every row
is a process from its start to its end, written to DIR/rows.json at once: a killed run goes on with the next one.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from measured_rows import Rows
from memory import write as write_waves
from runtime_vs_torch import measured

from samkd.deploy.runtime.manifest import ClassEntry, Manifest
from samkd.evaluation.chart import line_chart, svg_file
from samkd.training.run import Run

SIZES = ((128, 128, 128), (256, 256, 256), (512, 512, 250), (512, 512, 500), (512, 512, 1000))  # voxels (i, j, k)
EDGES = (0.8, 0.8, 1.0)  # mm
CLASSES = (2, 7, 14, 28, 56, 105)


def random_package(options: argparse.Namespace, package: Path, classes: int) -> Path:
    """A folder with a network of the run's kind for so many classes, with random weights; written once."""
    folder = options.out / f"random-{classes}"
    if not (folder / "manifest.json").exists():
        import torch

        from samkd.deploy.export.base import ExportRequest, Precision
        from samkd.deploy.export.openvino import candidates
        from samkd.students import student_from_spec

        torch.manual_seed(0)
        spec = replace(Run.read(options.run).config.network, num_classes=classes)
        network = student_from_spec(spec).eval()
        request = ExportRequest(network, spec.patch, spec.in_channels, calibration=[], precision=Precision.FP32)
        folder.mkdir(exist_ok=True)
        next(iter(candidates(request))).write(folder)
        manifest = Manifest.read(package)
        named = {value: ClassEntry(f"class {value}", (value, 0, 0)) for value in range(classes)}
        plan = Run.read(options.run).plan
        plain = replace(manifest, classes=named, plan=plan, precision="fp32", inference_precision="f32", small=None)
        plain = replace(plain, quantization=None, model="model.xml", target="openvino", scores=())
        raw = plain.to_json()
        raw["files"] = {
            **raw["files"],
            "model.xml": {"bytes": 0, "sha256": ""},
            "model.bin": {"bytes": 0, "sha256": ""},
        }
        (folder / "manifest.json").write_text(json.dumps(raw))
    return folder


def predict_unsealed(options: argparse.Namespace) -> None:
    """The child process: a folder that nothing was sealed in, on a scan."""
    from samkd.deploy.runtime.package import Package
    from samkd.deploy.runtime.predict import predict_scan
    from samkd.volumes.io.scans import find_scans, group_channels

    package = Package.of(options.unsealed, Manifest.read(options.unsealed), threads=options.threads)
    (scan,) = group_channels(find_scans([options.scan]), channels=1)
    predict_scan(package, scan, options.mask)


def growth(options: argparse.Namespace, rows: Rows) -> None:
    """How the time of the runtime grows; a table and a plot."""
    points = [(size, 7, 2) for size in SIZES] + [(SIZES[1], classes, 2) for classes in CLASSES] + [(SIZES[1], 7, 1)]
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        for size, classes, threads in dict.fromkeys(points):
            key = {"table": "growth", "size": list(size), "classes": classes, "threads": threads}
            if rows.known(**key):
                continue
            scan = Path(scratch) / "scan.nii"
            write_waves(scan, size, EDGES, np.int16)
            folder = random_package(options, options.package, classes)
            command = [sys.executable, __file__, str(options.run), "--out", str(options.out), "--scan", str(scan)]
            command += ["--mask", str(Path(scratch) / "mask.nii.gz"), "--unsealed", str(folder)]
            rows.measure(partial(measured, [*command, "--threads", str(threads)]), **key)
    every = rows.known(table="growth")
    print("\n| scan | million voxels | classes | threads | seconds | CPU seconds | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in every:
        size, millions = " x ".join(map(str, row["size"])), np.prod(row["size"]) / 1e6
        print(
            f"| {size} | {millions:.0f} | {row['classes']} | {row['threads']} | {row['seconds']:.1f} | "
            f"{row['cpu_seconds']:.1f} | {row['peak_mb']:.0f} MB |"
        )
    by_size = sorted((np.prod(row["size"]) / 1e6, row["cpu_seconds"]) for row in every if row["classes"] == 7)
    chart = line_chart("CPU seconds of one scan, 7 classes", {"ours, fp32": by_size}, x_label="million voxels")
    (options.out / "growth.svg").write_text(svg_file(chart), encoding="utf-8")
    print(f"plot: {options.out / 'growth.svg'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the student")
    parser.add_argument("package", type=Path, nargs="?", help="folder of its package")
    parser.add_argument("--out", type=Path, required=True, help="folder for networks and rows.json")
    for name in ("--scan", "--mask", "--unsealed"):  # of the child processes
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.unsealed:
        return predict_unsealed(options)
    if options.package is None:
        parser.error("name a package of the run")
    options.out.mkdir(parents=True, exist_ok=True)
    return growth(options, Rows(options.out / "rows.json"))


if __name__ == "__main__":
    main()
