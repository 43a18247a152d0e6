"""Damaged files: a mutated file is refused with a SamkdError, or its pixels are those of the whole file."""

import gzip
import json
import random

import numpy as np
import pytest
from helpers import dataset_layouts
from helpers.dataset_layouts import write_nifti, write_picture
from helpers.fuzzing import COUNT, mutated, read_or_refuse

from samkd.volumes import Geometry, Volume
from samkd.volumes.datasets.registry import read_dataset
from samkd.volumes.io import nifti
from samkd.volumes.io.scans import Source, read_mask, read_source

pytestmark = pytest.mark.slow


def array_and_geometry(content: Volume | tuple[np.ndarray, Geometry]) -> tuple[np.ndarray, Geometry]:
    """A scan and a mask in the one form."""
    return (content.array, content.geometry) if isinstance(content, Volume) else content


@pytest.mark.parametrize("reader", ["isal or zlib", "zlib"])
def test_nifti(tmp_path, monkeypatch, reader):
    if reader == "zlib":
        monkeypatch.setattr(nifti, "GzipReader", gzip.GzipFile)
    scan, label = tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz"
    write_nifti(scan, label, seed=0, classes=3)
    for path, read in ((scan, read_source), (label, read_mask)):
        whole, rng, accepted = path.read_bytes(), random.Random(1), 0
        first = read(Source("x", (path,)))
        for _ in range(COUNT):
            path.write_bytes(mutated(whole, rng))
            result = read_or_refuse(lambda: read(Source("x", (path,))))  # noqa: B023
            if result is not None:
                accepted += 1
                (array, grid), (wanted, place) = array_and_geometry(result), array_and_geometry(first)
                np.testing.assert_array_equal(array, wanted)
                np.testing.assert_array_equal(grid.affine, place.affine)
        assert accepted < COUNT / 10  # the time, the name and the flags of the gzip header are under no checksum


def test_nifti_without_compression(tmp_path):
    """No checksum here, so pixels may change unseen; but nothing else than a SamkdError comes out."""
    path, rng = tmp_path / "scan.nii", random.Random(2)
    write_nifti(path, None, seed=0, classes=3)
    whole = path.read_bytes()
    head = whole[:352]
    for _ in range(COUNT):
        path.write_bytes(mutated(head, rng) + whole[352:] if rng.random() < 0.8 else mutated(whole, rng))
        volume = read_or_refuse(lambda: read_source(Source("x", (path,))))
        assert volume is None or np.isfinite(volume.array).all()


def test_png(tmp_path):
    scan, label = tmp_path / "scan.png", tmp_path / "label.png"
    write_picture(scan, label, seed=0, classes=3, mode="P")
    for path, read in ((scan, lambda s: read_source(s, channels=3).array), (label, lambda s: read_mask(s)[0])):
        whole, rng = path.read_bytes(), random.Random(3)
        first = read(Source("x", (path,)))
        for _ in range(COUNT):
            path.write_bytes(mutated(whole, rng))
            result = read_or_refuse(lambda: read(Source("x", (path,))))  # noqa: B023
            if result is not None:
                np.testing.assert_array_equal(result, first)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_pictures_without_a_checksum(tmp_path, suffix):
    path, rng = tmp_path / f"scan{suffix}", random.Random(4)
    write_picture(path, None, seed=0, classes=3)
    whole = path.read_bytes()
    for _ in range(COUNT):
        path.write_bytes(mutated(whole, rng))
        volume = read_or_refuse(lambda: read_source(Source("x", (path,)), channels=3))
        assert volume is None or volume.array.shape[:2] == (3, 1)


@pytest.mark.parametrize("name", ["decathlon", "nnunet", "amos"])
def test_dataset_json(tmp_path, name):
    getattr(dataset_layouts, name)(tmp_path, training=1, test=1)
    path, rng = tmp_path / "dataset.json", random.Random(5)
    whole = path.read_bytes()
    for _ in range(COUNT):
        path.write_bytes(mutated(whole, rng))
        dataset = read_or_refuse(lambda: read_dataset(tmp_path))
        if dataset is not None:
            assert list(dataset.labels) == list(range(len(dataset.labels))) and dataset.channels
            for case in (*dataset.training, *dataset.test):
                assert all(file.is_file() and tmp_path in file.parents for file in case.image.files)


@pytest.mark.parametrize("name", ["decathlon", "nnunet", "amos"])
def test_values_of_dataset_json(tmp_path, name):
    """Valid JSON of the wrong kind, anywhere in it."""
    getattr(dataset_layouts, name)(tmp_path, training=1, test=1)
    path, rng = tmp_path / "dataset.json", random.Random(6)
    whole = json.loads(path.read_text())
    strange = (None, True, -1, 1e300, "", "..", "\0", "a" * 5000, [], {}, [[]], {"0": None}, {"image": {}}, [1, None])
    for _ in range(COUNT):
        content = json.loads(json.dumps(whole))
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(list(keys))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.4:
                place[key] = rng.choice(strange)
                break
            place = place[key]
        path.write_text(json.dumps(content))
        read_or_refuse(lambda: read_dataset(tmp_path))
