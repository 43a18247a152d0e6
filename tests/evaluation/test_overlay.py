import io

import numpy as np
import pytest
from PIL import Image

from samkd.evaluation.overlay import colours, comparison_png


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has(picture, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((picture == rgb).all(-1))


@pytest.fixture
def scan():
    """20 slices of 5 x 2 x 1 mm; class 1 lies on the patient's right and in front, class 2 only in the upper slices."""
    image = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32)
    truth = np.zeros(image.shape, np.uint8)
    truth[4:16, 4:12, 3:12] = 1
    truth[14, 20:26, 28:36] = 2
    return image, truth


def test_columns_rows_and_proportions(scan):
    image, truth = scan
    picture = pixels(comparison_png(image, {"truth": truth, "student": truth}, spacing=(5, 2, 1)))
    width, height = 300, 450  # 40 mm wide, 60 mm high
    assert picture.shape == (26 + 3 * (height + 6), 6 + 3 * (width + 6), 3)
    assert not has(picture[:, : width + 6], colours(2)[0]).size, "the first column is the bare image"
    head = picture[:26]
    for column in range(3):
        name = head[:, 6 + column * 306 : 306 + column * 306]
        assert (name < 100).any(), "a name above each column"


def test_radiological_convention(scan):
    image, truth = scan
    picture = pixels(comparison_png(image, {"truth": truth}, spacing=(5, 2, 1)))
    column = picture[26:, 6 + 306 :]
    y, x = has(column[:450], colours(2)[0]).mean(0)
    assert x < 150 and y < 225, "the patient's right is on the left, the front is up"
    spot = has(column[:450], colours(2)[1])
    assert spot.size and spot[:, 1].min() > 150, "the slice with most truth, the topmost of the three, shows class 2"
    assert not has(column[456:], colours(2)[1]).size


def test_a_prediction_is_drawn_in_its_own_column(scan):
    image, truth = scan
    other = np.where(truth == 1, 2, 0).astype(np.uint8)
    picture = pixels(comparison_png(image, {"truth": truth, "student": other}, spacing=(5, 2, 1)))
    third = picture[:, 6 + 2 * 306 :]
    assert has(third, colours(2)[1]).size and not has(third, colours(2)[0]).size


def test_a_scan_without_truth_shows_its_middle_slice():
    image, empty = np.zeros((9, 20, 20), np.float32), np.zeros((9, 20, 20), np.uint8)
    picture = pixels(comparison_png(image, {"truth": empty}, spacing=(1, 1, 1)))
    assert picture.shape == (26 + 306, 6 + 2 * 306, 3)


def test_colours_are_fixed_and_different():
    assert len(set(colours(16))) == 16
    assert colours(3) == colours(16)[:3] and len(colours(40)) == 40


def test_grey_shows_the_body_not_the_air():
    image = np.full((5, 40, 40), -1000, np.float32)
    image[:, 10:30, 10:30] = np.linspace(-100, 200, 20)
    image[:, 15, 15] = 3000  # a clip
    picture = pixels(comparison_png(image, {"truth": np.zeros(image.shape, np.uint8)}, spacing=(1, 1, 1)))
    column = picture[26 + 30 : 26 + 300, 6:306, 0]
    assert column[110, 90] < 40 and column[110, 212] > 200, "soft tissue spans the grey scale"
