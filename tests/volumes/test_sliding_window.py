import numpy as np
import pytest

from samkd.volumes.sliding_window import (
    Window,
    gaussian_weights,
    pad_to_patch,
    patch_count,
    sliding_window,
    tile_starts,
)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("patch", [1, 2, 5, 8, 13])
def test_starts_cover_every_voxel_evenly(patch, overlap):
    for size in range(patch, 60):
        starts = [d for d, _, _ in tile_starts((size, 1, 1), (patch, 1, 1), overlap)]
        assert starts[0] == 0 and starts[-1] == size - patch
        steps = np.diff(starts)
        if steps.size:
            assert steps.max() - steps.min() <= 1 and steps.min() >= 1
            assert steps.max() <= max(1, np.ceil(patch * (1 - overlap)))


def test_starts_are_the_product_of_the_axes():
    assert tile_starts((10, 4, 6), (4, 4, 4), 0.5) == [(d, 0, w) for d in (0, 2, 4, 6) for w in (0, 2)]
    with pytest.raises(AssertionError, match="pad it first"):
        tile_starts((3, 4, 4), (4, 4, 4), 0.5)


@pytest.mark.parametrize("patch", [(1, 1, 1), (5, 64, 32), (96, 96, 96), (5, 512, 512)])
def test_weights_are_positive_symmetric_and_largest_in_the_centre(patch):
    weights = gaussian_weights(patch)
    assert weights.shape == patch and weights.dtype == np.float32
    assert weights.max() == pytest.approx(1) and weights.min() > 0
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])
    assert weights[tuple(n // 2 for n in patch)] == weights.max()


def test_weights_have_a_sigma_of_an_eighth():
    profile = gaussian_weights((1, 1, 65))[0, 0]
    assert profile[32 + 8] / profile[32] == pytest.approx(np.exp(-0.5 * (8 / (65 / 8)) ** 2), rel=1e-5)


@pytest.mark.parametrize("shape, patch", [((3, 9, 4), (5, 4, 7)), ((3, 3, 3), (3, 3, 3)), ((2, 9, 9), (5, 4, 4))])
def test_padding_is_centred_and_undone(shape, patch):
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    padded, crop = pad_to_patch(array, patch)
    assert padded.shape == (2, *np.maximum(shape, patch))
    np.testing.assert_array_equal(padded[(slice(None), *crop)], array)
    outside = np.ones(padded.shape, bool)
    outside[(slice(None), *crop)] = False
    assert (padded[outside] == array.min()).all()
    for part, size, width in zip(crop, shape, patch, strict=True):
        before, after = part.start, max(size, width) - part.stop
        assert 0 <= after - before <= 1


@pytest.mark.parametrize("shape", [(9, 17, 12), (3, 20, 5), (2, 2, 2), (8, 8, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("batch", [1, 3])
def test_cutting_and_stitching_give_the_scan_back(shape, overlap, batch):
    rng = np.random.default_rng(0)
    array = rng.random((2, *shape)).astype(np.float32)
    seen = []

    def infer(patches):
        seen.append(patches.shape)
        return np.concatenate([patches, 1 - patches[:, :1]], axis=1)

    result = sliding_window(array, (4, 8, 6), overlap, infer, num_classes=3, batch=batch)
    assert result.dtype == np.float32 and result.shape == (3, *shape)
    np.testing.assert_allclose(result, np.concatenate([array, 1 - array[:1]]), atol=1e-5)
    assert all(n <= batch and rest == (2, 4, 8, 6) for n, *rest_ in seen for rest in [tuple(rest_)])


@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 9, 21), (20, 5, 6)])
def test_patches_are_counted_before_there_is_a_scan(shape):
    window = Window(np.zeros((1, *shape), np.float32), (4, 8, 6), 0.5)
    assert patch_count(shape, (4, 8, 6), 0.5) == len(window)


def test_overlapping_answers_are_averaged_by_weight():
    patch, answers = (1, 1, 8), iter([0.0, 1.0])
    result = sliding_window(
        np.zeros((1, 1, 1, 12), np.float32), patch, 0.5, lambda x: np.full_like(x, next(answers)), num_classes=1
    )[0, 0, 0]
    weights = gaussian_weights(patch)[0, 0]
    np.testing.assert_array_equal(result[:4], 0)
    np.testing.assert_allclose(result[4:8], weights[:4] / (weights[:4] + weights[4:]), rtol=1e-5)
    np.testing.assert_allclose(result[8:], 1)


def test_an_answer_of_another_shape_is_not_accepted():
    with pytest.raises(AssertionError):
        sliding_window(np.zeros((1, 8, 8, 8), np.float32), (4, 4, 4), 0.5, lambda x: x, num_classes=2)
