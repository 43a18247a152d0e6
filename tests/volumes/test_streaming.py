"""The mask written slab by slab is the mask of the whole probability volume, voxel by voxel."""

import tracemalloc
from itertools import permutations, product

import numpy as np
import pytest

from samkd.volumes import Plan
from samkd.volumes.geometry import Geometry, Volume, reorient
from samkd.volumes.pipeline import segment, segment_preprocessed
from samkd.volumes.plan import grid
from samkd.volumes.preprocess import preprocess, restore, restore_slabs
from samkd.volumes.prompts import ClassPrompts, ScanPrompts
from samkd.volumes.resample import resample
from samkd.volumes.sliding_window import Window, gaussian_weights, pad_to_patch, sliding_window, tile_starts

CLASSES = 4
WINDOW = ({"rule": "window", "low": 0, "high": 1},)
CODES = ["".join(c) for order in permutations(("RL", "AP", "SI")) for c in product(*order)]


def scan(shape=(13, 17, 11), spacing=(2.0, 0.7, 1.1), codes="SPL") -> Volume:
    """An oblique scan of uniform noise, so that neighbouring voxels get different classes."""
    c, s = np.cos(0.2), np.sin(0.2)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])[:, [2, 1, 0]] @ np.diag(spacing)
    affine[:3, 3] = (-20, 5, 30)
    geometry = Geometry(affine, shape).oriented(codes)
    values = np.random.default_rng(0).random((1, *geometry.shape)).astype(np.float32)
    return Volume(values, geometry)


def network(patches, prompts=None):
    """Class probabilities that depend on the voxel, on its place in the patch and on the points in it."""
    d, h, w = np.meshgrid(*(np.linspace(0, 1, n) for n in patches.shape[2:]), indexing="ij")
    logits = np.stack([np.sin(9 * patches[:, 0] * (k + 1) + k * d + 2 * h - 3 * w * k) for k in range(CLASSES)], axis=1)
    if prompts is not None:
        logits[:, 1] += 2.0 * (prompts.labels[:, 0] == 1).sum(axis=1)[:, None, None, None]
    values = np.exp(3 * logits)
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def whole(volume, plan, prompts=None):
    """The definition: all probabilities, averaged by weight; all of them resampled; the largest wins."""
    prepared = preprocess(volume, plan)
    placed = prompts and prompts.onto(prepared.geometry, scan=volume.geometry, classes=CLASSES)
    padded, crop = pad_to_patch(prepared.array, plan.patch)
    total = np.zeros((CLASSES, *padded.shape[1:]), np.float32)
    for start in tile_starts(padded.shape[1:], plan.patch, plan.overlap):
        box = tuple(slice(s, s + n) for s, n in zip(start, plan.patch, strict=True))
        inside = placed and placed.within(np.array([start]) - [c.start for c in crop], plan.patch)
        total[(slice(None), *box)] += network(padded[(None, slice(None), *box)], inside)[0] * gaussian_weights(
            plan.patch
        )
    for axis in range(3):
        line = np.zeros(padded.shape[1 + axis], np.float32)
        width = plan.patch[axis]
        for start in sorted({s[axis] for s in tile_starts(padded.shape[1:], plan.patch, plan.overlap)}):
            middle = tuple(n // 2 if a != axis else slice(None) for a, n in enumerate(plan.patch))
            line[start : start + width] += gaussian_weights(plan.patch)[middle]
        total /= line.reshape([-1 if a == axis else 1 for a in range(3)])
    target = volume.geometry.aligned(prepared.geometry)
    full = resample(total[(slice(None), *crop)], prepared.geometry, target, order=1)
    return reorient(full.argmax(axis=0), target, volume.geometry)


def same(volume, plan, **options):
    expected = whole(volume, plan, options.get("prompts"))
    assert len(np.unique(expected)) == CLASSES
    np.testing.assert_array_equal(segment(volume, plan, network, num_classes=CLASSES, **options), expected)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("spacing", [None, (1.0, 1.5, 0.9)])
def test_every_orientation_of_the_scan(codes, spacing):
    plan = Plan(orientation="LPS", spacing=spacing, intensity=WINDOW, patch=(6, 5, 4))
    same(scan(codes=codes), plan)


@pytest.mark.parametrize("codes", CODES[::5])
@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (0.5, 0.6, 0.7), (0.5, 3.0, 1.1), (7.0, None, 0.4)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_every_spacing_and_overlap(codes, spacing, overlap):
    same(scan(), Plan(orientation=codes, spacing=spacing, intensity=WINDOW, patch=(5, 6, 4), overlap=overlap), batch=3)


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 3, 40), (41, 3, 2), (5, 6, 7), (6, 31, 4)])
@pytest.mark.parametrize("patch", [(1, 4, 4), (3, 8, 5), (6, 6, 6)])
def test_odd_shapes_and_grids_smaller_than_the_patch(shape, patch):
    same(scan(shape=shape), Plan(intensity=WINDOW, patch=patch))
    same(scan(shape=shape), Plan(size=(7, 5, 9), intensity=WINDOW, patch=patch))


