"""What preprocessing and postprocessing execute, in instructions (`valgrind --tool=callgrind`, some minutes).

    python benchmarks/stage_instructions.py --out DIR

A phantom's CT with much air around the body, with and without the air; noise of the machine cannot hide a loss here.
"""

import argparse
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from measured_rows import Row, Rows

SEED = 9000  # of the generated patient


def stage(name: str) -> None:
    """The child process: a body in much air there ("preprocess") and back ("restore", "cropped")."""
    from samkd.volumes.datasets.phantom.generate import make_case
    from samkd.volumes.plan import Plan
    from samkd.volumes.preprocess import preprocess, restore_slabs
    from samkd.volumes.region import content_box

    volume, _ = make_case(SEED, shape=(50, 64, 64), orientation="SPL")
    wide = np.pad(volume.array, [(0, 0), (0, 0), (32, 32), (32, 32)], constant_values=-1000)
    volume = type(volume)(wide, replace(volume.geometry, shape=wide.shape[1:]))
    plan = Plan(spacing=(4, 4, 4), intensity=({"rule": "window", "low": -200, "high": 250},), patch=(32, 32, 32))
    if name == "start":
        return
    prepared = preprocess(volume, plan)
    if name == "preprocess":
        return
    box = content_box(prepared.array) if name == "cropped" else None
    seen = prepared.array if box is None else prepared.array[(slice(None), *box)]
    probabilities = np.concatenate([1 - seen, *([seen / 6] * 6)])
    restore_slabs([(0, probabilities)], prepared.geometry, volume.geometry, num_classes=7, box=box)


def instructions(rows: Rows) -> None:
    """Count what each stage executes more than the one before."""

    def counted(name: str) -> Row:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}", sys.executable, __file__]
        command += ["--stage", name]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread)
        total = re.search(r"Collected : (\d+)", done.stderr)
        assert total, done.stderr[-2000:]
        return {"instructions": int(total[1])}

    names = ("start", "preprocess", "restore", "cropped")
    for name in names:
        rows.measure(partial(counted, name), table="instructions", stage=name)
    start, preprocessing, whole, cropped = (
        rows.known(table="instructions", stage=name)[0]["instructions"] for name in names
    )
    print("\n| stage | million instructions |\n|---|---:|")
    for name, count in (
        ("preprocess", preprocessing - start),
        ("to the scan's labels, whole", whole - preprocessing),
        ("to the scan's labels, without the air", cropped - preprocessing),
    ):
        print(f"| {name} | {count / 1e6:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for rows.json")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # of the child processes
    options = parser.parse_args()
    if options.stage:
        return stage(options.stage)
    if options.out is None:
        parser.error("give --out DIR")
    options.out.mkdir(parents=True, exist_ok=True)
    return instructions(Rows(options.out / "rows.json"))


if __name__ == "__main__":
    main()
