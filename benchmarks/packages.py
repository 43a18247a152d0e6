"""Students packed for every target and precision: size, Dice on the test scans, seconds and memory per scan.

    python benchmarks/packages.py RUN [RUN ...] --out runs/table --threads 2

Each row is `samkd deploy`, then the package's own runtime.pyz on all test scans, in a process of its own; its masks are
scored. "drop" is the largest loss of a class against the torch network's test Dice. A package the gate refuses is a
row that says so. Killed, it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from verbs import samkd

from samkd.deploy.runtime.manifest import Manifest
from samkd.training.run import Run
from samkd.workflows.evaluate import evaluate

WAYS = {"openvino": ("fp32", "bf16", "int8"), "onnx": ("fp32", "int8")}
REFUSED = 6


def deployed(run: Path, target: str, precision: str, out: Path, max_drop: float) -> Path | None:
    package = out / f"{run.name}-{target}-{precision}"
    verdict = package.with_suffix(".refused")
    if verdict.exists():
        return None
    if not package.exists():
        try:
            samkd(
                *("deploy", run, "--target", target, "--precision", precision, "--max-drop", max_drop),
                *("--runs", run.parent, "--out", package),
            )
        except subprocess.CalledProcessError as error:
            if error.returncode != REFUSED:
                raise
            verdict.touch()
            return None
    return package


def measured(package: Path, scans: Path, *, threads: int) -> dict[str, Any]:
    masks, report = package.with_suffix(".masks"), package.with_suffix(".json")
    command = [sys.executable, package / "runtime.pyz", "predict", scans, "-o", masks, "--report", report]
    subprocess.run([*map(str, command), "--threads", str(threads)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-drop", type=float, default=0.005)
    options = parser.parse_args()
    lines = []
    for path in options.students:
        run = Run.read(path)
        data = Path(run.config.data)
        test = run.metrics().test
        assert test is not None, f"{path}: this run has no test scores"
        torch = test.summary.per_class
        for target, precisions in WAYS.items():
            for precision in precisions:
                title = f"| {run.config.network.name} | {target} | {precision}"
                package = deployed(path, target, precision, options.out, options.max_drop)
                if package is None:
                    lines.append(f"{title} | refused | | | | |" + " |" * len(torch))
                    continue
                report = measured(package, data / "imagesTs", threads=options.threads)
                scores = evaluate(package.with_suffix(".masks"), data).summary.per_class
                found = {name: row.dice for name, row in scores.items() if row.dice is not None}
                drop = max((torch[name].dice or 0) - dice for name, dice in found.items())
                manifest = Manifest.read(package)
                size = sum(each.stat().st_size for each in package.glob("model.*")) / 1e6
                how = f" ({manifest.quantization})" if manifest.quantization not in (None, "plain") else ""
                lines.append(
                    f"{title}{how} | {size:.1f} | {report['seconds_load']:.2f} | {report['seconds_per_scan']:.2f} | "
                    f"{report['peak_memory_mb']:.0f} | {drop:+.4f} | "
                    + " | ".join(f"{found[name]:.3f}" if name in found else "-" for name in torch)
                    + " |"
                )
    columns = ("student", "target", "precision", "model, MB", "load, s", "scan, s", "peak, MB", "drop", *torch)
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
