"""How much memory there is and this process uses, and refusing a grid that cannot fit before it is allocated."""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

from ..errors import BadInputError
from .geometry import Geometry

_FLOAT = 4  # bytes
_LARGEST_PATIENT = 3000.0  # mm


def available_memory() -> float:
    """Bytes that this process may still take: what the machine has free, or less where a cgroup that it is in (a
    container, a systemd unit, a batch job) allows less.
    """
    return min([_free_memory(), *(_left_in(folder, *files) for folder, files in _cgroups())])


def peak_bytes() -> float | None:
    """Largest resident memory of this process so far; None where the system does not say."""
    # Not ru_maxrss: there Linux counts the parent's memory too, from between fork and exec.
    if (peak := process_status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS counts in bytes


def process_status(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def refuse_larger_than_memory(prepared: Geometry, source: Geometry, *, channels: int) -> None:
    """Raises BadInputError when a scan on the grid `source` cannot be held on the grid `prepared` that a network sees,
    and when its header must be in another unit than mm: the extent of the scan tells which.
    """
    extents = [count * edge for count, edge in zip(source.shape, source.spacing, strict=True)]
    if max(extents) < 1:
        raise BadInputError(
            f"voxels of {_joined(source.spacing)} mm, a scan of {_joined(extents)} mm in all: is its header in metres? "
            "Correct its affine, which must be in mm."
        )
    needed, available = _FLOAT * channels * prod(prepared.shape), available_memory()
    if needed <= available:
        return
    unit = ": are these micrometres? Correct its affine, which must be in mm" if max(extents) > _LARGEST_PATIENT else ""
    raise BadInputError(
        f"voxels of {_joined(source.spacing)} mm, a grid of {_joined(prepared.shape)} voxels for this network, "
        f"{needed / 1e9:.3g} GB, where {available / 1e9:.3g} GB of memory are free"
        f"{unit or '. Cut the scan to the part that matters, or use a machine with more memory'}."
    )


def _free_memory() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")  # then only what is really in the file is read, and MemoryError ends it


_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_FILES_V2 = ("memory.max", "memory.current", "memory.stat")  # limit, use, details
_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


def _cgroups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the cgroups, version 1 and 2, that this process is in, and those of all around them.

    A container may see its own cgroup as the root, whatever path the kernel names.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", ":memory:/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (_ROOT / "memory", _FILES_V1) if controllers else (_ROOT, _FILES_V2)
        folder = root / path.lstrip("/")
        while folder.is_relative_to(root) and folder != root:
            yield folder, files
            folder = folder.parent
        yield root, files


def _left_in(folder: Path, limit: str, use: str, details: str) -> float:
    """Bytes left below a cgroup's limit; files it has read are let go when memory is short. No limit: infinite."""
    try:
        most, used = float((folder / limit).read_text()), float((folder / use).read_text())
    except (OSError, ValueError):  # not there, or "max"
        return float("inf")
    try:
        lines = (line.split() for line in (folder / details).read_text().splitlines())
        cached = next(float(value) for name, value in lines if name in ("inactive_file", "total_inactive_file"))
    except (OSError, ValueError, StopIteration):
        cached = 0.0
    return max(most - used + cached, 0.0)


def _joined(values) -> str:
    return " x ".join(f"{value:.5g}" for value in values)
