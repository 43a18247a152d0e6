import numpy as np
import pytest
import torch

from samkd.configs.schema import Augmentation
from samkd.training.augment import posterised, random_affine, random_intensity, random_shift, reach, warp


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
    made = random_intensity(np.random.default_rng(1), settings, image.shape)(image)
    assert torch.equal(made, random_intensity(np.random.default_rng(1), settings, image.shape)(image))
    assert 0 < float((made - image).abs().max()) <= 0.1 + 1e-6


def test_shear_moves_along_h_by_w_in_millimetres():
    affine = random_affine(np.random.default_rng(1), Augmentation(shear=0.5), (3.0, 2.0, 1.0))
    assert affine is not None
    slant = affine[1, 2] * 2.0 / 1.0  # mm along h per mm along w
    assert 0 < abs(slant) <= 0.5
    affine[1, 2] = 0
    np.testing.assert_array_equal(affine, np.eye(3))


def test_probabilities_are_shares_of_the_patches():
    rng = np.random.default_rng(0)
    turning = Augmentation(rotate_degrees=30, space_probability=0.1)
    turned = sum(random_affine(rng, turning, (1, 1, 1)) is not None for _ in range(2000))
    assert 150 < turned < 250
    flipping = Augmentation(flip=("d",), flip_probability=0.1)
    assert 150 < sum(random_affine(rng, flipping, (1, 1, 1)) is not None for _ in range(2000)) < 250
    image = torch.zeros(1, 2, 2, 2)
    brighter = Augmentation(brightness=1.0, intensity_probability=0.2)
    assert 330 < sum(bool((random_intensity(rng, brighter, image.shape)(image) != 0).any()) for _ in range(2000)) < 470


def test_translation_is_in_the_plane_and_bounded():
    rng = np.random.default_rng(0)
    shifts = np.array([random_shift(rng, Augmentation(translate=0.1), (8, 40, 20)) for _ in range(500)])
    assert (shifts[:, 0] == 0).all()
    assert (np.abs(shifts).max(0) == (0, 4, 2)).all() and (shifts.min(0) == (0, -4, -2)).all()
    assert random_shift(rng, Augmentation(), (8, 40, 20)) == (0, 0, 0)


def test_posterised_images_have_so_many_levels_and_keep_their_ends():
    image = torch.linspace(-3, 5, 1000).reshape(1, 10, 10, 10)
    result = posterised(image, bits=3)
    assert len(result.unique()) == 8
    assert (result.min(), result.max()) == (-3, 5)
    assert (result - image).abs().max() <= 8 / 7 / 2 + 1e-5
    assert torch.equal(posterised(torch.ones(1, 2, 2, 2), bits=3), torch.ones(1, 2, 2, 2))


def test_erasing_takes_one_box_through_all_slices():
    image = torch.rand(2, 3, 20, 30)
    for seed in range(20):
        result = random_intensity(np.random.default_rng(seed), Augmentation(erase=0.5), image.shape)(image)
        changed = result != image
        assert (changed == changed[:1, :1]).all()
        rows, columns = changed[0, 0].any(1).nonzero().ravel(), changed[0, 0].any(0).nonzero().ravel()
        assert changed[0, 0].sum() == len(rows) * len(columns) and len(rows) <= 10 and len(columns) <= 15
        assert torch.allclose(result[changed], image.mean())


def test_sharpness_leaves_flat_regions_and_changes_edges():
    image = torch.zeros(1, 1, 6, 6)
    image[..., 3:] = 1
    result = random_intensity(np.random.default_rng(0), Augmentation(sharpness=1.0), image.shape)(image)
    assert torch.equal(result[..., [0, 1, 4, 5]], image[..., [0, 1, 4, 5]])
    low, high = (result[0, 0, 0, [2, 3]] - torch.tensor([0.0, 1.0])).tolist()
    assert low == pytest.approx(-high) and low != 0
