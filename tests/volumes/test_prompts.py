"""Prompts from the user's millimetres to the patch and back, checked against plain nibabel."""

import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from samkd.errors import BadInputError, UsageError
from samkd.volumes import Geometry, Plan
from samkd.volumes.io.nifti import read_scan, write_labels
from samkd.volumes.pipeline import segment
from samkd.volumes.plan import grid
from samkd.volumes.prompt_parsing import Request, read_prompts
from samkd.volumes.prompts import ClassPrompts, GridPrompts, ScanPrompts
from samkd.volumes.sliding_window import sliding_window

LABELS = {0: "background", 1: "liver", 2: "spleen"}
WINDOW = ({"rule": "window", "low": 0, "high": 1},)
ORIENTATIONS = [
    np.array(list(zip(order, signs, strict=True)))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
][::3]
PLANS = {
    "own voxels": Plan(intensity=WINDOW, patch=(4, 6, 5)),
    "padded": Plan(intensity=WINDOW, patch=(16, 16, 16)),
    "other axes": Plan(intensity=WINDOW, patch=(4, 4, 4), orientation="RIA"),
    "finer": Plan(intensity=WINDOW, patch=(6, 8, 8), spacing=(1.25, 0.45, 0.35)),
    "coarser in the slice": Plan(intensity=WINDOW, patch=(4, 4, 4), size=(None, 7, 9)),
}


def scan(folder, ornt, *, tilt=15.0, spacing=(0.7, 0.9, 2.5)) -> nib.Nifti1Image:
    """A scan of 13 x 11 x 6 voxels, oblique by `tilt` degrees, stored in the axis order `ornt`."""
    shape = (13, 11, 6)
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = (-31.5, 12.25, 140.0)
    data = apply_orientation(np.random.default_rng(0).random(shape, np.float32), ornt)
    nib.Nifti1Image(data, affine @ inv_ornt_aff(ornt, shape)).to_filename(folder / "scan.nii.gz")
    return nib.Nifti1Image.from_filename(folder / "scan.nii.gz")


def painter(patches, prompts):
    """A network that marks the voxel of each point inside and every voxel of each box, and nothing else."""
    marked = np.zeros((len(patches), 3, *patches.shape[2:]), np.float32)
    for answer, points, labels, boxes in zip(marked, prompts.points, prompts.labels, prompts.boxes, strict=True):
        for value in (1, 2):
            for point, label in zip(points[value - 1], labels[value - 1], strict=True):
                if label == 1:
                    answer[(value, *np.floor(point + 0.5).astype(int))] = 1
            if not np.isnan(boxes[value - 1]).any():
                low, high = np.floor(boxes[value - 1].reshape(2, 3) + 0.5).astype(int)
                answer[(value, *(slice(a, b + 1) for a, b in zip(low, high, strict=True)))] = 1
    marked[:, 0] = 0.5 * (marked.max(axis=1) == 0)
    return marked


def marked(folder, plan, prompts) -> np.ndarray:
    """The mask that `painter` makes of the prompts, as nibabel reads it: [i, j, k]."""
    volume = read_scan(folder / "scan.nii.gz")
    result = segment(volume, plan, painter, num_classes=3, batch=2, prompts=prompts)
    write_labels(folder / "mask.nii.gz", result, volume.geometry, like=folder / "scan.nii.gz")
    return np.asarray(nib.Nifti1Image.from_filename(folder / "mask.nii.gz").dataobj)


@pytest.mark.parametrize("space", ["mm", "voxel"])
@pytest.mark.parametrize("name", ["own voxels", "padded", "other axes"])
@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join("-+"[int(s > 0)] + "ijk"[int(a)] for a, s in o))
def test_a_point_marks_the_very_voxel_of_the_file_that_it_means(tmp_path, ornt, name, space):
    image = scan(tmp_path, ornt)
    for index in ((0, 0, 0), tuple(n - 1 for n in image.shape), (3, 2, 4)):
        place = index if space == "voxel" else tuple((np.asarray(image.affine) @ (*index, 1))[:3])
        mask = marked(tmp_path, PLANS[name], ScanPrompts({2: ClassPrompts(points=((*place, 1),))}, space))
        assert np.argwhere(mask).tolist() == [list(index)]
        assert mask[index] == 2


