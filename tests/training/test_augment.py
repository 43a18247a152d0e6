import numpy as np
import pytest
import torch

from samkd.config import Augmentation
from samkd.training.augment import random_affine, random_intensity, reach, warp


def test_nothing_asked_is_the_identity():
    assert random_affine(np.random.default_rng(0), Augmentation(), (1, 1, 1)) is None


@pytest.mark.parametrize("patch", [(4, 6, 8), (5, 7, 9)])
def test_flip_reverses_exactly_the_asked_axis(patch):
    block = torch.randn(2, *patch)
    for axis in range(3):
        flips = np.ones(3)
        flips[axis] = -1
        flipped = warp(block, np.diag(flips), patch, mode="bilinear")
        torch.testing.assert_close(flipped, block.flip(axis + 1), atol=1e-5, rtol=0)


def test_rotation_acts_in_millimetres():
    """90 degrees about the slice axis with voxels twice as tall as wide: one row is two columns."""
    rng = np.random.default_rng(3)
    spacing = (4.0, 2.0, 1.0)
    affine = random_affine(rng, Augmentation(rotate_degrees=180), spacing)
    assert affine is not None
    scale = np.diag(spacing)
    rigid = scale @ affine @ np.linalg.inv(scale)
    np.testing.assert_allclose(rigid @ rigid.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rigid) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_block_of_reach_holds_every_voxel_looked_at(seed):
    rng = np.random.default_rng(seed)
    patch = (6, 16, 12)
    affine = random_affine(rng, Augmentation(rotate_degrees=45, tilt_degrees=20, scale=0.3), (3.0, 1.0, 1.5))
    assert affine is not None
    size = np.asarray(reach(affine, patch))
    corners = np.stack(np.meshgrid(*[[-(n - 1) / 2, (n - 1) / 2] for n in patch], indexing="ij"), -1).reshape(-1, 3)
    looked_at = np.abs(corners @ affine.T).max(0)
    assert (looked_at <= (size - 1) / 2).all()
    assert ((size - np.asarray(patch)) % 2 == 0).all()


def test_warp_samples_where_the_affine_points():
    """A ramp along w, zoomed by 2 about the centre, becomes a ramp of twice the slope."""
    patch = (3, 5, 9)
    block = torch.arange(21.0).expand(1, 7, 11, 21).contiguous()
    zoomed = warp(block, np.eye(3) * 2, patch, mode="bilinear")
    torch.testing.assert_close(zoomed[0, 1, 2], 10 + 2 * (torch.arange(9.0) - 4))


def test_intensity_changes_are_bounded_and_seeded():
    image = torch.full((1, 4, 4, 4), 0.5)
    settings = Augmentation(brightness=0.1, contrast=0.2)
    made = random_intensity(np.random.default_rng(1), settings, image)
    assert torch.equal(made, random_intensity(np.random.default_rng(1), settings, image))
    assert 0 < float((made - image).abs().max()) <= 0.1 + 1e-6
