"""DICOM that is not what its shape says, and series that are more or less than one scan: read where it is unambiguous,
refused by name where a wrong mask would come out, and never passed over without a word.
"""

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.dicom_series import edit, values, write_multiframe, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder

from samkd.errors import BadInputError, MissingExtraError
from samkd.volumes.io.dicom import files as dicom_files
from samkd.volumes.io.dicom.series import find_series, read_series
from samkd.volumes.io.scans import sources

STORED = values().astype(np.uint16)


def change_all(paths, **changes) -> None:
    """Set elements of every file; None deletes one."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        for name, value in changes.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(path)


# What a value means


@pytest.mark.parametrize(
    ("modality", "lost", "message"),
    [
        ("CT", ("RescaleSlope", "RescaleIntercept"), "which a CT must have, but it has neither"),
        ("CT", ("RescaleIntercept",), "a CT must have, but it has only RescaleSlope"),
        ("PT", ("RescaleSlope", "RescaleIntercept"), "which a PET must have, but it has neither"),
    ],
)
def test_ct_and_pet_need_their_rescale(tmp_path, modality, lost, message):
    files = write_series(tmp_path, STORED)
    change_all(files, Modality=modality, SOPClassUID=uid.SecondaryCaptureImageStorage)
    read_series(tmp_path)
    change_all(files, **dict.fromkeys(lost))
    with pytest.raises(BadInputError, match=rf"\.dcm: expected RescaleSlope and RescaleIntercept, {message}|{message}"):
        read_series(tmp_path)


def test_the_class_of_the_object_tells_a_ct_without_a_modality(tmp_path):
    files = write_series(tmp_path, STORED)
    change_all(files, Modality="", RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(BadInputError, match="which a CT must have"):
        read_series(tmp_path)


def test_blank_rescale_of_a_ct_is_none(tmp_path):
    files = write_series(tmp_path, STORED)
    edit(files[2], RescaleIntercept=None)
    with pytest.raises(BadInputError, match=f"{files[2].name}: "):
        read_series(tmp_path)


def test_mr_without_rescale_is_as_stored_but_not_half_a_series(tmp_path):
    files = write_series(tmp_path, STORED, modality="MR")
    np.testing.assert_array_equal(read_series(tmp_path).array[0], STORED)
    edit(files[4], RescaleSlope=2, RescaleIntercept=0)
    with pytest.raises(BadInputError, match=f"{files[4].name}: this slice has a RescaleSlope .*unlike the others"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RescaleType": "Z_EFF"}, "RescaleType is not HU"),
        ({"BitsStored": 8, "HighBit": 7}, "a CT of 8 bits, a picture of some grey-value window"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "CT in MONOCHROME1"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "holds PALETTE COLOR; expected grey"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "holds RGB; expected grey"),
        ({"PhotometricInterpretation": None}, "of an unknown kind; expected grey"),
        ({"PixelSpacing": None}, "0 numbers as PixelSpacing"),
        ({"ImageOrientationPatient": None}, "0 numbers as ImageOrientationPatient"),
        ({"ImagePositionPatient": None}, "0 numbers as ImagePositionPatient"),
        ({"ImagePositionPatient": None, "SliceLocation": 3.0}, "0 numbers as ImagePositionPatient"),
    ],
)
def test_values_and_places_that_cannot_be_known_are_refused(tmp_path, changes, message):
    change_all(write_series(tmp_path, STORED), **{"SliceLocation": 0, **changes})
    with pytest.raises(BadInputError, match=message):
        read_series(tmp_path)


@pytest.mark.parametrize("units", ["CNTS", "PROPCPS", "PCNT"])
def test_pet_in_counts_is_refused_and_in_bq_or_suv_read(tmp_path, units):
    files = write_series(tmp_path, STORED)
    for known in ("BQML", "GML"):
        change_all(files, Modality="PT", SOPClassUID=uid.PositronEmissionTomographyImageStorage, Units=known)
        np.testing.assert_array_equal(read_series(tmp_path).array[0], STORED - 1024.0)
    change_all(files, Units=units)
    with pytest.raises(BadInputError, match="a PET whose Units are not BQML, GML or CM2ML"):
        read_series(tmp_path)


# What the image is


@pytest.mark.parametrize("image_type", [["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "MOSAIC"])
def test_slices_tiled_into_one_image_are_refused(tmp_path, image_type):
    (path,) = write_series(tmp_path, values(shape=(1, 60, 56)), modality="MR")
    edit(path, ImageType=image_type)
    with pytest.raises(BadInputError, match=r"several slices tiled into one image.*dcm2niix"):
        read_series(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_mosaic_whose_image_type_was_lost_is_known_by_its_count(tmp_path, syntax):
    def change(dataset, index):
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 41)

    write_series(tmp_path, values(shape=(1, 60, 56)), modality="MR", syntax=syntax, change=change)
    with pytest.raises(BadInputError, match="tiled into one image"):
        read_series(tmp_path)


def test_frames_of_a_multiframe_object_are_no_tiles(tmp_path):
    path = write_multiframe(tmp_path / "mr.dcm", values(), order=list(range(6)))
    edit(path, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC", "NONE"])
    np.testing.assert_array_equal(read_series(path).array[0], values())


@pytest.mark.parametrize(
    "image_type",
    [
        ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SCOUT"],
        ["DERIVED", "SECONDARY", "MIP"],
        ["DERIVED", "SECONDARY", "REFORMATTED", "MIN IP"],
        ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"],
        ["DERIVED", "SECONDARY", "AXIAL", "CSA MIP"],
        ["DERIVED", "SECONDARY", "VOLUME RENDERING"],
    ],
)
def test_scouts_and_projections_are_no_slices(tmp_path, log_lines, image_type):
    files = write_series(tmp_path, STORED)
    (extra,) = write_series(tmp_path / "more", STORED[:1])
    edit(extra, ImageType=image_type, SeriesInstanceUID=pydicom.dcmread(files[0]).SeriesInstanceUID)
    np.testing.assert_array_equal(read_series(tmp_path).array[0], STORED - 1024.0)
    assert "passed over 1 file(s) that are DICOM but no slices of a scan (a " in "\n".join(log_lines)
    with pytest.raises(BadInputError, match="is no slice of a scan but a"):
        read_series(extra)


@pytest.mark.parametrize("image_type", [["DERIVED", "SECONDARY", "MPR"], ["DERIVED", "PRIMARY", "RESAMPLED"]])
def test_reformatted_slices_are_a_scan(tmp_path, image_type):
    change_all(write_series(tmp_path, STORED), ImageType=image_type)
    np.testing.assert_array_equal(read_series(tmp_path).array[0], STORED - 1024.0)


def test_a_folder_of_screenshots_is_counted_aloud(tmp_path, log_lines):
    files = write_series(tmp_path, STORED)
    change_all(files, SOPClassUID=uid.SecondaryCaptureImageStorage, ImagePositionPatient=None)
    with pytest.raises(BadInputError, match="no scan here"):
        sources(tmp_path)
    assert "passed over 6 file(s) that are DICOM but no slices of a scan (Secondary Capture" in "\n".join(log_lines)


# One scan in several series


def own_uid(dataset: Dataset, index: int) -> None:
    dataset.SeriesInstanceUID, dataset.SeriesNumber = f"1.2.392.200036.9116.{index + 1}", 2


def own_frame(dataset: Dataset, index: int) -> None:
    own_uid(dataset, index)
    dataset.FrameOfReferenceUID = f"1.2.3.{index + 1}"


def no_frame_and_no_number(dataset: Dataset, index: int) -> None:
    own_uid(dataset, index)
    del dataset.FrameOfReferenceUID, dataset.SeriesNumber


def last_two(dataset: Dataset, index: int) -> None:
    if index >= 4:
        own_uid(dataset, index)
    dataset.SeriesNumber = 2


def halves(dataset: Dataset, index: int) -> None:
    dataset.SeriesInstanceUID, dataset.SeriesNumber = f"1.2.3.{1 + index % 2}", 2


@pytest.mark.parametrize("change", [own_uid, own_frame, no_frame_and_no_number, last_two, halves])
def test_a_scan_taken_apart_into_series_is_refused(tmp_path, change):
    write_series(tmp_path / "ct", STORED, change=change)
    with pytest.raises(BadInputError, match=r"6 files, .*slices in a row.* but in [2-6] series \(SeriesInstanceUID\)"):
        sources(tmp_path)


def test_a_scan_taken_apart_is_refused_though_one_slice_is_missing(tmp_path):
    write_series(tmp_path, STORED, change=own_uid)[2].unlink()
    with pytest.raises(BadInputError, match=r"5 files, .*but in 5 series"):
        find_series(tmp_path)


def test_a_scan_taken_apart_is_refused_in_folders_of_their_own(tmp_path):
    for index, path in enumerate(write_series(tmp_path / "all", STORED, change=own_uid)):
        (tmp_path / str(index)).mkdir()
        path.rename(tmp_path / str(index) / "image")
    with pytest.raises(BadInputError, match="but in 6 series"):
        find_series(tmp_path)


def test_series_that_are_scans_of_their_own_stay_so(tmp_path):
    """Two phases at the same places, and single slices of several patients."""

    def change(dataset, index):
        dataset.SeriesNumber, dataset.FrameOfReferenceUID = 2, "1.2.3"

    for name in ("a", "b"):
        write_series(tmp_path / name, STORED, change=change)
    assert set(find_series(tmp_path)) == {"a", "b"}
    for number, z in enumerate((0.0, 11.0, 31.0)):
        (path,) = write_series(tmp_path / "patients" / str(number), STORED[:1], origin=(0, 0, z))
        edit(path, SeriesNumber=3)
        path.rename(tmp_path / "patients" / f"{number}.dcm")
    assert len(find_series(tmp_path / "patients")) == 3


# Files without the preamble


def strip(path: Path, *, implicit: bool = True, little: bool = True, meta: bool = False) -> None:
    """Save a file as old exports do: without preamble and mark, and mostly without the file meta group."""
    dataset = pydicom.dcmread(path)
    dataset.preamble = None
    if not little:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    if meta:
        pydicom.dcmwrite(path, dataset, enforce_file_format=False)
        return
    del dataset.file_meta
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize(
    "kind", [{}, {"implicit": False}, {"implicit": False, "little": False}, {"meta": True}], ids=str
)
def test_files_without_the_preamble_are_read(tmp_path, kind, first):
    files = write_series(tmp_path / "ct", STORED)
    for path in files[first:]:
        strip(path, **kind)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_series(tmp_path).array[0], STORED - 1024.0)
    assert [len(source.files) for source in sources(tmp_path)] == [6]


def test_compressed_pixels_without_a_transfer_syntax_are_refused(tmp_path):
    files = write_series(tmp_path, values(shape=(3, 40, 36)).astype(np.uint16), syntax=uid.JPEG2000Lossless)
    raw = files[1].read_bytes()
    files[1].write_bytes(raw[raw.index(b"\x08\x00\x08\x00CS") :])
    with pytest.raises(BadInputError, match=f"{files[1].name}: its transfer syntax is missing"):
        read_series(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x08\x00" * 500, b"\x08\x00\x05\x00" + bytes(400), b"some notes\n" * 50])
def test_files_that_stay_unread_are_counted_aloud(tmp_path, log_lines, content):
    write_series(tmp_path / "ct", STORED)
    for number in range(3):
        (tmp_path / "ct" / f"IM{number}").write_bytes(content)
    (tmp_path / "ct" / "._000.dcm").write_bytes(content)  # macOS
    (tmp_path / "ct" / ".DS_Store").write_bytes(content)
    (tmp_path / "elsewhere").write_bytes(content)
    np.testing.assert_array_equal(read_series(tmp_path).array[0], STORED - 1024.0)
    assert "passed over 3 file(s) that are no DICOM that can be read, for example ct/IM0" in "\n".join(log_lines)


def test_a_folder_of_nothing_that_can_be_read_says_how_many_files_it_holds(tmp_path, log_lines):
    for number in range(4):
        (tmp_path / f"IM{number}").write_bytes(bytes(200))
    with pytest.raises(BadInputError, match="no scan here"):
        sources(tmp_path)
    assert "passed over 4 file(s)" in "\n".join(log_lines)


def test_the_count_reaches_whoever_calls_from_the_command_line(tmp_path):
    write_series(tmp_path / "ct", STORED)
    (tmp_path / "ct" / "cut.dcm").write_bytes(bytes(100))
    code = "from samkd.volumes.io.scans import sources; print(len(sources('ct')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "1\n"
    assert done.stderr.startswith("warning: ct: passed over 1 file(s)") and done.stderr.count("\n") == 1


def test_a_folder_of_pictures_is_no_dicom_folder(tmp_path, log_lines):
    from PIL import Image

    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "README").write_text("pictures")
    assert len(sources(tmp_path)) == 1 and not "\n".join(log_lines)


# Decoders


@pytest.mark.parametrize(
    ("syntax", "plugin"),
    [
        (uid.JPEGLosslessSV1, "gdcm"),
        (uid.JPEGLSLossless, "pyjpegls"),
        (uid.JPEGLSNearLossless, "pyjpegls"),
        (uid.JPEG2000Lossless, "pylibjpeg"),
    ],
)
def test_the_packages_of_a_missing_decoder_are_named(tmp_path, monkeypatch, syntax, plugin):
    written = uid.JPEGLSLossless if syntax == uid.JPEGLSNearLossless else syntax
    files = write_series(tmp_path, values(shape=(3, 40, 36)).astype(np.uint16), syntax=written)
    for path in files:
        path.write_bytes(path.read_bytes().replace(written.encode(), syntax.encode()))
    decoder = get_decoder(syntax)
    monkeypatch.setattr(decoder, "_available", {k: v for k, v in decoder._available.items() if k != plugin})
    with pytest.raises(MissingExtraError) as caught:
        read_series(tmp_path)
    assert str(caught.value).endswith(f"without samkd: pip install {dicom_files.DECODERS[plugin]}")


def test_every_package_that_a_hint_names_is_in_the_extra_and_decodes():
    """What pip installs by a hint is what pydicom looks for."""
    root = Path(dicom_files.__file__).parents[3]
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dicom"]
    packages = dicom_files.INSTALL.partition("without samkd: pip install ")[2].split()
    assert packages == ["pydicom", *" ".join(dicom_files.DECODERS.values()).split()]
    assert set(packages) <= {requirement.partition(">")[0] for requirement in extra}
    pins = (root / "constraints.txt").read_text().splitlines()
    assert all(any(line.startswith(f"{name}==") for line in pins) and distribution(name) for name in packages)
