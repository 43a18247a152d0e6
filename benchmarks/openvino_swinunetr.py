"""swinunetr-tiny in OpenVINO on the CPU: MONAI's module converted plainly, and ours, side by side.

    python benchmarks/openvino_swinunetr.py --threads 1 --repeats 9

The same weights in both: MONAI's initial ones, with position biases and every other vector moved at random, as
training would. "cold" and peak memory are a fresh process that loads the file and infers once (its baseline, the
imports and the image, taken off). Times are warm: all models in one process, in turn, so that a busy machine slows all
alike; cpu is the processor time of the same runs, which other programs change less. Differences are between class
probabilities. --profile adds, for each model, the time of each kind of layer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from samkd.deploy.runtime.engine_openvino import core, load_openvino
from samkd.volumes.memory import peak_bytes

ROWS = {  # name: (file, arithmetic)
    "plain": ("plain", "f32"),
    "ours, fp32": ("ours", "f32"),
    "ours, fp16 file": ("half", "f32"),
    "plain in bf16": ("plain", "bf16"),
    "ours in bf16": ("ours", "bf16"),
}


def write_models(folder: Path, patch: tuple[int, int, int]) -> None:
    """plain.xml, ours.xml, half.xml, an image and torch's answer to it."""
    import torch
    from monai.networks.nets import swin_unetr

    from samkd.deploy.export.graphs import whole
    from samkd.deploy.export.openvino import convert, save
    from samkd.students import build_student

    ov = load_openvino()
    from openvino.tools.ovc import convert_model

    torch.manual_seed(0)
    theirs = swin_unetr.SwinUNETR(in_channels=1, out_channels=7, feature_size=12).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "relative_position" in name or parameter.ndim == 1:
                parameter += torch.randn_like(parameter) * (0.5 if "relative_position" in name else 0.1)
    ours = build_student("swinunetr-tiny", in_channels=1, num_classes=7, patch=patch).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 1, *patch)

    class Probabilities(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = theirs

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image).softmax(1)

    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        np.save(folder / "expected.npy", Probabilities()(image).numpy())
        plain = convert_model(Probabilities(), example_input=image, input=[tuple(image.shape)])
    np.save(folder / "image.npy", image.numpy())
    ov.save_model(plain, folder / "plain.xml", compress_to_fp16=False)
    model = convert(whole(ours, patch=patch, in_channels=1))
    save(model, folder / "ours.xml", half=False)
    save(model, folder / "half.xml", half=True)


def compiled(file: Path, arithmetic: str, threads: int, *, profile: bool = False) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profile,
    }
    return core().compile_model(file, "CPU", options).create_infer_request()


def cold(folder: Path, name: str, threads: int) -> None:
    """Load and infer once; print the seconds of each and the MB of memory both added."""
    file, arithmetic = ROWS[name]
    image = np.load(folder / "image.npy")
    core()
    before = peak_bytes() or 0.0
    started = time.perf_counter()
    request = compiled(folder / f"{file}.xml", arithmetic, threads)
    loaded = time.perf_counter()
    request.infer([image])
    done = time.perf_counter()
    peak = ((peak_bytes() or 0.0) - before) / 1e6
    print(json.dumps({"load": loaded - started, "first": done - loaded, "peak": peak}))


def layer_times(folder: Path, name: str, threads: int) -> str:
    """The kinds of layer that take longest, in % of the time of all, over warm runs."""
    file, arithmetic = ROWS[name]
    image = np.load(folder / "image.npy")
    request = compiled(folder / f"{file}.xml", arithmetic, threads, profile=True)
    request.infer([image])
    first, runs = request.get_profiling_info(), 5
    for _ in range(runs - 1):
        request.infer([image])
    spent = Counter()
    for early, late in zip(first, request.get_profiling_info(), strict=True):
        # The counters are means over all runs; the first run's, which also touches new memory, is taken out.
        spent[late.node_type] += runs * late.real_time.total_seconds() - early.real_time.total_seconds()
    whole = sum(spent.values())
    return ", ".join(f"{kind} {100 * value / whole:.0f}%" for kind, value in spent.most_common(8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--cold", nargs=2, help=argparse.SUPPRESS)  # folder and row, in the process of its own
    options = parser.parse_args()
    if options.cold:
        cold(Path(options.cold[0]), options.cold[1], options.threads)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(folder, tuple(options.patch))
        once = {}
        for name in ROWS:
            command = [sys.executable, __file__, "--cold", scratch, name, "--threads", str(options.threads)]
            once[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        image, expected = np.load(folder / "image.npy"), np.load(folder / "expected.npy")
        requests = {
            name: compiled(folder / f"{file}.xml", arithmetic, options.threads)
            for name, (file, arithmetic) in ROWS.items()
        }
        answers = {name: request.infer([image])[0].copy() for name, request in requests.items()}
        wall, cpu = {name: [] for name in ROWS}, {name: [] for name in ROWS}
        for _ in range(options.repeats):
            for name, request in requests.items():
                clock, processor = time.perf_counter(), time.process_time()
                request.infer([image])
                wall[name].append(time.perf_counter() - clock)
                cpu[name].append(time.process_time() - processor)
        print(f"{options.threads} thread(s), {core().get_property('CPU', 'FULL_DEVICE_NAME')}, patch {options.patch}")
        print(
            f"{'':16}{'file MB':>8}{'load s':>8}{'cold ms':>9}{'peak MB':>9}{'min ms':>8}{'median':>8}{'cpu ms':>8}"
            f"{'faster':>8}{'cold x':>8}{'off plain':>11}{'off torch':>11}"
        )
        for name, (file, _) in ROWS.items():
            size = sum((folder / f"{file}.{end}").stat().st_size for end in ("xml", "bin")) / 1e6
            load, first, peak = (once[name][key] for key in ("load", "first", "peak"))
            print(
                f"{name:16}{size:8.1f}{load:8.2f}{1e3 * first:9.0f}{peak:9.0f}"
                f"{1e3 * min(wall[name]):8.0f}{1e3 * median(wall[name]):8.0f}{1e3 * median(cpu[name]):8.0f}"
                f"{median(cpu['plain']) / median(cpu[name]):7.2f}x{once['plain']['first'] / first:7.2f}x"
                f"{np.abs(answers[name] - answers['plain']).max():11.1e}{np.abs(answers[name] - expected).max():11.1e}"
            )
        if options.profile:
            for name in ROWS:
                print(f"{name}: {layer_times(folder, name, options.threads)}")


if __name__ == "__main__":
    main()