@pytest.mark.parametrize("codes", CODES[::7])
def test_prompts(codes):
    volume = scan()
    centre = volume.geometry.affine @ (*(n / 3 for n in volume.geometry.shape), 1)
    prompts = ScanPrompts({1: ClassPrompts(points=((*centre[:3], 1),))})
    plan = Plan(orientation=codes, spacing=(1.5, 1.5, 1.5), intensity=WINDOW, patch=(5, 6, 4))
    assert (whole(volume, plan, prompts) != whole(volume, plan)).any()
    same(volume, plan, prompts=prompts)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_network_in_the_background_is_kept_busy_and_changes_nothing(at_once):
    volume, begun, waited, ahead = scan(), [], [], []
    plan = Plan(spacing=(1, 1, 1), intensity=WINDOW, patch=(5, 6, 4))

    def begin(patches):
        begun.append(patches)

        def wait():
            ahead.append(len(begun) - len(waited))
            waited.append(patches)
            return network(patches)

        return wait

    prepared = preprocess(volume, plan)
    result = segment_preprocessed(prepared, volume.geometry, plan, begin, num_classes=CLASSES, at_once=at_once)
    np.testing.assert_array_equal(result, whole(volume, plan))
    assert ahead[: 1 - at_once or None] == [at_once] * (len(begun) - at_once + 1) and ahead[-1] == 1


def test_slabs_begin_with_the_last_row_of_the_one_before():
    array = scan(shape=(23, 9, 8)).array
    full = sliding_window(array, (6, 4, 4), 0.5, network, num_classes=CLASSES)
    end = 0
    window = Window(array, (6, 4, 4), 0.5)
    for first, slab in window.slabs(window.infer(network), num_classes=CLASSES):
        assert first == max(0, end - 1) and slab.shape[1] <= 7
        np.testing.assert_array_equal(slab, full[:, first : first + slab.shape[1]])
        end = first + slab.shape[1]
    assert end == 23


@pytest.mark.parametrize("height", [1, 2, 5])
def test_how_the_probabilities_are_cut_does_not_show(height):
    volume = scan()
    target = grid(Plan(spacing=(0.8, 1.7, 1.0), orientation="ASL", intensity=WINDOW, patch=(4, 4, 4)), volume.geometry)
    values = np.random.default_rng(1).random((CLASSES, *target.shape)).astype(np.float32)
    parts = [(max(0, d - 1), values[:, max(0, d - 1) : d + height]) for d in range(0, target.shape[0], height)]
    expected = restore(values, target, volume.geometry)
    np.testing.assert_array_equal(restore_slabs(parts, target, volume.geometry, num_classes=CLASSES), expected)
    with pytest.raises(AssertionError, match="end before row"):
        restore_slabs(parts[:-1], target, volume.geometry, num_classes=CLASSES)


def test_a_rare_class_is_found_wherever_it_wins():
    """restore leaves out what cannot win; where a class is the largest by a hair, or nowhere in the grid, it can."""
    source = Geometry(np.diag([1.0, 1.0, 1.0, 1.0]), (24, 24, 24))
    target = source.resized((8, 8, 8))
    values = np.zeros((3, *target.shape), np.float32)
    values[0, :4], values[1, 4:], values[2] = 0.6, 0.6, 0.45  # between the two the third one is the largest
    full = resample(values, target, source, order=1)
    expected = full.argmax(axis=0)
    assert set(np.unique(values.argmax(axis=0))) == {0, 1} and (expected == 2).sum() == 24 * 24 * 2
    np.testing.assert_array_equal(restore(values, target, source), expected)


def test_memory_does_not_grow_with_the_length_of_the_scan():
    def peak(length):
        volume = Volume(np.zeros((1, length, 40, 40), np.float32), Geometry(np.eye(4), (length, 40, 40)))
        plan = Plan(intensity=WINDOW, patch=(8, 20, 20), orientation="RAS")
        prepared = preprocess(volume, plan)
        answer = np.full((1, 16, 8, 20, 20), 1 / 16, np.float32)
        tracemalloc.start()
        segment_preprocessed(prepared, volume.geometry, plan, lambda patches: answer, num_classes=16)
        result = tracemalloc.get_traced_memory()[1] - length * 40 * 40  # the labels
        tracemalloc.stop()
        return result

    short, long = peak(24), peak(240)
    assert long < 1.2 * short and long < 16 * 240 * 40 * 40 * 4 / 5
