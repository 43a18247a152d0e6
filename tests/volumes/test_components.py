import numpy as np
import pytest
from scipy import ndimage

from samkd.volumes.components import largest_components


def reference(labels):
    """scipy.ndimage, 26 neighbours; of two largest ones the first."""
    result = np.zeros_like(labels)
    for value in np.unique(labels[labels > 0]):
        parts = np.empty(labels.shape, np.int32)
        ndimage.label(labels == value, structure=np.ones((3, 3, 3)), output=parts)
        sizes = np.bincount(parts.ravel())[1:]
        result[parts == 1 + sizes.argmax()] = value
    return result


@pytest.mark.parametrize("density", [0.05, 0.15, 0.3, 0.6])
@pytest.mark.parametrize("shape", [(7, 8, 9), (1, 20, 20), (20, 1, 20), (20, 20, 1), (12, 13, 14)])
def test_against_scipy(shape, density):
    rng = np.random.default_rng(int(density * 100))
    for _ in range(5):
        labels = ((rng.random(shape) < density) * rng.integers(1, 4, shape)).astype(np.uint8)
        before = labels.copy()
        np.testing.assert_array_equal(largest_components(labels), reference(labels))
        np.testing.assert_array_equal(labels, before)


def test_long_winding_bodies_are_one():
    labels = np.zeros((3, 40, 41), np.uint16)
    labels[1, ::2] = 300
    labels[1, 1::4, -1] = labels[1, 3::4, 0] = 300  # a snake of forty rows
    labels[1, 39, 5:20] = 0
    cleaned = largest_components(labels)
    np.testing.assert_array_equal(cleaned, reference(labels))
    assert cleaned.dtype == np.uint16 and (cleaned == 300).sum() == (labels == 300).sum()


def test_opposite_borders_do_not_touch():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 2:], labels[0, 1, 0], labels[1, 3, 3], labels[2, 0, 0] = 1, 1, 1, 1
    np.testing.assert_array_equal(np.argwhere(largest_components(labels)), [[0, 0, 2], [0, 0, 3]])


def test_an_empty_mask_stays_empty():
    assert not largest_components(np.zeros((3, 4, 5), np.uint8)).any()


def test_any_axis_order_gives_the_same():
    labels = (np.random.default_rng(0).random((9, 10, 11)) < 0.2).astype(np.uint8)
    sizes = [largest_components(np.transpose(labels, order)).sum() for order in [(0, 1, 2), (2, 1, 0), (1, 2, 0)]]
    assert len(set(sizes)) == 1
