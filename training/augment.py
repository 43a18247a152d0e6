"""Random changes of a training patch. Space is changed once, by one affine map about the patch's centre."""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
import torch
from torch.nn import functional as F

from ..configs.schema import Augmentation


def random_affine(
    rng: np.random.Generator, augmentation: Augmentation, spacing: tuple[float, float, float]
) -> np.ndarray | None:
    """A map from patch offsets to scan offsets, both in voxels ``(d, h, w)``; None when it is the identity.

    Rotations and shears act in millimetres, so that an anisotropic voxel is turned, not sheared.
    """
    turn = tilt = zoom = shear = 0.0
    if _happens(rng, augmentation.space_probability):
        turn, tilt, zoom = augmentation.rotate_degrees, augmentation.tilt_degrees, augmentation.scale
        shear = augmentation.shear
    matrix = np.eye(3)
    for axis, limit in ((0, turn), (1, tilt), (2, tilt)):
        if limit:
            matrix = matrix @ _rotation(axis, np.deg2rad(rng.uniform(-limit, limit)))
    if zoom:
        matrix = matrix * rng.uniform(1 - zoom, 1 + zoom)
    if shear:
        slanted = np.eye(3)
        slanted[1, 2] = rng.uniform(-shear, shear)
        matrix = matrix @ slanted
    flips = np.ones(3)
    for axis in augmentation.flip:
        if _happens(rng, augmentation.flip_probability):
            flips["dhw".index(axis)] = -1
    if not (turn or tilt or zoom or shear) and (flips == 1).all():
        return None
    scale = np.asarray(spacing)
    return (matrix * flips) * scale[None, :] / scale[:, None]


def random_shift(
    rng: np.random.Generator, augmentation: Augmentation, patch: tuple[int, int, int]
) -> tuple[int, int, int]:
    """By how many voxels ``(0, h, w)`` the patch is moved over the scan."""
    if not augmentation.translate or not _happens(rng, augmentation.space_probability):
        return 0, 0, 0
    height, width = (round(size * rng.uniform(-augmentation.translate, augmentation.translate)) for size in patch[1:])
    return 0, height, width


def random_intensity(
    rng: np.random.Generator, augmentation: Augmentation, shape: Sequence[int]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Contrast, brightness, a factor, noise, sharpness, posterising and erasing of images of a shape ``[C, D, H, W]``.

    All that is random is drawn here; what is returned changes an image.
    """

    def due(limit: float) -> bool:
        return bool(limit) and _happens(rng, augmentation.intensity_probability)

    changes: list[Callable[[torch.Tensor], torch.Tensor]] = []
    if due(augmentation.contrast):
        changes.append(partial(_contrasted, factor=rng.uniform(1 - augmentation.contrast, 1 + augmentation.contrast)))
    if due(augmentation.brightness):
        changes.append(partial(torch.add, other=rng.uniform(-augmentation.brightness, augmentation.brightness)))
    if due(augmentation.intensity_scale):
        limit = augmentation.intensity_scale
        changes.append(partial(torch.mul, other=rng.uniform(1 - limit, 1 + limit)))
    if due(augmentation.noise):
        noise = rng.standard_normal(tuple(shape), dtype=np.float32) * rng.uniform(0, augmentation.noise)
        changes.append(partial(torch.add, other=torch.from_numpy(noise)))
    if due(augmentation.sharpness):
        changes.append(partial(_sharpened, amount=rng.uniform(-augmentation.sharpness, augmentation.sharpness)))
    if due(augmentation.posterise):
        changes.append(partial(posterised, bits=int(rng.integers(augmentation.posterise, 9))))
    if due(augmentation.erase):
        changes.append(_random_erasing(rng, shape, augmentation.erase))
    return lambda image: reduce(lambda changed, change: change(changed), changes, image)


def _contrasted(image: torch.Tensor, *, factor: float) -> torch.Tensor:
    mean = image.mean()
    return (image - mean) * factor + mean


def _sharpened(image: torch.Tensor, *, amount: float) -> torch.Tensor:
    blurred = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return image + amount * (image - blurred)


def posterised(image: torch.Tensor, *, bits: int) -> torch.Tensor:
    """The image with ``2 ** bits`` intensities, evenly from its least to its largest."""
    low, high = image.min(), image.max()
    step = (high - low).clamp(min=torch.finfo(image.dtype).tiny) / (2**bits - 1)
    return low + ((image - low) / step).round() * step


def _random_erasing(
    rng: np.random.Generator, shape: Sequence[int], limit: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A box through all slices set to the image's mean (Zhong et al. 2020, random erasing)."""
    sides = [max(1, round(size * rng.uniform(0, limit))) for size in shape[2:]]
    h, w = (int(rng.integers(0, size - side + 1)) for size, side in zip(shape[2:], sides, strict=True))

    def erased(image: torch.Tensor) -> torch.Tensor:
        image = image.clone()
        image[..., h : h + sides[0], w : w + sides[1]] = image.mean()
        return image

    return erased


def warp(block: torch.Tensor, affine: np.ndarray, patch: tuple[int, int, int], *, mode: str) -> torch.Tensor:
    """Sample ``block[C, d, h, w]``, centred on the patch's centre, at the voxels of the patch.

    mode is ``bilinear`` (trilinear in 3-D) or ``nearest``; outside the block its edge is repeated.
    """
    axes = [torch.arange(size, dtype=torch.float32) - (size - 1) / 2 for size in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    positions = offsets @ torch.from_numpy(affine.astype(np.float32)).T
    half = torch.tensor([(size - 1) / 2 for size in block.shape[1:]], dtype=torch.float32)
    grid = (positions / half.clamp(min=0.5)).flip(-1)[None]
    return F.grid_sample(block[None], grid, mode=mode, padding_mode="border", align_corners=True)[0]


def reach(affine: np.ndarray, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size of the centred block that holds every voxel the warped patch looks at; same parity as the patch."""
    half = (np.asarray(patch) - 1) / 2
    needed = np.ceil(np.abs(affine) @ half - half).clip(min=0).astype(int) + 1
    d, h, w = (int(size + 2 * extra) for size, extra in zip(patch, needed, strict=True))
    return d, h, w


def _happens(rng: np.random.Generator, probability: float) -> bool:
    return probability == 1 or rng.random() < probability


def _rotation(axis: int, angle: float) -> np.ndarray:
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix
