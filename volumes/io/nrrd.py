"""Masks as NRRD, which some viewers want; read here is only NIfTI, DICOM and pictures."""

from __future__ import annotations

import gzip

import numpy as np

from ..geometry import Geometry

_TO_LPS = np.array([-1.0, -1.0, 1.0])  # from the RAS+ frame


def nrrd_bytes(labels: np.ndarray, geometry: Geometry, *, compress: bool) -> bytes:
    """Labels [D, H, W] of unsigned integers as a file that holds its own data, the first axis of the file along w."""
    kind = f"uint{8 * labels.itemsize}"
    directions = [geometry.affine[:3, axis] * _TO_LPS for axis in (2, 1, 0)]
    header = [
        "NRRD0004",
        f"type: {kind}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, labels.shape[::-1]))}",
        f"space directions: {' '.join(map(_vector, directions))}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {_vector(geometry.affine[:3, 3] * _TO_LPS)}",
    ]
    data = labels.astype(labels.dtype.newbyteorder("<")).tobytes()
    return "\n".join(header).encode() + b"\n\n" + (gzip.compress(data, 6, mtime=0) if compress else data)


def _vector(numbers: np.ndarray) -> str:
    return f"({','.join(repr(float(number) + 0.0) for number in numbers)})"
