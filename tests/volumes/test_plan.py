import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from samkd.errors import BadInputError
from samkd.volumes import Geometry, Plan, Volume
from samkd.volumes.plan import grid
from samkd.volumes.preprocess import preprocess, preprocess_labels, restore
from samkd.volumes.resample import resample

WINDOW = ({"rule": "window", "low": 0, "high": 1},)


def plan(**options) -> Plan:
    return Plan(**{"intensity": WINDOW, "patch": (8, 8, 8), **options})


def oblique(shape=(6, 9, 11)) -> Geometry:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (-10, 20, 30)
    return Geometry(affine[:, [2, 1, 0, 3]], shape)


def test_spacing_size_and_none():
    source = oblique()
    assert grid(plan(), source).shape == (6, 9, 11)
    assert grid(plan(), source).axis_codes == "SPL"
    target = grid(plan(spacing=(1, 1.8, None)), source)
    assert target.shape == (15, 5, 11)  # 15 mm / 1; 8.1 mm / 1.8 = 4.5, up; kept
    assert target.spacing == pytest.approx((1.0, 8.1 / 5, 0.7))
    assert grid(plan(spacing=(1, 1, 1), size=(None, 32, 32)), source).shape == (15, 32, 32)
    assert grid(plan(orientation="LSP", size=(4, None, 5)), source).shape == (4, 6, 5)
    assert grid(plan(spacing=(99, 99, 99)), source).shape == (1, 1, 1)


def test_plan_survives_json_and_its_digest_sees_values_only():
    one = plan(spacing=(1.5, None, 1), size=None, overlap=0.25)
    two = Plan.from_dict(json.loads(json.dumps(one.to_dict())))
    assert two == one and two.digest() == one.digest() and len(one.digest()) == 64
    same = plan(spacing=[1.5, None, 1.0], intensity=[{"high": 1.0, "low": 0.0, "rule": "window"}], overlap=0.25)
    assert same.digest() == one.digest()
    for change in ({"overlap": 0.5}, {"spacing": (1.5, 1.5, 1)}, {"orientation": "SPR"}, {"patch": (8, 8, 9)}):
        assert dataclasses.replace(one, **change).digest() != one.digest()


def test_the_digest_is_the_one_packages_hold():
    assert plan().digest() == "26d694057bd40547271cee6715c3792f257f27abd2f7f7cb2ec6e3b915dd2a08"


@pytest.mark.parametrize(
    "options",
    [
        *({"orientation": codes} for codes in ("SPX", "SP", "SSL", "LRS", "spl", "SPLR")),
        *({"patch": patch} for patch in ((8, 8), (8, 8, 0), (8, 8, -1))),
        *({"spacing": spacing} for spacing in ((1, 1), (1, 0, 1), (1, 1, float("nan")))),
        {"size": (0, 1, 1)},
        {"overlap": 1.0},
        {"overlap": -0.1},
    ],
)
def test_impossible_plans_are_refused(options):
    with pytest.raises(BadInputError, match=f"plan: {next(iter(options))}"):
        plan(**options)


def test_unknown_missing_and_misshapen_values_are_refused():
    good = plan().to_dict()
    with pytest.raises(BadInputError, match="pitch"):
        Plan.from_dict({**good, "pitch": 1})
    with pytest.raises(BadInputError, match="patch"):
        Plan.from_dict({key: value for key, value in good.items() if key != "patch"})
    for wrong in ({"patch": 5}, {"patch": ["a", 8, 8]}, {"intensity": ["window"]}, {"overlap": None}):
        with pytest.raises(BadInputError, match="wrong kind"):
            Plan.from_dict({**good, **wrong})


def test_prepare_puts_every_voxel_on_the_grid():
    source = oblique()
    array = np.random.default_rng(0).random((2, *source.shape)).astype(np.float32)
    prepared = preprocess(Volume(array, source), plan())
    assert prepared.array.dtype == np.float32 and prepared.array.flags.c_contiguous
    np.testing.assert_allclose(prepared.array, array[:, :, ::-1, ::-1], atol=1e-6)
    assert prepared.geometry.same_grid(grid(plan(), source), tolerance_mm=0)


def test_labels_lie_on_the_grid_of_the_scan():
    source = oblique()
    labels = np.random.default_rng(0).integers(0, 3, source.shape).astype(np.uint8)
    chosen = plan(spacing=(1, 1, 1), orientation="RAI")
    scan = preprocess(Volume(labels[None].astype(np.float32), source), plan(spacing=(1, 1, 1), orientation="RAI"))
    result = preprocess_labels(labels, source, chosen)
    assert result.shape == scan.geometry.shape and result.dtype == np.uint8
    exact = preprocess_labels(labels, source, plan())
    np.testing.assert_array_equal(exact, labels[:, ::-1, ::-1])


@pytest.mark.parametrize("codes", ["SPL", "RIA", "ASL", "LPI"])
@pytest.mark.parametrize("spacing", [None, (1.0, 0.5, 0.4)])
def test_restore_undoes_prepare(codes, spacing):
    source = oblique((8, 12, 14))
    labels = np.zeros(source.shape, np.uint8)
    labels[2:6, 3:9, 4:11] = 1
    labels[3:5, 5:8, 6:9] = 2
    chosen = plan(orientation=codes, spacing=spacing)
    target = grid(chosen, source)
    one_hot = np.stack([(labels == k).astype(np.float32) for k in range(3)])
    probabilities = preprocess(Volume(one_hot, source), chosen)
    result = restore(probabilities.array, target, source)
    assert result.dtype == np.uint8 and result.shape == source.shape and result.flags.c_contiguous
    if spacing is None:
        np.testing.assert_array_equal(result, labels)
    else:
        assert (result != labels).mean() < 0.02


def test_restore_is_the_argmax_of_the_resampled_classes():
    source = oblique()
    target = grid(plan(spacing=(1, 1, 1)), source)
    probabilities = np.random.default_rng(0).random((5, *target.shape)).astype(np.float32)
    probabilities[3] = probabilities[1]  # a tie goes to the lower class
    aligned = source.oriented("SPL")
    full = resample(probabilities, target, aligned, order=1)
    np.testing.assert_array_equal(restore(probabilities, target, source), full.argmax(axis=0)[:, ::-1, ::-1])


def test_restore_takes_half_precision_and_many_classes():
    source = oblique((2, 3, 4))
    probabilities = np.zeros((300, 2, 3, 4), np.float16)
    probabilities[299, 1, 1, 1] = 1
    result = restore(probabilities, source, source)
    assert result.dtype == np.uint16 and result[1, 1, 1] == 299 and result.sum() == 299


def test_restore_holds_no_second_volume():
    source = Geometry(np.diag([2.0, 1.0, 1.0, 1.0]), (160, 160, 160))
    target = source.resized((40, 40, 40))
    probabilities = np.random.default_rng(0).random((8, *target.shape)).astype(np.float32)
    tracemalloc.start()
    restore(probabilities, target, source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    full = 4 * 160**3
    assert peak < 1.6 * full, peak / full  # labels (a quarter) and slabs; eight classes would be 8


def test_the_long_side_has_so_many_voxels_and_pixels_stay_square():
    target = grid(plan(long_side=100), Geometry(np.diag([0.7, 0.9, 2.5, 1])[:, [2, 1, 0, 3]], (6, 9, 11)))
    assert target.shape == (6, 100, 95)  # 8.1 mm by 7.7 mm
    assert target.spacing[1:] == pytest.approx((0.081, 0.081), rel=1e-2)
    with pytest.raises(BadInputError, match="long_side 0"):
        plan(long_side=0)
