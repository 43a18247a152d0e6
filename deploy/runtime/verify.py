"""Does this machine give the mask that was packed?"""

from collections.abc import Iterator

import numpy as np

from ...errors import IntegrityError
from ...volumes.geometry import Volume
from ...volumes.io.nifti import read_labels, read_scan
from ...volumes.prompts import ClassPrompts, ScanPrompts
from .manifest_rules import EXPECTED, SAMPLE
from .package import Package, warn_before_use
from .private_copy import listed, unnamed

SAMPLE_DICE = 0.999  # other CPUs add in another order, so single voxels on an edge may fall the other way


def verify_package(package: Package) -> Iterator[str]:
    """What `verify` says of an opened package, line by line; the last one takes as long as segmenting the sample. What
    nobody checked is said on stderr.

    Raises IntegrityError as verify_sample does.
    """
    warn_before_use(package)
    yield f"files: all {len(package.manifest.files)} are what was packed"
    if names := unnamed(package.path, package.manifest):
        yield f"not part of the package, and not used: {listed(names)}"
    yield verify_sample(package)


def verify_sample(package: Package) -> str:
    """Segment the sample of an opened package again; one line that says how it compares.

    Raises IntegrityError when a class of the mask differs by more than rounding explains.
    """
    volume = read_scan(package.folder / SAMPLE, channels=package.in_channels)
    expected, geometry = read_labels(package.folder / EXPECTED)
    labels = package.segment(volume, prompts=sample_prompts(package, volume))
    if not geometry.same_grid(volume.geometry):
        raise IntegrityError(f"{package.path}: its expected mask is not on the grid of its sample.")
    if np.array_equal(labels, expected):
        return "sample: identical to the mask that was packed"
    lowest, name = min((_dice(labels == value, expected == value), name) for value, name in package.class_names.items())
    if lowest < SAMPLE_DICE:
        raise IntegrityError(
            f"{package.path}: on this machine the sample's mask differs from the one that was packed, Dice "
            f"{lowest:.4f} for {name}; expected {SAMPLE_DICE} or more. Do not use this package on this machine."
        )
    return f"sample: not identical, but Dice {lowest:.4f} or more for every class (lowest: {name})"


def sample_prompts(package: Package, sample: Volume) -> ScanPrompts | None:
    """What the sample is segmented with: nothing, or, where a package requires prompts, a box about the middle half of
    the scan as its first class.
    """
    if not package.prompts_required:
        return None
    sizes = sample.geometry.shape[::-1]
    box = (*(size // 4 for size in sizes), *(max(size // 4, size * 3 // 4 - 1) for size in sizes))
    return ScanPrompts({1: ClassPrompts(boxes=(tuple(map(float, box)),))}, "voxel")


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / size if size else 1.0
