"""The whole scan, side by side: torch and MONAI, OpenVINO inside MONAI, nnU-Net v2, and our packages; one table.

    python benchmarks/twenty_times.py RUN PACKAGE... --out DIR [--nnunet NNUNET] [--threads 2]
    python benchmarks/twenty_times.py RUN PACKAGE... --out DIR --growth
    python benchmarks/twenty_times.py RUN PACKAGE... --out DIR --instructions

RUN is the student that the packages were made from, whose plan MONAI has words for (runtime_vs_torch.py). The scans are
generated CTs (--shapes) that no training saw, with their truths. Every row is a process from its start to its end,
interpreter and imports included; CPU seconds are those of all its threads and children. nnU-Net (`python -m venv NNUNET
&& NNUNET/bin/pip install nnunetv2`) runs its default network at the run's plan, with random weights and without
mirroring. A row is written to DIR/rows.json as soon as it is measured: a run that was killed goes on with the next one.

--growth shows how the time grows with the scan, the classes (networks of the run's kind with random weights) and the
threads, and writes DIR/growth.svg. --instructions counts what preprocessing and postprocessing execute
(`valgrind --tool=callgrind`, some minutes), with and without the air around the body.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from memory import write as write_waves
from runtime_vs_torch import dice, measured, monai

from samkd.deploy.package.zipping import write_runtime
from samkd.deploy.runtime.manifest import ClassEntry, Manifest
from samkd.evaluation.chart import line_chart, svg_file
from samkd.training.run import Run
from samkd.volumes.io.nifti import write_labels, write_scan

SEED = 9000  # of the generated patient
SHAPES = ("200x256x256", "400x512x512")
SIZES = ((128, 128, 128), (256, 256, 256), (512, 512, 250), (512, 512, 500), (512, 512, 1000))  # voxels (i, j, k)
EDGES = (0.8, 0.8, 1.0)  # mm
CLASSES = (2, 7, 14, 28, 56, 105)
_FEATURES = (32, 64, 128, 256, 320, 320)  # of nnU-Net's stages, until a side of the patch would fall below 4
Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One row of the table: its name, the command that writes a mask, and where."""

    name: str
    command: list[str]
    mask: Path
    trained: bool = True  # with random weights its mask says nothing


class Rows:
    """What was measured so far, in a file that every new row is added to at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def known(self, **key: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def measure(self, measurement: Callable[[], Row], *, repeats: int = 1, **key: Any) -> None:
        """Add what `measurement` returns, so often in all."""
        for _ in range(repeats - len(self.known(**key))):
            row = {**key, **measurement()}
            self.rows.append(row)
            draft = self._path.with_suffix(".new")
            draft.write_text(json.dumps(self.rows, indent=1))
            draft.replace(self._path)
            print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


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
        yield nnunet(options, scan, masks)
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


def nnunet(options: argparse.Namespace, scan: Path, masks: Path) -> Side:
    """nnU-Net's own prediction, in its own environment, with its default network for the run's plan."""
    folder = options.out / "nnunet"
    if not (folder / "fold_all" / "checkpoint_final.pth").exists():
        (folder / "fold_all").mkdir(parents=True, exist_ok=True)
        plans, dataset = nnunet_plans(Run.read(options.run))
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        code = f"""
import json, torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
plans = json.load(open({str(folder / "plans.json")!r}))
of = plans["configurations"]["3d_fullres"]["architecture"]
network = get_network_from_plans(of["network_class_name"], of["arch_kwargs"], of["_kw_requires_import"], 1,
                                 {len(dataset["labels"])}, allow_init=True, deep_supervision=False)
print(sum(each.numel() for each in network.parameters()) / 1e6, "million parameters")
torch.save({{"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
             "init_args": {{"configuration": "3d_fullres"}}, "inference_allowed_mirroring_axes": None}},
           {str(folder / "fold_all" / "checkpoint_final.pth")!r})