@pytest.mark.parametrize("name", ["own voxels", "padded", "other axes"])
@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=str)
def test_a_box_fills_the_very_voxels_of_the_file(tmp_path, ornt, name):
    image = scan(tmp_path, ornt, tilt=0)
    first, last = (1, 2, 0), (4, 3, 3)
    wanted = np.zeros(image.shape, int)
    wanted[1:5, 2:4, 0:4] = 1
    ends = np.asarray(image.affine) @ np.array([[*(np.array(first) - 0.5), 1], [*(np.array(last) + 0.5), 1]]).T
    low, high = np.sort(ends[:3], axis=1).T
    for prompts in (
        ScanPrompts({1: ClassPrompts(boxes=((*first, *last),))}, "voxel"),
        ScanPrompts({1: ClassPrompts(boxes=((*low, *high),))}, "mm"),
    ):
        np.testing.assert_array_equal(marked(tmp_path, PLANS[name], prompts), wanted)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("ornt", ORIENTATIONS[::4], ids=str)
@pytest.mark.parametrize("spacing", [(0.7, 0.9, 2.5), (3.0, 0.5, 1.0)], ids=str)
def test_millimetres_go_to_every_patch_and_come_back(tmp_path, spacing, ornt, plan):
    scan(tmp_path, ornt, spacing=spacing)
    volume = read_scan(tmp_path / "scan.nii.gz")
    seen_by = grid(plan, volume.geometry)
    rng = np.random.default_rng(1)
    indices = rng.uniform(0, np.array(volume.geometry.shape) - 1, (20, 3))
    places = indices @ volume.geometry.affine[:3, :3].T + volume.geometry.affine[:3, 3]
    prompts = ScanPrompts({1: ClassPrompts(points=tuple((*place, 1) for place in places))})
    placed = prompts.onto(seen_by, scan=volume.geometry, classes=2)
    starts = rng.integers(-4, np.array(seen_by.shape), (30, 3))
    result = placed.within(starts, plan.patch)
    for start, points, labels in zip(starts, result.points[:, 0], result.labels[:, 0], strict=True):
        local = placed.points[0] - start
        expected = ((local >= -0.5) & (local < np.array(plan.patch) - 0.5)).all(axis=1)
        np.testing.assert_array_equal(labels == 1, expected)
        back = (points + start) @ seen_by.affine[:3, :3].T + seen_by.affine[:3, 3]
        np.testing.assert_allclose(back[expected], places[expected], atol=1e-4)
    assert (result.labels == 1).any() and (result.labels == -1).any()


def test_a_box_keeps_its_faces_on_another_grid():
    own = Geometry(np.diag([2.0, 1.0, 1.0, 1]), (10, 20, 20))
    coarse = own.resized((5, 10, 40))
    prompts = ScanPrompts({1: ClassPrompts(boxes=((4, 6, 2, 9, 9, 5),))}, "voxel")  # i, j, k
    placed = prompts.onto(coarse, scan=own, classes=2)
    # k 2..5 are faces 1.5 and 5.5, halved; j 6..9 likewise; i 4..9 doubled.
    np.testing.assert_allclose(placed.boxes[:, 0], [[1, 3, 8, 2, 4, 19]])
    thin = ScanPrompts({1: ClassPrompts(boxes=((4, 6, 2, 4, 6, 2),))}, "voxel").onto(coarse, scan=own, classes=2)
    np.testing.assert_allclose(thin.boxes[:, 0], [[0.75, 2.75, 8, 0.75, 2.75, 9]])


