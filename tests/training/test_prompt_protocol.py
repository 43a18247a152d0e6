"""What a simulated user shows: kinds, places, mistakes, repetitions, and what is kept of a mask."""

import numpy as np
import pytest

from samkd.errors import UsageError
from samkd.training.prompt_protocol import PLACES, PromptProtocol, _depth, keep_prompted, parse_protocol
from samkd.training.prompt_sampling import prompts_from_truth
from samkd.volumes.prompts import ClassPrompts, ScanPrompts

SPACING = (4.0, 1.0, 1.0)
TRUTH = np.zeros((9, 40, 40), np.uint8)
TRUTH[2:7] = (np.hypot(*(np.indices((40, 40)) - 18)) < 12) * 1
TRUTH[4, 34:38, 30:39] = 2
LABELS = (0, 1, 2)


def shown(text, truth=TRUTH, name="case", axis=0):
    return parse_protocol(text).prompts(truth, name=name, labels=LABELS, spacing=SPACING, axis=axis)


def voxels(prompts, value=1):
    return [tuple(map(int, point[2::-1])) for point in prompts.classes[value].points]


@pytest.mark.parametrize("kind", ["point", "box", "boxes"])
def test_the_plain_spellings_are_what_they_were(kind):
    assert shown(kind) == prompts_from_truth(kind, TRUTH, labels=LABELS, spacing=SPACING)
    assert (
        shown(kind, TRUTH.swapaxes(0, 1), axis=1).kinds
        == prompts_from_truth(kind, TRUTH.swapaxes(0, 1), labels=LABELS, spacing=SPACING, axis=1).kinds
    )


@pytest.mark.parametrize("place", PLACES)
def test_points_lie_in_their_third_by_depth(place):
    depth = _depth(TRUTH == 1, SPACING)
    low, high = PLACES[place]
    points = voxels(shown(f"points:10,place={place}"))
    assert len(set(points)) == 10
    assert all(low < depth[point] / depth.max() <= high for point in points)


def test_points_on_each_slice_and_wrong_ones():
    prompts = shown("points:3,wrong=2,slices=each")
    points = voxels(prompts)
    assert len(points) == 15 and sorted({point[0] for point in points}) == [2, 3, 4, 5, 6]
    assert [bool(TRUTH[point] == 1) for point in points] == [True, False, False] * 5
    assert all(point[3] == 1 for point in prompts.classes[1].points), "the user says that all lie inside"
    assert prompts.kinds == {"point"}
    assert all(TRUTH[point] != 1 for point in voxels(shown("points:2,wrong=2")))


def test_draws_depend_on_seed_case_and_class_alone():
    text = "points:5,place=random"
    assert shown(text) == shown(text) != shown(text + ",seed=1")
    assert shown(text) != shown(text, name="other")
    alone = parse_protocol(text).prompts(TRUTH, name="case", labels=(0, 2), spacing=SPACING)
    assert alone.classes[2] == shown(text).classes[2]
    protocol = parse_protocol(text)
    assert protocol.repeated(0) == protocol and protocol.repeated(3).seed == 3


def iou(box, tight):
    one, other = (np.array(each).reshape(2, 3) for each in (box, tight))
    one[1], other[1] = one[1] + 1, other[1] + 1  # faces
    common = np.prod(np.maximum(0, np.minimum(one[1], other[1]) - np.maximum(one[0], other[0])))
    return common / (np.prod(one[1] - one[0]) + np.prod(other[1] - other[0]) - common)


@pytest.mark.parametrize("value", [0.5, 0.75])
@pytest.mark.parametrize("kind", ["box", "boxes"])
def test_boxes_overlap_the_tight_one_by_just_that_iou(kind, value):
    for seed in range(5):
        moved = shown(f"{kind},iou={value},seed={seed}").classes[1].boxes
        tight = shown(kind).classes[1].boxes
        assert len(moved) == len(tight) == (1 if kind == "box" else 5)
        assert [iou(*pair) for pair in zip(moved, tight, strict=True)] == pytest.approx(
            [value] * len(tight), abs=0.01
        ), "a little off only where the box is cut at the scan"


def test_relaxed_and_careless_boxes():
    (tight,), (relaxed,) = shown("box").classes[1].boxes, shown("box,relax=0.2").classes[1].boxes
    assert np.subtract(relaxed, tight) == pytest.approx([-2.3, -2.3, -0.5, 2.3, 2.3, 0.5])
    off = np.subtract(shown("boxes,jitter=3").classes[1].boxes, shown("boxes").classes[1].boxes)
    assert np.abs(off).max() == 3 and np.all(off[:, [2, 5]] == 0) and np.all(off == np.round(off))


def test_everything_is_the_point_of_a_grid_that_lies_in_the_class():
    prompts = shown("everything:8")  # points at 2, 7, 12, ... along both axes
    assert voxels(prompts) == [(z, 17, 17) for z in range(2, 7)]
    assert voxels(prompts, 2) == [(4, 37, 32)] or voxels(prompts, 2) == [(4, 37, 37)]
    assert 2 not in shown("everything:2").classes, "no point of a coarse grid lies in it"


def test_what_lies_outside_the_box_or_far_from_the_click_is_kept_out():
    labels = np.ones((3, 20, 20), np.uint8)
    boxed = keep_prompted(
        labels, ScanPrompts({1: ClassPrompts(boxes=((2, 3, 1, 5, 8, 1),))}, "voxel"), "box", spacing=SPACING
    )
    assert np.count_nonzero(boxed) == 4 * 6 and boxed[1, 3:9, 2:6].all()
    clicked = keep_prompted(
        labels, ScanPrompts({1: ClassPrompts(points=((10, 10, 1, 1),))}, "voxel"), 2, spacing=SPACING
    )
    assert np.count_nonzero(clicked) == 13, "a disc of radius 2 mm on a slice; the next is 4 mm away"
    assert not keep_prompted(labels, ScanPrompts({}, "voxel"), "box", spacing=SPACING).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("click", "choose point, points:N, box"),
        ("points:x", "expected a number"),
        ("points:3,wrong=4", "wrong=4 makes no sense"),
        ("points:3,iou=0.5", "iou does not belong to a point"),
        ("box,place=margin", "place does not belong to a box"),
        ("box,keep=5", "keep=box belongs to boxes"),
        ("point,keep=box", "keep=box belongs to boxes"),
        ("point,colour=red", "'colour=red' is none of count"),
        ("point,place=edge", "place='edge' makes no sense"),
        ("box,iou=0", "iou=0.0 makes no sense"),
    ],
)
def test_other_spellings_are_one_clear_error(text, message):
    with pytest.raises(UsageError, match=message):
        parse_protocol(text)


def test_a_protocol_built_in_code_is_checked_too():
    with pytest.raises(UsageError):
        PromptProtocol(kind="box", wrong=1)