"""
        subprocess.run([options.nnunet / "bin" / "python", "-c", code], check=True)
    scans, predictions = masks / "nnunet-scans", masks / "nnunet-masks"
    scans.mkdir(exist_ok=True)
    link = scans / "scan_0000.nii.gz"
    if not link.exists():
        link.symlink_to(scan.resolve())
    code = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"
    command = [str(options.nnunet / "bin" / "python"), "-c", code, "-i", str(scans), "-o", str(predictions)]
    command += ["-m", str(folder), "-f", "all", "--disable_tta", "-device", "cpu", "-npp", "1"]
    command += ["-nps", "1", "--disable_progress_bar"]
    threads = ["env", f"OMP_NUM_THREADS={options.threads}"]
    return Side("nnU-Net v2 predict, random weights, no mirroring", [*threads, *command], predictions, trained=False)


def nnunet_plans(run: Run) -> tuple[Row, Row]:
    """plans.json and dataset.json: what nnU-Net's planner writes for CT with this patch and spacing."""
    patch, spacing = list(run.plan.patch), [float(side or 1) for side in run.plan.spacing or (1, 1, 1)]
    halvings = next(n for n in range(len(_FEATURES)) if min(patch) >> n < 8 or n == len(_FEATURES) - 1)
    stages = halvings + 1
    resampling = {"order": 1, "order_z": 0, "force_separate_z": None}
    network = {
        "n_stages": stages,
        "features_per_stage": list(_FEATURES[:stages]),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *([[2, 2, 2]] * halvings)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * halvings,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [128.0, 224.0, 224.0],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, **resampling, "order": 3},
        "resampling_fn_seg_kwargs": {"is_seg": True, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **resampling},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    values = {"max": 3071.0, "mean": 60.0, "median": 60.0, "min": -1024.0, "std": 80.0}
    plans = {
        "dataset_name": "Dataset900_Phantom",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": [128, 224, 224],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {**values, "percentile_00_5": -200.0, "percentile_99_5": 250.0}
        },
    }
    labels = {name: value for value, name in run.class_names.items()}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    return plans, dataset


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
    """The child process of --growth: a folder that nothing was sealed in, on a scan."""
    from samkd.deploy.runtime.package import Package
    from samkd.deploy.runtime.predict import predict_scan
    from samkd.volumes.io.scans import find_scans, group_channels

    package = Package.of(options.unsealed, Manifest.read(options.unsealed), threads=options.threads)
    (scan,) = group_channels(find_scans([options.scan]), channels=1)
    predict_scan(package, scan, options.mask)


def growth(options: argparse.Namespace, rows: Rows) -> None:
    """How the time of the runtime grows; a table and a plot."""
    package = options.packages[0]
    points = [(size, 7, 2) for size in SIZES] + [(SIZES[1], classes, 2) for classes in CLASSES] + [(SIZES[1], 7, 1)]
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        for size, classes, threads in dict.fromkeys(points):
            key = {"table": "growth", "size": list(size), "classes": classes, "threads": threads}
            if rows.known(**key):
                continue
            scan = Path(scratch) / "scan.nii"
            write_waves(scan, size, EDGES, np.int16)
            folder = random_package(options, package, classes)
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


def stage(name: str) -> None:
    """The child process of --instructions: a body in much air there ("preprocess") and back ("restore", "cropped")."""
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


def instructions(options: argparse.Namespace, rows: Rows) -> None:
    """Count what each stage executes more than the one before."""

    def counted(name: str) -> Row:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}", sys.executable, __file__]
        command += [str(options.run), "--out", str(options.out), "--stage", name]
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
    parser = argparse.ArgumentParser(description="The whole scan, side by side.")
    parser.add_argument("run", type=Path, help="run folder of the student")
    parser.add_argument("packages", type=Path, nargs="*", help="folders of its packages")
    parser.add_argument("--out", type=Path, required=True, help="folder for scans, masks and rows.json")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="slices x rows x columns of the generated CTs")
    parser.add_argument("--nnunet", type=Path, help="a virtual environment with nnunetv2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--instructions", action="store_true")
    for name in ("--scan", "--mask", "--unsealed"):  # of the child processes
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("torch", "openvino"), help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return with_monai(options)
    if options.unsealed:
        return predict_unsealed(options)
    if options.stage:
        return stage(options.stage)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.out / "rows.json")
    if options.instructions:
        return instructions(options, rows)
    return growth(options, rows) if options.growth else compare(options, rows)


if __name__ == "__main__":
    main()