def test_boxes_of_several_slices_reach_their_slices_and_no_slice_has_two():
    scan = Geometry(np.eye(4), (6, 20, 20))
    boxes = ((4, 6, 1, 9, 9, 1), (5, 7, 2, 11, 8, 2), (0, 0, 5, 3, 3, 5))  # i, j, k
    placed = ScanPrompts({2: ClassPrompts(boxes=boxes)}, "voxel").onto(scan, scan=scan, classes=3)
    slices = placed.within(np.array([[z, 0, 0] for z in range(6)]), (1, 20, 20)).boxes[:, 1]
    assert np.isnan(slices[[0, 3, 4]]).all()
    np.testing.assert_array_equal(slices[[1, 2, 5]], [[0, 6, 4, 0, 9, 9], [0, 7, 5, 0, 8, 11], [0, 0, 0, 0, 3, 3]])
    # A network of three slices at once sees the box around those that meet its patch.
    stack = placed.within(np.array([[0, 0, 0], [3, 0, 0]]), (3, 20, 20)).boxes[:, 1]
    np.testing.assert_array_equal(stack, [[1, 6, 4, 2, 9, 11], [2, 0, 0, 2, 3, 3]])
    twice = ScanPrompts({2: ClassPrompts(boxes=(*boxes, (12, 12, 2, 14, 14, 3)))}, "voxel")
    with pytest.raises(BadInputError, match="class 2 has two boxes on one slice"):
        twice.onto(scan, scan=scan, classes=3)


def test_patches_get_what_lies_in_them_and_nothing_else():
    points = np.array([[[1.0, 1, 1], [6, 6, 6]], [[0, 0, 0], [0, 0, 0]]])
    boxes = np.array([[[np.nan] * 6], [[2.0, 2, 2, 5, 5, 5]]])
    placed = GridPrompts(points, np.array([[1, 0], [-1, -1]]), boxes)
    result = placed.within(np.array([[0, 0, 0], [4, 4, 4], [6, 0, 0]]), (4, 4, 4))
    assert result.labels.tolist() == [[[1, -1], [-1, -1]], [[-1, 0], [-1, -1]], [[-1, -1], [-1, -1]]]
    assert result.points[1, 0].tolist() == [[0, 0, 0], [2, 2, 2]]
    np.testing.assert_array_equal(result.boxes[:2, 1], [[2, 2, 2, 3, 3, 3], [0, 0, 0, 1, 1, 1]])
    assert np.isnan(result.boxes[2]).all() and np.isnan(result.boxes[:, 0]).all()
    assert not result.empty and placed.within(np.array([[6, 0, 0]]), (4, 4, 4)).empty


def test_without_prompts_infer_gets_the_patches_alone():
    def infer(*arguments):
        (patches,) = arguments
        return np.concatenate([1 - patches, patches], axis=1)

    array = np.random.default_rng(0).random((1, 6, 6, 6), np.float32)
    result = sliding_window(array, (4, 4, 4), 0.5, infer, num_classes=2)
    np.testing.assert_allclose(result[1], array[0], atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (ScanPrompts({1: ClassPrompts(points=((20, 0, 0, 1),))}, "voxel"), "point 20,0,0 lies outside.*i 0 to 12"),
        (ScanPrompts({1: ClassPrompts(points=((0, 0, 0, 1),))}), "point 0,0,0 lies outside.*mm"),
        (ScanPrompts({1: ClassPrompts(boxes=((20, 0, 0, 25, 5, 5),))}, "voxel"), "box 20,0,0,25,5,5 lies outside"),
        (ScanPrompts({1: ClassPrompts(boxes=((0, 0, 0, 1, 1, 1),))}), "box 0,0,0,1,1,1 lies outside"),
    ],
)
def test_a_prompt_outside_the_scan_is_refused(tmp_path, prompts, said):
    scan(tmp_path, ORIENTATIONS[0])
    with pytest.raises(BadInputError, match=said):
        marked(tmp_path, PLANS["own voxels"], prompts)


def test_a_box_that_reaches_out_of_the_scan_is_cut(tmp_path):
    scan(tmp_path, ORIENTATIONS[0])
    mask = marked(
        tmp_path, PLANS["own voxels"], ScanPrompts({1: ClassPrompts(boxes=((11, -5, 4, 30, 2, 4),))}, "voxel")
    )
    assert np.argwhere(mask).min(axis=0).tolist() == [11, 0, 4]
    assert np.argwhere(mask).max(axis=0).tolist() == [12, 2, 4]


