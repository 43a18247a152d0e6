"""The verbs of runtime.pyz: predict, verify, info."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadInputError, IntegrityError, SamkdError, UsageError
from ...volumes.files import atomic_path, make_folder
from ...volumes.nifti import read_labels, read_scan, write_labels
from .package import EXPECTED, SAMPLE, Package
from .report import run_report, volumes_ml

_SUFFIXES = (".nii", ".nii.gz")
SAMPLE_DICE = 0.999  # other CPUs add in another order, so single voxels on an edge may fall the other way


def run(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit code. Raises SamkdError."""
    options = _parser().parse_args(arguments)
    return options.verb(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runtime.pyz", description="Segment scans with the package beside this file.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb, text in ((_predict, "segment scans"), (_verify, "check every file, run the sample"), (_info, "describe")):
        each = verbs.add_parser(verb.__name__.strip("_"), help=text, description=text)
        each.set_defaults(verb=verb)
        each.add_argument("--package", type=Path, help="folder or zip (default: the folder that holds runtime.pyz)")
        each.add_argument("--threads", type=_positive, help="threads for the network (default: all cores)")
        if verb is _predict:
            each.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help="NIfTI scan, or a folder of them")
            each.add_argument("-o", "--output", required=True, type=Path, help="the mask, or a folder for the masks")
            each.add_argument("--report", type=Path, help="JSON file: seconds by stage, memory, organ volumes")
    return parser


def _predict(options: argparse.Namespace) -> int:
    jobs = _jobs(options.scans, options.output)
    started = time.perf_counter()
    package = _open(options)
    seconds_load = time.perf_counter() - started
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    code = 0
    for scan, mask in jobs:
        # One bad scan does not keep the others of a folder from being segmented.
        try:
            done.append(_segment(package, scan, mask))
            print(mask, flush=True)
        except SamkdError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed.append({"scan": str(scan), "error": str(error)})
            code = code or error.exit_code
    if options.report:
        report = run_report(package, seconds_load=seconds_load, scans=done, failed=failed)
        with atomic_path(options.report) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return code


def _segment(package: Package, scan: Path, mask: Path) -> dict[str, Any]:
    times = [time.perf_counter()]
    infer_before = package.engine.seconds
    volume = read_scan(scan, channels=package.in_channels)
    times.append(time.perf_counter())
    labels = package.segment(volume)
    times.append(time.perf_counter())
    network = package.engine.seconds - infer_before
    write_labels(mask, labels, volume.geometry, like=scan)
    times.append(time.perf_counter())
    read, segment, save = np.diff(times).tolist()
    return {
        "scan": str(scan),
        "mask": str(mask),
        "shape": list(volume.geometry.shape),
        "spacing_mm": list(volume.geometry.spacing),
        "seconds": {"read": read, "prepare_and_restore": segment - network, "network": network, "save": save},
        "volumes_ml": volumes_ml(labels, volume.geometry, package.labels),
    }


def _verify(options: argparse.Namespace) -> int:
    package = _open(options)
    print(f"files: all {len(package.manifest['files'])} are what was packed")
    volume = read_scan(package.folder / SAMPLE, channels=package.in_channels)
    expected, geometry = read_labels(package.folder / EXPECTED)
    found = package.segment(volume)
    if not geometry.same_grid(volume.geometry):
        raise IntegrityError(f"{package.folder}: its expected mask is not on the grid of its sample.")
    if np.array_equal(found, expected):
        print("sample: identical to the mask that was packed")
        return 0
    lowest, name = min((_dice(found == value, expected == value), name) for value, name in package.labels.items())
    if lowest < SAMPLE_DICE:
        raise IntegrityError(
            f"{package.folder}: on this machine the sample's mask differs from the one that was packed, Dice "
            f"{lowest:.4f} for {name}; expected {SAMPLE_DICE} or more. Do not use this package on this machine."
        )
    print(f"sample: not identical, but Dice {lowest:.4f} or more for every class (lowest: {name})")
    return 0


def _info(options: argparse.Namespace) -> int:
    package = _open(options)
    manifest = package.manifest
    print(f"{manifest['name']}: samkd {manifest['samkd']}, {manifest['precision']}, {manifest['target']}")
    print(f"classes: {', '.join(name for value, name in package.labels.items() if value)}")
    print(f"input: {package.in_channels} channel(s), patch {'x'.join(map(str, package.plan.patch))}")
    print(f"computes in {package.engine.precision} with {package.engine.threads} threads ({package.engine.version})")
    for name, row in manifest["scores"]["per_class"].items():
        if row["cases"]:
            print(f"Dice of {name}: {row['package']:.4f} on {row['cases']} held-out scans (torch: {row['torch']:.4f})")
    return 0


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / size if size else 1.0


def _open(options: argparse.Namespace) -> Package:
    here = Path(sys.argv[0])
    if options.package is None and here.suffix != ".pyz":
        raise UsageError("no package named; give --package DIR")
    return Package.open(options.package or here.resolve().parent, threads=options.threads)


def _jobs(scans: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """(scan, mask) pairs; nothing is overwritten that is itself to be read. Raises BadInputError, UsageError."""
    sources = [found for scan in scans for found in (_nifti_files(scan) if scan.is_dir() else [scan])]
    if output.name.endswith(_SUFFIXES):
        if len(scans) > 1 or scans[0].is_dir():
            raise UsageError(f"-o {output}: several scans need a folder for their masks, not a file")
        jobs = [(sources[0], output)]
    else:
        jobs = [(source, output / source.name) for source in sources]
        make_folder(output)
    targets = {str(mask.resolve()).casefold() for _, mask in jobs}
    if len(targets) < len(jobs):
        raise UsageError(f"-o {output}: two scans have the same file name; segment them into different folders")
    clash = [source for source in sources if str(source.resolve()).casefold() in targets]
    if clash:
        raise UsageError(f"-o {output}: the mask would overwrite the scan {clash[0]}; choose another place")
    return jobs


def _nifti_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES))
    if not found:
        raise BadInputError(f"{folder}: no NIfTI scan (.nii, .nii.gz) here")
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected 1 or more")
    return value
