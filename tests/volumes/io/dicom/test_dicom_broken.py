"""Broken series are refused by name, and 300 mutated files neither crash nor hang nor change what is read unseen."""

import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pydicom
import pytest
from helpers.dicom_series import edit, rotation, values, write_multiframe, write_series
from helpers.fuzzing import COUNT, mutated, read_or_refuse
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    generate_uid,
)

from samkd.errors import BadInputError
from samkd.volumes.io.dicom import files as reader
from samkd.volumes.io.dicom.files import read_header
from samkd.volumes.io.dicom.series import read_series

pytestmark = pytest.mark.slow


def missing_slice(files):
    files[2].unlink()
    return files[1].name, "slices are missing"


def duplicate(files):
    copy = files[3].with_name("copy")
    copy.write_bytes(files[3].read_bytes())
    return copy.name, "two slices at one place"


def two_series_mixed(files):
    write_series(files[0].parent / "more", values(1))
    for number, path in enumerate((files[0].parent / "more").iterdir()):
        path.rename(files[0].parent / f"more{number}")
    return files[0].parent.name, r"found 2 \(series-1, 6 files; series-2, 6 files\)"


def tilted_gantry(files):
    for index, path in enumerate(files):
        edit(path, ImagePositionPatient=[-31, 12.5 + 0.25 * index, 400 + 2.5 * index])
    return files[0].parent.name, "5.7 degrees off their normal"


def changing_spacing(files):
    for index, path in enumerate(files):
        edit(path, ImagePositionPatient=[-31, 12.5, 400 + 2.5 * index + 0.6 * max(0, index - 3)])
    return files[3].name, "lie 3.1 mm apart, most slices of their series 2.5 mm.*their spacing changes"


