from itertools import permutations, product

import numpy as np
import pytest

from samkd.volumes.geometry import Geometry, Volume, reorient

CODES = [
    "".join(pair[bit] for pair, bit in zip(order, bits, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for bits in product((0, 1), repeat=3)
]


def tilted(degrees: float = 15.0) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def oblique(shape=(6, 9, 7)) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = tilted() @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (-31.5, 12.25, 140.0)
    return Geometry(affine[:, [2, 1, 0, 3]], shape)


def test_spacing_and_codes_follow_d_h_w():
    geometry = oblique()
    assert geometry.spacing == pytest.approx((2.5, 0.9, 0.7))
    assert geometry.axis_codes == "SAR"


@pytest.mark.parametrize("codes", CODES)
def test_every_orientation_keeps_each_voxel_where_it_lies(codes):
    source = oblique()
    target = source.oriented(codes)
    assert target.axis_codes == codes
    array = np.arange(np.prod(source.shape)).reshape(source.shape)
    moved = reorient(array, source, target)
    assert moved.shape == target.shape
    for index in ((0, 0, 0), (1, 2, 3), tuple(n - 1 for n in target.shape)):
        place = target.affine @ (*index, 1)
        original = np.linalg.solve(source.affine, place)[:3]
        np.testing.assert_allclose(original, np.round(original), atol=1e-9)
        assert moved[index] == array[tuple(np.round(original).astype(int))]
    np.testing.assert_array_equal(reorient(moved, target, source), array)
    assert target.oriented("SAR").same_grid(source, tolerance_mm=1e-9)


def test_reorient_carries_leading_axes():
    source = oblique()
    target = source.oriented("LIP")
    array = np.random.default_rng(0).random((2, 3, *source.shape))
    moved = reorient(array, source, target)
    assert moved.shape == (2, 3, *target.shape)
    np.testing.assert_array_equal(moved[1, 2], reorient(array[1, 2], source, target))


def test_a_tilt_of_45_degrees_is_decided_and_undone():
    affine = np.eye(4)
    affine[:3, :3] = tilted(45.0)
    source = Geometry(affine, (4, 5, 6))
    array = np.arange(120).reshape(source.shape)
    for codes in CODES:
        target = source.oriented(codes)
        np.testing.assert_array_equal(reorient(reorient(array, source, target), target, source), array)
        assert source.aligned(target).same_grid(target)


def test_resized_keeps_the_outer_edges():
    source = oblique((6, 9, 7))
    target = source.resized((15, 4, 7))
    for corner in product((0, 1), repeat=3):
        a = [n * c - 0.5 for n, c in zip(source.shape, corner, strict=True)]
        b = [n * c - 0.5 for n, c in zip(target.shape, corner, strict=True)]
        np.testing.assert_allclose(source.affine @ (*a, 1), target.affine @ (*b, 1), atol=1e-9)
    assert target.spacing == pytest.approx((1.0, 2.025, 0.7))


def test_same_grid_measures_the_corners():
    source = oblique()
    moved = source.affine.copy()
    moved[0, 3] += 0.02
    assert source.same_grid(Geometry(source.affine, source.shape))
    assert not source.same_grid(Geometry(moved, source.shape))
    assert source.same_grid(Geometry(moved, source.shape), tolerance_mm=0.05)
    assert not source.same_grid(Geometry(source.affine, (6, 9, 8)))
    stretched = source.affine.copy()
    stretched[:3, 0] *= 1.01  # the origin agrees, the far corner does not
    assert not source.same_grid(Geometry(stretched, source.shape))


def test_a_geometry_cannot_be_changed():
    with pytest.raises(ValueError):
        oblique().affine[0, 3] = 1.0


def test_a_volume_fits_its_grid():
    with pytest.raises(AssertionError):
        Volume(np.zeros((1, 6, 9, 8), np.float32), oblique())


def test_grids_that_are_not_parallel_are_not_reoriented():
    turned = oblique().affine.copy()
    turned[:3, :3] = tilted(10.0) @ turned[:3, :3]
    with pytest.raises(AssertionError):
        reorient(np.zeros((6, 9, 7)), oblique(), Geometry(turned, (6, 9, 7)))
