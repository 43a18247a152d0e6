"""Three planes of one organ: which voxels they show, in which proportions, and where the outlines are."""

import io

import numpy as np
import pytest
from PIL import Image

from samkd.evaluation.overlay import rgb
from samkd.evaluation.three_planes import PREDICTION, TRUTH, middle_voxel, three_planes

SPACING = (5.0, 2.0, 1.0)


@pytest.fixture
def scan():
    """A scan of 60 x 80 x 90 voxels of 5 x 2 x 1 mm with an organ of 50 x 40 x 30 mm in its middle."""
    image = np.random.default_rng(0).normal(size=(60, 80, 90)).astype(np.float32)
    truth = np.zeros(image.shape, bool)
    truth[25:35, 30:50, 30:60] = True
    return image, truth


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def outline(picture: np.ndarray, colour: str) -> np.ndarray:
    """The pixels (row, column) of a colour."""
    return np.argwhere((picture == rgb(colour)).all(-1))


def extent(picture: np.ndarray, colour: str) -> np.ndarray:
    """Height and width of the outline of a colour in pixels."""
    return np.ptp(outline(picture, colour), axis=0) + 1


def test_planes_have_the_proportions_of_the_patient_on_one_scale(scan):
    image, truth = scan
    pictures = {name: pixels(png) for name, png in three_planes(image, truth, truth & False, spacing=SPACING).items()}
    assert list(pictures) == ["axial", "coronal", "sagittal"]
    # The organ and 40 mm around it: 130 mm up, 120 mm to the back, and to the sides all 90 mm that the scan has.
    scale = 340 / 130
    sides = {"axial": (120, 90), "coronal": (130, 90), "sagittal": (130, 120)}
    organ = {"axial": (40, 30), "coronal": (50, 30), "sagittal": (50, 40)}
    for name, picture in pictures.items():
        assert picture.shape[:2] == pytest.approx(np.multiply(sides[name], scale), abs=1)
        assert extent(picture, TRUTH) == pytest.approx(np.multiply(organ[name], scale), abs=2)


def test_truth_is_solid_and_the_prediction_dashed(scan):
    image, truth = scan
    prediction = np.roll(truth, 10, axis=2)
    picture = pixels(three_planes(image, truth, prediction, spacing=SPACING)["axial"])
    solid, dashed = outline(picture, TRUTH), outline(picture, PREDICTION)
    scale = 340 / 130
    assert dashed[:, 1].max() - solid[:, 1].max() == pytest.approx(10 * scale, abs=2)
    row = dashed[dashed[:, 1] == dashed[:, 1].max(), 0]
    assert 0.3 < len(row) / extent(picture, PREDICTION)[0] < 0.7
    assert len(solid[solid[:, 1] == solid[:, 1].min()]) == extent(picture, TRUTH)[0]


def test_what_is_up_in_front_and_on_the_right_is_shown_so(scan):
    """Axes grow towards S, P and L; a picture has up above, the front above or on the left, the right on the left."""
    image, truth = scan
    moved = np.roll(truth, (3, -5, -8), axis=(0, 1, 2))  # up, to the front, to the patient's right
    for name, png in three_planes(image, truth, moved, spacing=SPACING).items():
        away = outline(pixels(png), PREDICTION).mean(axis=0) - outline(pixels(png), TRUTH).mean(axis=0)
        assert (away < -3).all(), name


def test_the_planes_cross_in_the_organ_even_if_its_centroid_lies_outside():
    ring = np.zeros((3, 21, 21), bool)
    rows, columns = np.indices((21, 21)) - 10
    ring[1] = (np.hypot(rows, columns) < 9) & (np.hypot(rows, columns) > 6)
    d, h, w = middle_voxel(ring, (1, 1, 1))
    assert ring[d, h, w] and d == 1
    planes = three_planes(np.zeros(ring.shape, np.float32), ring, ring, spacing=(3, 1, 1))
    assert all(len(outline(pixels(png), PREDICTION)) for png in planes.values())


def test_an_invented_organ_is_shown_where_the_prediction_has_it(scan):
    image, truth = scan
    picture = pixels(three_planes(image, truth & False, truth, spacing=SPACING)["coronal"])
    assert len(outline(picture, PREDICTION)) and not len(outline(picture, TRUTH))


def test_a_picture_has_one_plane():
    organ = np.zeros((1, 30, 40), bool)
    organ[0, 10:20, 10:20] = True
    planes = three_planes(np.zeros(organ.shape, np.float32), organ, organ, spacing=(1, 1, 1), flat=True)
    assert list(planes) == ["axial"] and pixels(planes["axial"]).shape == (255, 340, 3)