def wrong_orientation(files):
    edit(files[4], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    return files[4].name, "another orientation than the others of its series, 90.0 degrees"


def slice_of_another_size(files):
    dataset = pydicom.dcmread(files[0])
    dataset.Rows, dataset.PixelData = 8, dataset.PixelData[: 8 * 7 * 2]
    dataset.save_as(files[0])
    return files[0].name, "8 x 7 pixels, the others of its series 9 x 7"


def truncated_file(files):
    files[1].write_bytes(files[1].read_bytes()[:-60])
    return files[1].name, "damaged"


def unknown_transfer_syntax(files):
    raw = files[5].read_bytes()
    files[5].write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"))
    return files[5].name, r"transfer syntax is 1\.2\.840\.10008\.1\.2\.7;"


def no_pixel_data(files):
    dataset = pydicom.dcmread(files[2])
    del dataset.PixelData
    dataset.save_as(files[2])
    return files[2].name, "no whole pixel data"


def another_pixel_size(files):
    edit(files[0], PixelSpacing=[0.8, 0.75])
    return files[0].name, "0.8 x 0.75 mm"


def no_position(files):
    edit(files[0], ImagePositionPatient=None)
    return files[0].name, "ImagePositionPatient"


def colours(files):
    edit(files[0], SamplesPerPixel=3, PhotometricInterpretation="RGB")
    return files[0].name, "holds RGB"


def shifted_aside(files):
    edit(files[3], ImagePositionPatient=[-30.5, 12.5, 407.5])
    return files[3].parent.name, "from its place in an even row"


@pytest.mark.parametrize(
    "damage",
    [
        *(missing_slice, duplicate, two_series_mixed, tilted_gantry, changing_spacing, wrong_orientation),
        *(slice_of_another_size, truncated_file, unknown_transfer_syntax, no_pixel_data),
        *(another_pixel_size, no_position, colours, shifted_aside),
    ],
    ids=lambda damage: damage.__name__,
)
def test_broken_series_are_refused_by_name(tmp_path, damage):
    files = write_series(tmp_path / "series", values())
    read_series(tmp_path / "series")
    name, message = damage(files)
    with pytest.raises(BadInputError, match=message) as caught:
        read_series(tmp_path / "series")
    assert caught.value.exit_code == 3 and name in str(caught.value)


def test_positions_rounded_by_the_scanner_are_no_fault(tmp_path):
    axes = rotation(5)

    def change(dataset, index):
        place = np.array([-31.0, 12.5, 400.0]) + index * 2.5 * axes[2]
        dataset.ImagePositionPatient = place.round(3).tolist()
        dataset.ImageOrientationPatient = axes[:2].ravel().round(6).tolist()

    write_series(tmp_path, values(), axes=axes, change=change)
    assert read_series(tmp_path).geometry.spacing == pytest.approx((2.5, 0.8, 0.7), abs=1e-3)


@pytest.mark.parametrize("changes", [{"NumberOfFrames": 7}, {"PerFrameFunctionalGroupsSequence": None}])
def test_multiframe_without_a_place_for_every_frame_is_refused(tmp_path, changes):
    path = write_multiframe(tmp_path / "mr.dcm", values(), order=list(range(6)))
    edit(path, **changes)
    with pytest.raises(BadInputError, match="frames lie"):
        read_series(path)


@pytest.mark.parametrize("kind", ["classic", "jpeg2000", "jpeg-lossless", "multiframe"])
def test_mutated_files(tmp_path, kind):
    """No checksum in DICOM, so pixels may change; but the grid is whole and only a SamkdError comes out."""
    stored = values(shape=(3, 40, 36))
    if kind == "multiframe":
        files = [write_multiframe(tmp_path / "mr.dcm", stored, order=[0, 1, 2])]
    else:
        syntax = {"jpeg2000": JPEG2000Lossless, "jpeg-lossless": JPEGLosslessSV1}.get(kind, ExplicitVRLittleEndian)
        files = write_series(tmp_path, stored.astype(np.uint16), syntax=syntax)
    whole, rng, refused = files[0].read_bytes(), random.Random(7), 0
    header = whole[: whole.rindex(b"\xe0\x7f\x10\x00")]
    for number in range(COUNT):
        tail = whole[len(header) :] if number % 2 else b""
        damaged = mutated(header if tail else whole, rng, least=200) + tail
        files[0].write_bytes(damaged)
        volume = read_or_refuse(lambda: read_series(tmp_path))
        if volume is None:
            refused += 1
        else:
            assert np.isfinite(volume.array).all() and np.isfinite(volume.geometry.affine).all()
            assert volume.array.size < 10 * stored.size
    assert refused > COUNT / 10


def test_nothing_of_a_header_is_printed(tmp_path):
    """Not even where pydicom warns and repeats the value that it stumbles over."""
    files = write_series(tmp_path / "ct", values())
    edit(files[0], PatientName="Planted^Person" * 20, StudyDate="PLANTED1", PatientAge="PLANTED2")
    raw = files[1].read_bytes()
    files[1].write_bytes(raw.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00PN"))
    edit(files[2], SeriesInstanceUID=generate_uid(), StudyID="PLANTED" * 9)
    code = (
        "from samkd.volumes.io.dicom.series import read_series\n"
        "try: read_series('ct')\n"
        "except ValueError as e: print(e)"
    )
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "expected one DICOM series, found 2" in done.stdout and done.stderr == ""
    files[2].unlink()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert files[1].name in done.stdout and done.stderr == "" and "lanted" not in done.stdout.lower()


@pytest.mark.parametrize("mark", [True, False])
def test_what_deflates_a_gigabyte_to_a_megabyte_is_refused_before_it_unpacks(tmp_path, monkeypatch, mark):
    monkeypatch.setattr(reader, "_MOST_INFLATED", 1 << 20)
    plain = write_series(tmp_path / "plain", values())
    packed = write_series(tmp_path / "packed", values(), syntax=DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read_series(packed).array, read_series(plain).array)
    (bomb,) = write_series(
        tmp_path / "bomb", np.zeros((1, 4096, 4096), np.int16), syntax=DeflatedExplicitVRLittleEndian
    )
    content = bomb.read_bytes()
    assert len(content) < 1 << 17
    bomb.write_bytes(content if mark else content[132:])
    tracemalloc.start()
    with pytest.raises(BadInputError, match="unpacks to more than 1 MB" if mark else "is no DICOM file"):
        read_header(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20  # of 32
