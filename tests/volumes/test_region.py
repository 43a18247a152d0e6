"""What is left out of a scan is background, and what is left in is what the whole scan would have given there."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from samkd.errors import BadInputError
from samkd.volumes import Geometry, Plan, Volume
from samkd.volumes.pipeline import segment
from samkd.volumes.preprocess import restore_slabs
from samkd.volumes.region import box_around, content_box, embedded, framed
from samkd.volumes.sliding_window import Window, sliding_window, tile_starts, tile_step

PLAN = Plan(orientation="LPS", intensity=({"rule": "window", "low": 0, "high": 100},), patch=(8, 8, 8), overlap=0.5)


def body_in_air(shape=(30, 44, 40), codes="SPL") -> Volume:
    """A bright ellipsoid with two parts in it, in air of many values below the window."""
    geometry = Geometry(np.diag([2.0, 1.5, 1.5, 1.0])[[2, 1, 0, 3]], shape).oriented(codes)
    d, h, w = np.indices(geometry.shape)
    centre = np.array(geometry.shape) / 2
    radius = ((d - centre[0]) / 9) ** 2 + ((h - centre[1]) / 9) ** 2 + ((w - centre[2]) / 9) ** 2
    values = np.where(radius < 1, np.where(radius < 0.3, 90.0, 40.0), -50.0 - 10 * ((d + h + w) % 3))
    return Volume(values[None].astype(np.float32), geometry)


def levels(patches):
    """Class probabilities [N, 3, *patch] by the intensity of each voxel alone."""
    x = patches[:, 0]
    logits = np.stack([np.zeros_like(x), 40 * (x - 0.2), 60 * (x - 0.6) + 16], axis=1)
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("spacing", [None, (2.3, 2.9, 1.1)])
@pytest.mark.parametrize("codes", ["SPL", "RAI"])
def test_the_mask_of_a_cropped_scan_is_that_of_the_whole_one_and_fewer_patches_are_seen(codes, spacing):
    volume, plan, seen = body_in_air(codes=codes), replace(PLAN, spacing=spacing), []

    def counted(patches):
        seen.append(len(patches))
        return levels(patches)

    whole = segment(volume, plan, counted, num_classes=3)
    all_patches = sum(seen)
    seen.clear()
    cropped = segment(volume, replace(plan, crop="content"), counted, num_classes=3)
    assert set(np.unique(whole)) == {0, 1, 2}
    np.testing.assert_array_equal(cropped, whole)
    assert sum(seen) < all_patches


def test_a_scan_of_air_is_background_without_the_network():
    def unseen(patches):
        raise AssertionError(patches.shape)

    volume = Volume(np.full((1, 9, 9, 9), -1000, np.float32), Geometry(np.eye(4), (9, 9, 9)))
    assert not segment(volume, replace(PLAN, crop="content"), unseen, num_classes=3).any()


@pytest.mark.parametrize("box", [(slice(0, 3), slice(2, 5), slice(1, 7)), (slice(2, 7), slice(0, 6), slice(3, 4))])
def test_a_box_is_restored_as_the_whole_grid_with_background_around_it(box):
    shape, source_shape, classes = (7, 6, 9), (13, 11, 5), 3
    grid = Geometry(np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]], shape)
    source = grid.resized(source_shape)
    inside = np.random.default_rng(0).dirichlet(np.ones(classes), tuple(part.stop - part.start for part in box))
    inside = np.moveaxis(inside, -1, 0).astype(np.float32)
    whole = np.zeros((classes, *shape), np.float32)
    whole[0] = 1
    whole[(slice(None), *box)] = inside
    expected = restore_slabs([(0, whole)], grid, source, num_classes=classes)
    cuts = range(1, inside.shape[1])
    for cut in [None, *cuts]:
        parts = [(0, inside)] if cut is None else [(0, inside[:, :cut]), (cut - 1, inside[:, cut - 1 :])]
        np.testing.assert_array_equal(restore_slabs(parts, grid, source, num_classes=classes, box=box), expected)
        joined = np.full_like(whole, np.nan)
        for first, part in embedded(parts, box, shape, num_classes=classes):
            joined[:, first : first + part.shape[1]] = part
        np.testing.assert_array_equal(joined, whole)


def test_boxes_keep_a_margin_and_end_with_the_grid():
    mask = np.zeros((10, 12, 14), bool)
    assert box_around(mask, margin=(1, 1, 1)) is None
    mask[4:6, 0, 13] = True
    box = box_around(mask, margin=(2, 3, 1))
    assert box == (slice(2, 8), slice(0, 4), slice(12, 14))
    assert framed((slice(2, 8), slice(0, 4), slice(12, 14)), mask.shape) == (
        (slice(1, 9), slice(0, 5), slice(11, 14)),
        (slice(1, 7), slice(0, 4), slice(1, 3)),
    )
    assert content_box(np.zeros((1, 4, 4, 4), np.float32)) is None
    assert content_box(mask[None].astype(np.float32), margin=0) == (slice(4, 6), slice(0, 1), slice(13, 14))


def test_an_overlap_from_one_on_is_a_number_of_voxels():
    assert tile_step(96, 16.0) == 80 and tile_step(96, 0.25) == 72
    assert tile_step(16, 96.0) == 8, "at most half a patch"
    for size, (width, overlap) in product((40, 97, 200), ((32, 8), (16, 4))):
        starts = [d for d, _, _ in tile_starts((size, 1, 1), (width, 1, 1), overlap)]
        assert starts[0] == 0 and starts[-1] == size - width
        assert all(after - before <= width - overlap for before, after in pairwise(starts))
    assert replace(PLAN, overlap=16).overlap == 16
    for overlap in (1.0, 2.5, -1):
        with pytest.raises(BadInputError, match="a fraction in"):
            replace(PLAN, overlap=overlap)


def test_plain_blending_gives_every_patch_the_same_weight():
    answers = iter([0.0, 1.0])
    array = np.zeros((1, 1, 1, 12), np.float32)
    window = Plan(intensity=PLAN.intensity, patch=(1, 1, 8), blending="plain")
    tiles = Window(array, window.patch, window.overlap, window.blending)
    given = tiles.infer(lambda x: np.full_like(x, next(answers)))
    _, slab = next(tiles.slabs(given, num_classes=1))
    np.testing.assert_array_equal(slab[0, 0, 0], [0] * 4 + [0.5] * 4 + [1] * 4)
    same = sliding_window(array, (1, 1, 8), 0.5, lambda x: np.ones_like(x), num_classes=1)
    np.testing.assert_array_equal(same, 1)


def test_keys_that_older_packages_do_not_know_stand_only_where_they_say_something():
    assert not {"blending", "crop", "long_side"} & PLAN.to_dict().keys()
    other = replace(PLAN, blending="plain", crop="content", overlap=16)
    assert Plan.from_dict(other.to_dict()) == other and other.digest() != PLAN.digest()
    for name in ("blending", "crop"):
        with pytest.raises(BadInputError, match=f"plan: {name} 'x'"):
            replace(PLAN, **{name: "x"})
