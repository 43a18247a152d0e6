"""One CT from file to mask file: this project's device runtime against PyTorch eager with MONAI, side by side.

    python benchmarks/runtime_vs_torch.py PACKAGE RUN --repeats 3

RUN is the student the package was made from. Each measurement is a process of its own, from its start to its end,
interpreter and imports included, the two sides in turn; peak memory is the process's largest resident set. MONAI does
what our plan says: LoadImage, Orientation, ScaleIntensityRange, Spacing (linear), sliding_window_inference with the
same patch, overlap and Gaussian; then the class probabilities go back to the scan's grid through Spacing's and
Orientation's own inverse, linearly, argmax, SaveImage. (--nearest instead inverts the mask itself: cheaper, with
stairs; --dtype float32 lets Spacing compute in 32 bits instead of its default 64.) Spacing lays its first voxel on the
scan's first voxel, we lay edge on edge, so the two masks lie up to half a voxel of the plan apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast


def monai(
    run_folder: Path,
    scan: Path,
    out: Path,
    *,
    nearest: bool,
    dtype: str,
    predictor: Callable[[Any], Any] | None = None,
) -> None:
    """MONAI's way from a scan to its mask, with the run's network in torch or another `predictor` of logits."""
    import torch
    from monai.inferers.utils import sliding_window_inference
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.array import ScaleIntensityRange
    from monai.transforms.inverse import InvertibleTransform
    from monai.transforms.io.array import LoadImage, SaveImage
    from monai.transforms.spatial.array import Orientation, Spacing
    from monai.transforms.utility.array import EnsureChannelFirst

    from samkd.distill.networks import load_network
    from samkd.training.run import Run

    run = Run.read(run_folder)
    plan = run.plan
    (window,) = plan.intensity
    pixdim = [side for side in plan.spacing or () if side is not None]
    assert window["rule"] == "window" and len(pixdim) == 3 and plan.size is None, "a plan MONAI has words for"
    prepare = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes=plan.orientation, labels=None),
            ScaleIntensityRange(a_min=window["low"], a_max=window["high"], b_min=0, b_max=1, clip=True),
            Spacing(pixdim=pixdim, mode="bilinear", padding_mode="border", dtype=dtype),
        ]
    )
    network = predictor or load_network(run)
    with torch.inference_mode():
        image: Any = prepare(scan)
        logits: Any = sliding_window_inference(
            image[None],
            roi_size=plan.patch,
            sw_batch_size=1,
            predictor=network,
            overlap=plan.overlap,
            mode="gaussian",
            sigma_scale=0.125,
            cval=float(image.min()),
        )
        probabilities = logits[0].softmax(0)
        found = probabilities.argmax(0, keepdim=True).float() if nearest else probabilities
        found.applied_operations = image.applied_operations
        found.affine = image.affine
        orientation, spacing = (cast(InvertibleTransform, prepare.transforms[index]) for index in (2, -1))
        if nearest:
            for operation in found.applied_operations:
                if "mode" in operation["extra_info"]:
                    operation["extra_info"]["mode"] = "nearest"
        found = orientation.inverse(spacing.inverse(found))
        labels = found if nearest else found.argmax(0, keepdim=True)
    save = SaveImage(output_dir=out.parent, output_postfix="", separate_folder=False, dtype="uint8", resample=False)
    save(labels, meta_data=image.meta, filename=str(out).removesuffix(".nii.gz"))


def measured(command: list[str]) -> dict[str, Any]:
    """Seconds, CPU seconds and peak resident megabytes of a process, from its start to its end, its children included.

    Ends the benchmark with what the process said last when it fails.
    """
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages)
        while not (done := os.wait4(child.pid, os.WNOHANG))[0]:
            peak = max(peak, resident_mb(child.pid))
            time.sleep(0.02)
        seconds, usage = time.perf_counter() - started, done[2]
        child.returncode = os.waitstatus_to_exitcode(done[1])
        if child.returncode:
            messages.seek(0)
            sys.exit(
                f"{' '.join(command)}: exit {child.returncode}: {messages.read().decode(errors='replace')[-2000:]}"
            )
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": peak}


def resident_mb(process: int) -> float:
    """The largest resident set of a process so far, in megabytes; of one with children what all of them hold now, a
    page that several share counted once.
    """
    family = [process]
    for member in family:
        try:
            family += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
        except OSError:  # it has ended
            continue
    if len(family) == 1:
        return _field(Path(f"/proc/{process}/status"), "VmHWM")
    return sum(_field(Path(f"/proc/{member}/smaps_rollup"), "Pss:") for member in family)


def _field(path: Path, name: str) -> float:
    # Sampled: wait4's ru_maxrss would count this process's memory too, from between fork and exec.
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name)), 0.0)


def dice(one: Path, other: Path, classes: dict[int, str]) -> dict[str, float]:
    import numpy as np

    from samkd.volumes.io.nifti import read_labels

    (a, grid), (b, same) = read_labels(one), read_labels(other)
    assert grid.same_grid(same), "the two masks are on different grids"
    return {
        name: 2
        * np.count_nonzero((a == value) & (b == value))
        / max(1, np.count_nonzero(a == value) + np.count_nonzero(b == value))
        for value, name in classes.items()
        if value
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Our runtime against PyTorch eager with MONAI.")
    parser.add_argument("package", type=Path, help="folder or zip")
    parser.add_argument("run", type=Path, help="run folder of the same student")
    parser.add_argument("--shape", default="200x256x256", help="slices x rows x columns of the generated CT")
    parser.add_argument("--scan", type=Path, help="use this NIfTI scan instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fast", action="store_true", help="let our runtime overlap patches by a quarter only")
    parser.add_argument("--nearest", action="store_true", help="let MONAI invert the mask, not the probabilities")
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"], help="of MONAI's Spacing")
    parser.add_argument("--python", default=sys.executable, help="interpreter for our runtime, e.g. of a device's venv")
    parser.add_argument("--monai-to", type=Path, help=argparse.SUPPRESS)  # the child process
    options = parser.parse_args()
    if options.monai_to:
        monai(options.run, options.scan, options.monai_to, nearest=options.nearest, dtype=options.dtype)
        return

    from samkd.deploy.package.zipping import write_runtime
    from samkd.training.run import Run
    from samkd.volumes.datasets.phantom.generate import make_case
    from samkd.volumes.io.nifti import write_scan

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scan = options.scan
        if scan is None:
            d, h, w = map(int, options.shape.split("x"))
            scan = folder / "scan.nii.gz"
            write_scan(scan, make_case(0, shape=(d, h, w))[0])
        write_runtime(folder / "runtime.pyz")  # of this checkout, for packages of an older one
        masks = {"ours": folder / "ours.nii.gz", "monai": folder / "monai.nii.gz"}
        commands = {
            "ours": [
                *(options.python, str(folder / "runtime.pyz"), "predict", str(scan), "-o", str(masks["ours"])),
                *("--package", str(options.package), "--report", str(folder / "report.json")),
                *(["--fast"] if options.fast else []),
            ],
            "monai": [
                *(sys.executable, __file__, str(options.package), str(options.run), "--scan", str(scan)),
                *(
                    "--monai-to",
                    str(masks["monai"]),
                    "--dtype",
                    options.dtype,
                    *(["--nearest"] if options.nearest else []),
                ),
            ],
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                found[name].append(measured(command))
                print(f"{name}: {found[name][-1]['seconds']:.2f} s, {found[name][-1]['peak_mb']:.0f} MB", flush=True)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        stages = {"load": report["seconds_load"], **report["scans"][0]["seconds"]}
        print("ours, last time: " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
        ours, theirs = (
            {key: median(each[key] for each in found[name]) for key in ("seconds", "peak_mb")} for name in commands
        )
        faster, smaller = theirs["seconds"] / ours["seconds"], theirs["peak_mb"] / ours["peak_mb"]
        print(f"ours: {ours['seconds']:.2f} s, {ours['peak_mb']:.0f} MB; torch and MONAI: {theirs['seconds']:.2f} s, "
              f"{theirs['peak_mb']:.0f} MB: {faster:.1f} times as fast, 1/{smaller:.1f} of the memory")  # fmt: skip
        agreement = dice(masks["ours"], masks["monai"], Run.read(options.run).class_names)
        print("Dice of the two masks: " + ", ".join(f"{name} {value:.3f}" for name, value in agreement.items()))


if __name__ == "__main__":
    main()
