"""Pictures of masks on a scan: the same slices, one column per mask, coloured fill and contour."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe & Ito 2008 without black, then Tol's muted scheme (2021): to be told apart by colour-blind readers too.
_PALETTE = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2"),
    *("#88ccee", "#ddcc77", "#cc6677", "#44aa99", "#aa4499", "#999933", "#332288", "#117733", "#882255"),
)
_WIDTH, _GAP, _HEAD = 300, 6, 26  # pixels
_FILL = 0.28  # opacity


def colours(count: int) -> list[str]:
    """Colours "#rrggbb" of the classes 1 to `count`; they repeat after 16."""
    return [_PALETTE[i % len(_PALETTE)] for i in range(count)]


def comparison_png(image: np.ndarray, labels: Mapping[str, np.ndarray], *, spacing: Sequence[float]) -> bytes:
    """PNG with a row per slice, seen from the feet (radiological convention), and a column per mask after the image.

    `image` and every entry of `labels` (column name to mask) are [D, H, W] on one grid with the axes "SPL", `spacing`
    in mm along them. The first mask is the truth: its largest slice and its quartiles are shown, the topmost first.
    Pixels keep the proportions of the patient.
    """
    assert image.ndim == 3 and labels and all(mask.shape == image.shape for mask in labels.values())
    truth = next(iter(labels.values()))
    grey = grey_scale(image)
    palette = np.array([[0, 0, 0], *map(rgb, colours(max(int(mask.max()) for mask in labels.values())))], np.uint8)
    size = (_WIDTH, max(1, round(_WIDTH * image.shape[1] * spacing[1] / (image.shape[2] * spacing[2]))))
    picks = _informative_slices(truth)

    step_x, step_y = size[0] + _GAP, size[1] + _GAP
    page = Image.new("RGB", ((len(labels) + 1) * step_x + _GAP, _HEAD + len(picks) * step_y), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for column, name in enumerate(("image", *labels)):
        draw.text((_GAP + column * step_x + size[0] / 2, _HEAD / 2), name, fill="black", font=font, anchor="mm")
    for row, index in enumerate(picks):
        slice_ = Image.fromarray((grey[index] * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        scan = np.repeat(np.asarray(slice_)[..., None], 3, axis=2)
        top = _HEAD + row * step_y
        page.paste(Image.fromarray(scan), (_GAP, top))
        draw.text((_GAP + 5, top + 4), f"slice {index + 1} of {len(image)}", fill="white", font=font)
        for column, mask in enumerate(labels.values(), start=1):
            drawn = Image.fromarray(_outlined(scan, resized_mask(mask[index], size), palette))
            page.paste(drawn, (_GAP + column * step_x, top))
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()


def grey_scale(image: np.ndarray) -> np.ndarray:
    """A scan's values from 0 (black) to 1 (white), so that the body spans them."""
    low, high = _grey_range(image)
    return np.clip((image - low) / (high - low), 0, 1)


def _grey_range(image: np.ndarray) -> tuple[float, float]:
    """The 2nd to the 99.5th percentile of what is brighter than the mean: the body, not the air around it."""
    body = image[image > image.mean()]
    low, high = np.percentile(body, (2, 99.5)) if body.size else (image.min(), image.max())
    return float(low), max(float(high), float(low) + 1e-6)


def _informative_slices(truth: np.ndarray) -> list[int]:
    """The slice with most truth and those that cut its volume at 25 % and 75 %; the middle one without any truth."""
    area = np.count_nonzero(truth, axis=(1, 2))
    if not area.any():
        return [len(truth) // 2]
    share = np.cumsum(area) / area.sum()
    picks = {int(area.argmax()), *(int(np.searchsorted(share, part)) for part in (0.25, 0.75))}
    return sorted(picks, reverse=True)


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask [H, W] at a picture's size (width, height), by nearest neighbour; the dtype is kept."""
    picture = Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(picture).astype(mask.dtype)


def _outlined(scan: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The scan's pixels [H, W, 3] with each class filled and its inner edge drawn."""
    opacity = np.where(mask > 0, np.where(inner_edge(mask), 1.0, _FILL), 0.0)[..., None]
    return (scan * (1 - opacity) + palette[mask] * opacity).astype(np.uint8)


def inner_edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask [H, W] with a neighbour, of four, of another value."""
    around = np.pad(mask, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    return np.any([side != mask for side in neighbours], axis=0)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
