"""One organ of one scan in three planes, with the outlines of truth and prediction."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .overlay import grey_scale, inner_edge, resized_mask, rgb

TRUTH, PREDICTION = "#f0e442", "#56b4e9"  # Okabe & Ito 2008: yellow and sky blue, both bright on a grey scan
_MARGIN_MM = 40.0  # of the scan around the organ
_SIDE = 340  # pixels of the longest side of the scan's part
_DASH = 6


@dataclass(frozen=True)
class _Plane:
    """A plane across `axis` of the grid "SPL": its two axes are its rows and columns, `flipped` where rows go up."""

    name: str
    axis: int
    flipped: bool


_PLANES = (_Plane("axial", 0, False), _Plane("coronal", 1, True), _Plane("sagittal", 2, True))


def three_planes(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, *, spacing: Sequence[float], flat: bool = False
) -> dict[str, bytes]:
    """PNGs of the axial, coronal and sagittal plane through one organ, by these names, on one scale.

    `image` and the masks `truth` and `prediction` (True in the organ) are [D, H, W] on one grid with the axes "SPL",
    `spacing` in mm along them; one of the masks holds a voxel. The planes cross in the organ's voxel nearest to its
    centroid: the truth's, the prediction's where there is no truth. They show the organ and 40 mm around it, in the
    proportions of the patient: axial from the feet, coronal from the front, sagittal from the patient's left. The truth
    is outlined in yellow, the prediction dashed in blue. A `flat` scan, a picture or a video, has the first plane only.
    """
    assert image.shape == truth.shape == prediction.shape and (truth.any() or prediction.any())
    organ = truth if truth.any() else prediction
    centre = middle_voxel(organ, spacing)
    box = _around(organ, spacing)
    grey = grey_scale(image)
    scale = _SIDE / max((part.stop - part.start) * step for part, step in zip(box, spacing, strict=True))
    pictures = {}
    for plane in _PLANES[:1] if flat else _PLANES:
        parts = [_cut(array, plane, centre, box) for array in (grey, truth, prediction)]
        pictures[plane.name] = _png(_drawn(*parts, size=_size(plane, box, spacing, scale)))
    return pictures


def middle_voxel(organ: np.ndarray, spacing: Sequence[float]) -> tuple[int, int, int]:
    """The voxel (d, h, w) of an organ that lies nearest to its centroid: for a bent organ that may lie outside it."""
    places = np.argwhere(organ)
    away = (places - places.mean(axis=0)) * np.asarray(spacing)
    d, h, w = places[np.square(away).sum(axis=1).argmin()].tolist()
    return d, h, w


def _around(organ: np.ndarray, spacing: Sequence[float]) -> tuple[slice, ...]:
    """The box around an organ with the margin, inside the scan."""
    places, box = np.argwhere(organ), []
    for low, high, size, step in zip(places.min(axis=0), places.max(axis=0), organ.shape, spacing, strict=True):
        margin = int(np.ceil(_MARGIN_MM / step))
        box.append(slice(max(0, int(low) - margin), min(size, int(high) + margin + 1)))
    return tuple(box)


def _cut(array: np.ndarray, plane: _Plane, centre: Sequence[int], box: Sequence[slice]) -> np.ndarray:
    """One plane of a grid [D, H, W], rows from top to bottom as it is shown."""
    index: list[slice | int] = list(box)
    index[plane.axis] = centre[plane.axis]
    part = array[tuple(index)]
    return part[::-1] if plane.flipped else part


def _size(plane: _Plane, box: Sequence[slice], spacing: Sequence[float], scale: float) -> tuple[int, int]:
    """Width and height in pixels of a plane at `scale` pixels for a millimetre."""
    sides = [(part.stop - part.start) * step * scale for part, step in zip(box, spacing, strict=True)]
    del sides[plane.axis]
    return max(1, round(sides[1])), max(1, round(sides[0]))


def _drawn(grey: np.ndarray, truth: np.ndarray, prediction: np.ndarray, *, size: tuple[int, int]) -> Image.Image:
    scan = Image.fromarray((grey * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    pixels = np.repeat(np.asarray(scan)[..., None], 3, axis=2)
    rows, columns = np.indices(pixels.shape[:2])
    dashes = (rows + columns) % (2 * _DASH) < _DASH
    for mask, colour, shown in ((truth, TRUTH, True), (prediction, PREDICTION, dashes)):
        pixels[_outline(resized_mask(mask, size)) & shown] = rgb(colour)
    return Image.fromarray(pixels)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask within two pixels of its border."""
    outer = mask & inner_edge(mask)
    return outer | ((mask & ~outer) & inner_edge(mask & ~outer))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
