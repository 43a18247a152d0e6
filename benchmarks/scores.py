"""samkd's scores beside those of other libraries: their differences, and time and memory on CT-sized cases.

    PYTHONPATH=tests python benchmarks/scores.py                  # differences on 200 random and 20 pathological pairs
    PYTHONPATH=tests python benchmarks/scores.py --speed          # 40 cases of 256 x 256 x 100 with 14 classes

`pip install --no-deps medpy surface-distance` adds two of the five libraries. With `--speed` each side scores the same
cases in a process of its own: Dice, IoU, HD95, ASD and NSD of every class.
"""

import argparse
import importlib.util
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from helpers.reference_scores import REFERENCES, by_samkd, pathological_pairs, random_pairs
from scipy.ndimage import zoom

from samkd.evaluation.scores import score_case
from samkd.volumes.datasets.parallel import in_threads

MODULES = {"MONAI": "monai", "scipy": "scipy", "SimpleITK": "SimpleITK", "MedPy": "medpy"}
MODULES["surface-distance"] = "surface_distance"
TOLERANCE, SPACING, SHAPE, CLASSES = 1.7, (3.0, 1.5, 1.5), (100, 256, 256), 14
LABELS = {value: f"organ {value}" for value in range(CLASSES + 1)}
SCORES = ("dice", "iou", "hd95_mm", "asd_mm", "nsd")
Masks = Sequence[np.ndarray]  # prediction and truth


def differences(random: int) -> None:
    """Print the largest difference per library and metric, and the pair on which it arose."""
    pairs = [*random_pairs(random), *pathological_pairs()]
    ours = {pair.name: by_samkd(pair, TOLERANCE) for pair in pairs}
    print("| library | score | pairs | largest difference | on |\n|---|---|---:|---:|---|")
    for library, reference in REFERENCES.items():
        if importlib.util.find_spec(MODULES[library]) is None:
            print(f"| {library} | not installed | | | |")
            continue
        gaps: dict[str, list[tuple[float, str]]] = {}
        for pair in pairs:
            for metric, value in reference(pair, TOLERANCE).items():
                gaps.setdefault(metric, []).append((abs(value - ours[pair.name][metric]), pair.name))
        for metric, rows in gaps.items():
            gap, name = max(rows)
            print(f"| {library} | {metric} | {len(rows)} | {gap:.1e} | {name if gap > 0 else '-'} |", flush=True)


def ct_sized(number: int) -> Masks:
    """Prediction and truth [100, 256, 256] with 14 organs: uneven ellipsoids, the prediction a bit off."""
    rng = np.random.default_rng(number)
    uneven = zoom(rng.normal(0, 0.15, (6, 12, 12)).astype(np.float32), np.array(SHAPE) / (6, 12, 12), order=1)
    sides, masks = np.array(SHAPE), (np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8))
    for value in range(1, CLASSES + 1):
        centre, radius = rng.uniform(0.15, 0.85, 3) * sides, rng.uniform(0.05, 0.17, 3) * sides
        low = np.maximum(0, centre - 1.7 * radius).astype(int)
        high = np.minimum(sides, centre + 1.7 * radius + 2).astype(int)
        box = tuple(slice(*span) for span in zip(low, high, strict=True))
        for mask, off in zip(masks, (rng.normal(0, 1.0, 3), np.zeros(3)), strict=True):
            places = (np.indices((high - low).tolist()).T + low - centre - off) / radius
            mask[box][1 + uneven[box] > np.sqrt((places**2).sum(-1)).T] = value
    return masks


def with_samkd(masks: Masks) -> list[list[float]]:
    rows = score_case(masks[0], masks[1], spacing=SPACING, labels=LABELS, tolerance_mm=TOLERANCE)
    return [[_value(getattr(row, metric)) for metric in SCORES] for row in rows]


def _value(value: float | None) -> float:
    return math.nan if value is None else value


def with_monai(masks: Masks) -> list[list[float]]:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    p, t = (torch.from_numpy(np.stack([mask == value for value in LABELS])[None]).float() for mask in masks)
    spacing = list(SPACING)
    columns = [
        compute_dice(p, t, include_background=False),
        compute_iou(p, t, include_background=False),
        compute_hausdorff_distance(p, t, percentile=95, spacing=spacing),
        compute_average_surface_distance(p, t, symmetric=True, spacing=spacing),
        compute_surface_dice(p, t, class_thresholds=[TOLERANCE] * CLASSES, spacing=spacing),
    ]
    return torch.cat(columns).T.tolist()


def one_side(side: str, folder: Path) -> None:
    """Score the cases of a folder and print, as JSON, the scores, seconds and the peak memory of this process."""
    score = with_monai if side == "MONAI" else with_samkd
    cases = map(np.load, sorted(folder.iterdir()))
    started = time.perf_counter(), time.process_time()
    scores = list(in_threads(score, cases) if side == "samkd, in threads" else map(score, cases))
    wall, cpu = (end - start for end, start in zip((time.perf_counter(), time.process_time()), started, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"scores": scores, "wall": wall, "cpu": cpu, "peak_mb": peak}))


def speed(count: int, folder: Path) -> None:
    """Print time, memory and the largest difference of both sides, a process for each."""
    print(f"{count} cases of {' x '.join(map(str, SHAPE))}, {CLASSES} classes, read from arrays on disk")
    print("| side | seconds a case | CPU seconds a case | peak memory of the process |\n|---|---:|---:|---:|")
    results = {}
    for number in range(count):
        np.save(folder / f"{number:03d}.npy", np.stack(ct_sized(number)))
    for side in ("samkd", "samkd, in threads", "MONAI"):
        command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--folder", str(folder)]
        done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        results[side] = np.array(done["scores"])
        print(
            f"| {side} | {done['wall'] / count:.2f} | {done['cpu'] / count:.2f} | {done['peak_mb']:.0f} MB |",
            flush=True,
        )
    assert np.array_equal(results["samkd"], results["samkd, in threads"], equal_nan=True)
    for index, metric in enumerate(SCORES):
        ours, theirs = (results[side][..., index] for side in ("samkd", "MONAI"))
        both = np.isfinite(ours) & np.isfinite(theirs)
        print(f"{metric}: largest difference {np.abs(ours - theirs)[both].max():.1e} over {both.sum()} organs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="random pairs")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.side:
        one_side(options.side, options.folder)
    elif options.speed:
        with tempfile.TemporaryDirectory() as folder:
            speed(options.cases, Path(folder))
    else:
        differences(options.pairs)


if __name__ == "__main__":
    main()
