import numpy as np
import pytest

from samkd.volumes import resample as module
from samkd.volumes.geometry import Geometry
from samkd.volumes.resample import resample, sample_positions

SOURCE = Geometry(np.diag([2.5, 0.9, 0.7, 1.0]), (6, 9, 11))
SHAPES = [(6, 9, 11), (3, 4, 5), (14, 5, 20), (1, 1, 1), (6, 18, 4), (60, 9, 11)]


def reference(array, positions, order):
    """Trilinear or nearest, straight from the definition, one output voxel at a time."""
    out = np.zeros([p.size for p in positions])
    for index in np.ndindex(out.shape):
        place = [p[i] for p, i in zip(positions, index, strict=True)]
        if order == 0:
            out[index] = array[tuple(int(np.floor(x + 0.5)) for x in place)]
            continue
        for corner in np.ndindex(2, 2, 2):
            weight, at = 1.0, []
            for x, c, n in zip(place, corner, array.shape, strict=True):
                low = int(np.floor(x))
                weight *= (x - low) if c else 1 - (x - low)
                at.append(min(low + c, n - 1))
            out[index] += weight * array[tuple(at)]
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [0, 1])
def test_against_the_definition(shape, order):
    array = np.random.default_rng(0).normal(size=SOURCE.shape).astype(np.float32)
    target = SOURCE.resized(shape)
    result = resample(array, SOURCE, target, order=order)
    assert result.shape == shape and result.dtype == np.float32
    np.testing.assert_allclose(result, reference(array, sample_positions(SOURCE, target), order), atol=1e-5)


def test_positions_come_from_the_affines():
    affine = SOURCE.affine.copy()
    affine[:3, 3] = (2.5, -0.45, 70.0)  # one voxel in, half a voxel out, far beyond the edge
    depth, height, width = sample_positions(SOURCE, Geometry(affine, SOURCE.shape))
    np.testing.assert_array_equal(depth, [1, 2, 3, 4, 5, 5])
    np.testing.assert_array_equal(height, [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5])
    np.testing.assert_array_equal(width, [10] * 11)


def test_a_linear_ramp_in_mm_stays_one():
    target = SOURCE.resized((20, 13, 7))
    centres = [SOURCE.affine[a, a] * np.arange(SOURCE.shape[a]) for a in range(3)]
    ramp = np.sum(np.meshgrid(*centres, indexing="ij"), axis=0).astype(np.float32)
    result = resample(ramp, SOURCE, target, order=1)
    wanted = [
        np.clip(target.affine[a, a] * np.arange(target.shape[a]) + target.affine[a, 3], 0, centres[a][-1])
        for a in range(3)
    ]
    np.testing.assert_allclose(result, sum(np.meshgrid(*wanted, indexing="ij")), atol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
def test_the_same_grid_changes_nothing(order):
    array = np.random.default_rng(0).normal(size=SOURCE.shape).astype(np.float32)
    result = resample(array, SOURCE, SOURCE, order=order)
    np.testing.assert_array_equal(result, array)
    assert not np.shares_memory(result, array)


def test_nearest_keeps_labels_and_their_type():
    labels = np.random.default_rng(0).choice(np.array([0, 3, 300], np.uint16), SOURCE.shape)
    result = resample(labels, SOURCE, SOURCE.resized((9, 17, 5)), order=0)
    assert result.dtype == np.uint16 and set(np.unique(result)) <= {0, 3, 300}


def test_slabs_and_channels_do_not_show(monkeypatch):
    array = np.random.default_rng(0).normal(size=(2, *SOURCE.shape)).astype(np.float32)
    target = SOURCE.resized((17, 12, 13))
    whole = resample(array, SOURCE, target, order=1)
    monkeypatch.setattr(module, "_SLAB_VOXELS", 200)
    assert len(list(module.slabs(target.shape, SOURCE.shape))) == 17
    np.testing.assert_array_equal(resample(array, SOURCE, target, order=1), whole)
    np.testing.assert_array_equal(resample(array[1], SOURCE, target, order=1), whole[1])


def test_a_flipped_view_is_resampled_like_its_copy():
    array = np.random.default_rng(0).normal(size=SOURCE.shape).astype(np.float32)[::-1, :, ::-1]
    target = SOURCE.resized((7, 12, 5))
    np.testing.assert_array_equal(
        resample(array, SOURCE, target, order=1), resample(array.copy(), SOURCE, target, order=1)
    )


def test_other_axis_directions_are_not_accepted():
    with pytest.raises(AssertionError, match="axis directions"):
        resample(np.zeros(SOURCE.shape), SOURCE, SOURCE.oriented("RPI"), order=1)
