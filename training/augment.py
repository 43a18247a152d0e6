"""Random changes of a training patch. Space is changed once, by one affine map about the patch's centre."""

import numpy as np
import torch
from torch.nn import functional as F

from ..config import Augmentation


def random_affine(
    rng: np.random.Generator, augmentation: Augmentation, spacing: tuple[float, float, float]
) -> np.ndarray | None:
    """A map from patch offsets to scan offsets, both in voxels ``(d, h, w)``; None when it is the identity.

    Rotations act in millimetres, so that an anisotropic voxel is turned, not sheared.
    """
    turn, tilt, zoom = augmentation.rotate_degrees, augmentation.tilt_degrees, augmentation.scale
    matrix = np.eye(3)
    for axis, limit in ((0, turn), (1, tilt), (2, tilt)):
        if limit:
            matrix = matrix @ _rotation(axis, np.deg2rad(rng.uniform(-limit, limit)))
    if zoom:
        matrix = matrix * rng.uniform(1 - zoom, 1 + zoom)
    flips = np.ones(3)
    for axis in augmentation.flip:
        flips["dhw".index(axis)] = rng.choice((-1.0, 1.0))
    if not (turn or tilt or zoom) and (flips == 1).all():
        return None
    scale = np.asarray(spacing)
    return (matrix * flips) * scale[None, :] / scale[:, None]


def random_intensity(rng: np.random.Generator, augmentation: Augmentation, image: torch.Tensor) -> torch.Tensor:
    """Contrast about the mean, brightness and Gaussian noise of image ``[C, D, H, W]``."""
    if augmentation.contrast:
        mean = image.mean()
        image = (image - mean) * rng.uniform(1 - augmentation.contrast, 1 + augmentation.contrast) + mean
    if augmentation.brightness:
        image = image + rng.uniform(-augmentation.brightness, augmentation.brightness)
    if augmentation.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, augmentation.noise)
        image = image + torch.from_numpy(noise)
    return image


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


def _rotation(axis: int, angle: float) -> np.ndarray:
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix
