"""The instructions that this machine's processor has, by Linux's names."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def cpu_flags() -> frozenset[str]:
    """Such as "avx2" and "avx512_vnni"; none where the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def adds_in_16_bits() -> bool:
    """Whether two products of int8 are added in 16 bits here, which overflow: an x86 processor known to lack VNNI."""
    flags = cpu_flags()
    return platform.machine().lower() in ("x86_64", "amd64") and bool(flags) and not flags & _VNNI
