"""The whole scan, side by side: torch and MONAI, OpenVINO inside MONAI, nnU-Net v2, and our packages; one table.

    python benchmarks/twenty_times.py RUN PACKAGE... --out DIR [--nnunet NNUNET] [--threads 2]

RUN is the student that the packages were made from, whose plan MONAI has words for (runtime_vs_torch.py). The scans are
generated CTs (--shapes) that no training saw, with their truths. Every row is a process from its start to its end,
interpreter and imports included; CPU seconds are those of all its threads and children. nnU-Net (`python -m venv NNUNET
&& NNUNET/bin/pip install nnunetv2`) runs its default network at the run's plan, with random weights and without
mirroring. A row is written to DIR/rows.json as soon as it is measured: a run that was killed goes on with the next one.

time_growth.py shows how the time grows with scan, classes and threads, stage_instructions.py what the stages around
the network execute.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

from measured_rows import Row, Rows
from nnunet_side import nnunet_command
from runtime_vs_torch import dice, measured, monai

from samkd.deploy.package.zipping import write_runtime
from samkd.deploy.runtime.manifest import Manifest
from samkd.training.run import Run
from samkd.volumes.io.nifti import write_labels, write_scan

SEED = 9000  # of the generated patient
SHAPES = ("200x256x256", "400x512x512")


@dataclass(frozen=True)
class Side:
    """One row of the table: its name, the command that writes a mask, and where."""

    name: str
    command: list[str]
    mask: Path
    trained: bool = True  # with random weights its mask says nothing


def sides(options: argparse.Namespace, scan: Path, masks: Path) -> Iterator[Side]:
    """The rows for one scan; what they need is made on the way, and is not timed."""
    me = [sys.executable, "-W", "ignore", __file__, str(options.run), "--out", str(options.out), "--scan", str(scan)]
    me += ["--threads", str(options.threads)]
    for side, name in (
        ("torch", "torch eager and MONAI"),
        ("openvino", "plain OpenVINO inside MONAI's sliding window"),
    ):
        if side == "openvino":
            plain_openvino(options.run, options.out)
        mask = masks / f"{side}.nii.gz"
        yield Side(name, [*me, "--side", side, "--mask", str(mask)], mask)
    if options.nnunet:
        name = "nnU-Net v2 predict, random weights, no mirroring"
        yield Side(name, *nnunet_command(options, scan, masks), trained=False)
    runtime = options.out / "runtime.pyz"
    write_runtime(runtime)  # of this checkout
    for package in options.packages:
        manifest, mask = Manifest.read(package), masks / f"{package.name}.nii.gz"
        patch = " x ".join(map(str, manifest.plan.patch))
        name = f"ours, {manifest.precision}, patch {patch}, overlap {manifest.plan.overlap:g} ({package.name})"
        command = [sys.executable, str(runtime), "predict", str(scan), "-o", str(mask), "--package", str(package)]
        yield Side(name, [*command, "--threads", str(options.threads)], mask)


def plain_openvino(run_folder: Path, out: Path) -> Path:
    """The run's network as OpenVINO converts it by itself, without our rewriting of it; written once."""
    path = out / "plain.xml"
    if path.exists():
        return path
    import torch

    from samkd.deploy.runtime.engine_openvino import load_openvino
    from samkd.distill.networks import load_network

    run, ov = Run.read(run_folder), load_openvino()
    from openvino.tools.ovc import convert_model

    example = torch.zeros(1, len(run.config.channels), *run.plan.patch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: one size of patch is the purpose
        model = convert_model(load_network(run).eval(), example_input=example, input=[tuple(example.shape)])
    ov.save_model(model, path)
    return path


def with_monai(options: argparse.Namespace) -> None:
    """The child process of a side that MONAI leads."""
    import torch

    torch.set_num_threads(options.threads)
    predictor = None
    if options.side == "openvino":
        from samkd.deploy.runtime.engine_openvino import Engine

        engine = Engine(plain_openvino(options.run, options.out), precision="f32", threads=options.threads)
        predictor = lambda patch: torch.from_numpy(engine(patch.numpy()))  # noqa: E731
    monai(options.run, options.scan, options.mask, nearest=False, dtype="float64", predictor=predictor)


def scored(side: Side, truth: Path, classes: dict[int, str]) -> Row:
    """What a side's process took, and the mean Dice of its mask over the classes."""
    row = measured(side.command)
    return row | {"dice": mean(dice(side.mask, truth, classes).values()) if side.trained else None}


def compare(options: argparse.Namespace, rows: Rows) -> None:
    """Measure every side on every scan, and print the table."""
    from samkd.volumes.datasets.phantom.generate import make_case  # not at the top: it would weigh on the children

    classes = Run.read(options.run).class_names
    for shape in options.shapes:
        d, h, w = map(int, shape.split("x"))
        folder = options.out / shape
        folder.mkdir(parents=True, exist_ok=True)
        scan, truth = folder / "scan.nii.gz", folder / "truth.nii.gz"
        if not truth.exists():
            volume, labels = make_case(SEED, shape=(d, h, w), orientation="SPL")
            write_scan(scan, volume)
            write_labels(truth, labels, volume.geometry, like=scan)
        every = list(sides(options, scan, folder))
        for repeat in range(options.repeats):
            for side in every:
                measurement = partial(scored, side, truth, classes)
                key = {"table": "sides", "scan": shape, "side": side.name, "threads": options.threads, "repeat": repeat}
                rows.measure(measurement, **key)
    print("\n| scan | | seconds | CPU seconds | faster | peak memory | mean Dice |\n|---|---|---:|---:|---:|---:|---:|")
    for shape in options.shapes:
        every = rows.known(table="sides", scan=shape, threads=options.threads)
        first = None
        for name in dict.fromkeys(row["side"] for row in every):
            of = [row for row in every if row["side"] == name]
            seconds, cpu, peak = (median(row[key] for row in of) for key in ("seconds", "cpu_seconds", "peak_mb"))
            first = first or seconds
            score = "" if of[0]["dice"] is None else f"{of[0]['dice']:.3f}"
            print(f"| {shape} | {name} | {seconds:.1f} | {cpu:.1f} | {first / seconds:.1f} | {peak:.0f} MB | {score} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="The whole scan, side by side.")
    parser.add_argument("run", type=Path, help="run folder of the student")
    parser.add_argument("packages", type=Path, nargs="*", help="folders of its packages")
    parser.add_argument("--out", type=Path, required=True, help="folder for scans, masks and rows.json")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="slices x rows x columns of the generated CTs")
    parser.add_argument("--nnunet", type=Path, help="a virtual environment with nnunetv2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    for name in ("--scan", "--mask"):  # of the child processes
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("torch", "openvino"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return with_monai(options)
    options.out.mkdir(parents=True, exist_ok=True)
    return compare(options, Rows(options.out / "rows.json"))


if __name__ == "__main__":
    main()
