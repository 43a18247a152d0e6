"""How well `--ram` knows what a scan needs: the least it accepts for scans of several shapes, and what was then used.

    python benchmarks/memory.py PACKAGE

Each scan is segmented by `runtime.pyz` in processes of their own: first without a limit, then with limits between
"refused" and "accepted" until the least that is accepted is known to 2 %. Peaks are those of the process (VmHWM).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

# Voxels (i, j, k), their edges in mm, and the type they are stored in.
SCANS = (
    ((256, 256, 200), (1.5, 1.5, 2.0), np.int16),
    ((512, 512, 400), (0.8, 0.8, 1.0), np.int16),
    ((40, 40, 4000), (8.0, 8.0, 0.5), np.int16),
    ((512, 512, 150), (0.8, 0.8, 2.0), np.float64),
)


def write(path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], dtype: type) -> None:
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    values = 40 + 150 * np.sin(i / 25) * np.cos(j / 30) * np.sin(k / 20)
    image = nib.Nifti1Image(values.astype(dtype), np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def predicted(package: Path, scan: Path, folder: Path, limit: float | None) -> tuple[int, float, float]:
    """The exit code, the peak in MB and the seconds of one run."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "samkd.deploy.runtime", "predict", scan, "-o", folder / "mask.nii"]
    command += ["--package", package, "--report", report]
    command += [] if limit is None else ["--ram", f"{limit:.0f}M"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        assert done.returncode in (2, 3) and "--ram" in done.stderr, done.stderr
        return done.returncode, 0.0, 0.0
    facts = json.loads(report.read_text())
    return 0, facts["peak_memory_mb"], facts["seconds_per_scan"]


def least_accepted(package: Path, scan: Path, folder: Path, peak: float) -> tuple[float, float]:
    """The least limit that is accepted, in MB, and the peak under it."""
    refused, accepted, used = 0.0, 4 * peak, peak
    while accepted / max(refused, 1.0) > 1.02:
        limit = (refused + accepted) / 2
        code, peak, _ = predicted(package, scan, folder, limit)
        if code:
            refused = limit
        else:
            accepted, used = limit, peak
        assert code or used <= accepted, f"{scan}: {used:.0f} MB used where {accepted:.0f} were allowed"
    return accepted, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    package = parser.parse_args().package
    print("| scan | stored as | peak without a limit | least --ram accepted | peak under it | too careful by |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape, spacing, dtype in SCANS:
            write(folder / "scan.nii", shape, spacing, dtype)
            code, free, _ = predicted(package, folder / "scan.nii", folder, None)
            assert code == 0
            least, used = least_accepted(package, folder / "scan.nii", folder, free)
            size = " x ".join(map(str, shape))
            print(
                f"| {size} | {np.dtype(dtype)} | {free:.0f} MB | {least:.0f} MB | {used:.0f} MB | "
                f"{100 * (least / used - 1):.0f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
