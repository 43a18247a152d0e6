"""Connected components of a mask, in plain numpy: on the device there is no library for it."""

import numpy as np


def largest_components(labels: np.ndarray) -> np.ndarray:
    """Labels [D, H, W] in which each class keeps its largest component only; the rest becomes background 0.

    Voxels that share a face, an edge or a corner are connected (26 neighbours). Of two components of one size the one
    that comes first, row by row, stays. Works on runs of equal labels along w, of which a mask has few.
    """
    depth, height, width = labels.shape
    rows, starts, ends, values = _runs(labels)
    parent = np.arange(len(values))
    # A row of one plane beyond each border, so that no neighbour is looked for on the other side of the grid.
    place = (rows // height) * (height + 2) + rows % height + 1
    for step in (1, height + 1, height + 2, height + 3):
        one, other = _touching(place, starts, ends, step, width)
        same = values[one] == values[other]
        parent = _joined(parent, one[same], other[same])
    sizes = np.bincount(parent, weights=ends - starts, minlength=len(values))
    keep = np.zeros(len(values), bool)
    for value in np.unique(values):
        roots = np.flatnonzero((values == value) & (sizes > 0))
        if roots.size:
            keep |= parent == roots[sizes[roots].argmax()]
    cleaned = labels.copy()
    flat = cleaned.reshape(depth * height, width)
    for run in np.flatnonzero(~keep):
        flat[rows[run], starts[run] : ends[run]] = 0
    return cleaned


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row (d * H + h), first and past-the-last w, and value of every run of one foreground class, in memory order."""
    width = labels.shape[2]
    flat = np.ascontiguousarray(labels).reshape(-1)
    begins = np.ones(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    first = np.flatnonzero(begins)
    stop = np.append(first[1:], flat.size)
    inside = flat[first] != 0
    first, stop = first[inside], stop[inside]
    rows = first // width
    return rows, first - rows * width, stop - rows * width, flat[first]


def _touching(
    place: np.ndarray, starts: np.ndarray, ends: np.ndarray, step: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs, the second `step` rows after the first, that overlap along w or meet at a corner."""
    stride = width + 2  # so that the end of one row does not touch the start of the next
    row = (place + step) * stride
    low = np.searchsorted(place * stride + ends, row + starts, side="left")
    high = np.searchsorted(place * stride + starts, row + ends, side="right")
    counts = high - low
    one = np.repeat(np.arange(len(place)), counts)
    other = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    return one, other


def _joined(parent: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The lowest run of every component, once the pairs are joined too: hooking and pointer jumping."""
    while True:
        a, b = parent[one], parent[other]
        apart = a != b
        if not apart.any():
            return parent
        one, other = one[apart], other[apart]
        low, high = np.minimum(a[apart], b[apart]), np.maximum(a[apart], b[apart])
        np.minimum.at(parent, high, low)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