def test_the_command_line_and_the_file_say_the_same(tmp_path):
    asked = Request(["-40,12.5,30", "5,5,5,0"], ["-90,0,0,10,80,60"], "spleen").resolve(LABELS)
    wanted = ClassPrompts(((-40, 12.5, 30, 1), (5, 5, 5, 0)), ((-90, 0, 0, 10, 80, 60),))
    assert asked == ScanPrompts({2: wanted}, "mm")
    entry = {"points": [[-40, 12.5, 30], [5, 5, 5, 0]], "boxes": [[-90, 0, 0, 10, 80, 60]]}
    (tmp_path / "p.json").write_text(json.dumps({"classes": {"spleen": entry}}))
    assert Request(file=tmp_path / "p.json").resolve(LABELS) == asked
    assert Request(["1,2,3"], space="voxel").resolve({0: "background", 1: "liver"}).space == "voxel"


def test_a_file_may_say_where_its_prompts_come_from(tmp_path):
    (tmp_path / "p.json").write_text('{"origin": "by hand", "classes": {"liver": {"points": [[1, 2, 3]]}}}')
    assert read_prompts(tmp_path / "p.json", LABELS) == ScanPrompts({1: ClassPrompts(((1, 2, 3, 1),))}, "mm")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Request(["1,2"], name="liver"), "expected x,y,z or x,y,z,label"),
        (Request(["1,2,three"], name="liver"), "--point '1,2,three'"),
        (Request(["1,2,nan"], name="liver"), "finite"),
        (Request(["1,2,3,2"], name="liver"), "label 2; expected 1"),
        (Request(["1,2,3,0.5"], name="liver"), "label 0.5"),
        (Request(["1,2,3"], name="lung"), "'lung' is unknown.*liver, spleen"),
        (Request(["1,2,3"], name="background"), "'background' is unknown"),
        (Request(["1,2,3"]), "say --class, one of liver, spleen"),
        (Request(name="liver"), "give its --point or --box"),
        (Request(["1,2,3"], name="liver", space="inch"), "'inch' is unknown"),
        (Request([], ["0,0,0,1,1"], "liver"), "expected x0,y0,z0,x1,y1,z1"),
        (Request([], ["0,5,0,1,1,1"], "liver"), "inverted along y"),
        (Request([], ["0,1,0,1,1,1"], "liver"), "empty along y"),
        (Request(["1,2,3"], file=Path("prompts.json")), "leave out --point"),
    ],
)
def test_a_wrong_option_is_one_usage_error(asked, said):
    with pytest.raises(UsageError, match=said):
        asked.resolve(LABELS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (f'{{"classes": {{"liver": {{"points": [[{"9" * 400}, 2, 3]]}}}}}}', "finite numbers"),
        ('{"origin": 5, "classes": {"liver": {"points": [[1, 2, 3]]}}}', '"origin" is 5'),
        ("[]", "the file holds"),
        ('{"classes": {}}', '"classes" is {}'),
        ('{"clases": {"liver": {}}}', "the file holds"),
        ('{"classes": {"liver": {}}}', "expected a list of points"),
        ('{"classes": {"liver": {"point": [[1, 2, 3]]}}}', "class 'liver' holds"),
        ('{"classes": {"lung": {"points": [[1, 2, 3]]}}}', "'lung' is unknown"),
        ('{"classes": {"liver": {"points": [[1, 2, 3, 4, 5]]}}}', "expected x,y,z"),
        ('{"classes": {"liver": {"points": [[1, 2, "3"]]}}}', "expected x,y,z"),
        ('{"classes": {"liver": {"points": [[1, 2, true]]}}}', "expected x,y,z"),
        ('{"classes": {"liver": {"points": [[1, 2, 3, -1]]}}}', "label -1"),
        ('{"classes": {"liver": {"boxes": [[0, 0, 3, 1, 1, 1]]}}}', "inverted along z"),
        ('{"space": "cm", "classes": {"liver": {"points": [[1, 2, 3]]}}}', "space 'cm' is unknown"),
        ('{"space": ["mm"], "classes": {"liver": {"points": [[1, 2, 3]]}}}', "is unknown"),
        ('{"classes": {"liver": {"points": [[1, 2, 3]]}, "liver": {"points": [[4, 5, 6]]}}}', "stands twice"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_it(tmp_path, text, said):
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=said) as caught:
        read_prompts(path, LABELS)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInputError, match="nowhere"):
        read_prompts(tmp_path / "nowhere.json", LABELS)
