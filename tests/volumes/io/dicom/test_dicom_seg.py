"""DICOM-SEG written by samkd, read back by highdicom: the same voxels, of the same slices."""

import subprocess
import sys

import highdicom
import numpy as np
import pydicom
import pytest
from helpers.dicom_series import TO_RAS, edit, rotation, values, write_multiframe, write_series
from helpers.paths import SHARED
from pydicom.uid import generate_uid

from samkd.errors import BadInputError, UsageError
from samkd.volumes.datasets.phantom.generate import LABELS
from samkd.volumes.geometry import Geometry, reorient
from samkd.volumes.io.dicom.organ_codes import organ
from samkd.volumes.io.dicom.seg import KINDS, check_source, write_seg
from samkd.volumes.io.dicom.series import read_series
from samkd.volumes.io.nifti import read_labels

REAL = SHARED / "data" / "dicom"
NAMES = {0: "background", 1: "liver", 2: "left kidney", 3: "widget"}


def labels(shape=(6, 9, 7), classes=3) -> np.ndarray:
    return np.random.default_rng(9).integers(0, classes, shape).astype(np.uint8)


def read_back(path) -> tuple[np.ndarray, Geometry]:
    """Labels [D, H, W] and their grid by the geometry that the DICOM-SEG itself states."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    affine = np.array(volume.affine, np.float64)
    affine[:3] = TO_RAS @ affine[:3]
    array = np.asarray(volume.array)
    return array, Geometry(affine, array.shape)


def assert_same_voxels(path, mask, geometry) -> None:
    array, grid = read_back(path)
    aligned = grid.aligned(geometry)
    assert aligned.same_grid(geometry, tolerance_mm=1e-3)
    np.testing.assert_array_equal(reorient(array, grid, aligned), mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_lands_on_the_slices_it_came_from(tmp_path, kind, seed):
    files = write_series(tmp_path / "ct", values(), axes=rotation(seed))
    geometry = read_series(files).geometry
    mask = labels()
    mask[2] = 0
    out = tmp_path / "mask.dcm"
    write_seg(out, mask, geometry, sorted(files), names=NAMES, kind=kind)
    assert_same_voxels(out, mask, geometry)
    seg = highdicom.seg.segread(out)
    assert seg.SegmentationType == kind.upper() and list(seg.segment_numbers) == [1, 2, 3]
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    assert seg.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == headers[0].StudyInstanceUID
    assert seg.SeriesInstanceUID != headers[0].SeriesInstanceUID
    uids = [header.SOPInstanceUID for header in headers]
    result = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(result, mask)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "mask.dcm"]


@pytest.mark.parametrize("kind", KINDS)
def test_multiframe_source(tmp_path, kind):
    source = write_multiframe(tmp_path / "mr.dcm", values(), order=[3, 0, 5, 1, 4, 2])
    geometry = read_series(source).geometry
    write_seg(tmp_path / "mask.dcm", labels(), geometry, [source], names=NAMES, kind=kind)
    assert_same_voxels(tmp_path / "mask.dcm", labels(), geometry)
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    result = seg.get_pixels_by_source_frame(
        pydicom.dcmread(source).SOPInstanceUID, [4, 2], combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(result, labels()[[1, 0]])


def test_a_mask_without_any_organ_is_written(tmp_path):
    files = write_series(tmp_path / "ct", values())
    geometry = read_series(files).geometry
    for kind in KINDS:
        write_seg(tmp_path / "mask.dcm", np.zeros((6, 9, 7), np.uint8), geometry, files, names=NAMES, kind=kind)
        assert not read_back(tmp_path / "mask.dcm")[0].any()


def test_segments_have_organ_codes(tmp_path):
    files = write_series(tmp_path / "ct", values())
    write_seg(tmp_path / "mask.dcm", labels(), read_series(files).geometry, files, names=NAMES)
    liver, kidney, widget = highdicom.seg.segread(tmp_path / "mask.dcm").SegmentSequence
    assert [segment.SegmentLabel for segment in (liver, kidney, widget)] == ["liver", "left kidney", "widget"]
    codes = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in (liver, kidney, widget)]
    assert [code.CodeValue for code in codes] == ["10200004", "64033007", "85756007"]
    assert codes[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert {code.CodingSchemeDesignator for code in codes} == {"SCT"}
    assert liver.SegmentAlgorithmType == "AUTOMATIC" and liver.SegmentAlgorithmName == "samkd"


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("spleen", "78961009", None),
        ("right_kidney", "64033007", "Right"),
        ("kidney_left", "64033007", "Left"),
        ("adrenal_gland_right", "23451007", "Right"),
        ("left adrenal gland", "23451007", "Left"),
        ("postcava", "64131007", None),
        ("inferior vena cava", "64131007", None),
        ("arota", "15825003", None),
        ("Anterior", "5366008", "Anterior"),
        ("portal and splenic vein", "85756007", None),
        ("prostate or uterus", "85756007", None),
        ("left", "85756007", None),
        ("", "85756007", None),
    ],
)
def test_codes_of_class_names(name, code, side):
    result = organ(name)
    assert result.type.value == code and (result.side.meaning if result.side else None) == side


def test_the_classes_of_the_built_in_datasets_have_codes():
    from samkd.volumes.datasets.layouts import amos, btcv

    combined = {"background", "portal and splenic vein", "prostate or uterus"}
    known = [*LABELS.values(), *_names(btcv), *_names(amos)]
    assert len(known) > 30
    assert {name for name in known if organ(name).type.meaning == "Tissue"} == combined


def _names(module) -> list[str]:
    tables = [value for value in vars(module).values() if isinstance(value, tuple) and "spleen" in value]
    assert tables
    return [name for table in tables for name in table]


def test_sources_that_cannot_be_referred_to_are_refused_before_any_work(tmp_path):
    files = write_series(tmp_path / "ct", values())
    geometry = read_series(files).geometry
    check_source(files)
    with pytest.raises(BadInputError, match="are not on the grid"):
        write_seg(tmp_path / "mask.dcm", labels((5, 9, 7)), geometry, files, names=NAMES)
    with pytest.raises(BadInputError, match="labels from 0 to 2"):
        write_seg(tmp_path / "mask.dcm", labels(), geometry, files, names={0: "background", 1: "liver"})
    with pytest.raises(UsageError, match="choose binary or labelmap"):
        check_source(files, kind="fractional")
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"Write NIfTI \(\.nii\.gz\)"):
        check_source([tmp_path / "scan.nii.gz"])
    edit(files[0], SOPInstanceUID=pydicom.dcmread(files[1]).SOPInstanceUID)
    with pytest.raises(BadInputError, match="one SOPInstanceUID"):
        check_source(files)
    edit(files[0], SOPInstanceUID="", FrameOfReferenceUID="")
    for call in (
        lambda: check_source(files),
        lambda: write_seg(tmp_path / "mask.dcm", labels(), geometry, files, names=NAMES),
    ):
        with pytest.raises(BadInputError, match=r"SOPInstanceUID, FrameOfReferenceUID are blank.*Write NIfTI"):
            call()
    assert [path.name for path in tmp_path.glob("mask*")] == []


def test_without_highdicom_the_install_command_is_named(tmp_path):
    write_series(tmp_path / "ct", values())
    code = (
        "import sys; sys.modules['highdicom'] = None\n"
        "from pathlib import Path\n"
        "from samkd.volumes.io.dicom.seg import check_source\n"
        "try: check_source(sorted(Path('ct').iterdir()))\n"
        "except ValueError as error: print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.startswith("5 ") and "pip install 'samkd[dicom]'" in done.stdout, done.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans of shared/data are not here")
@pytest.mark.parametrize("kind", KINDS)
def test_real_organs_come_back_on_the_same_voxels(tmp_path, kind):
    study, series = generate_uid(), generate_uid()
    with pytest.raises(BadInputError, match="SeriesInstanceUID, StudyInstanceUID are blank"):
        check_source(sorted((REAL / "ct-abdomen").iterdir()))
    files = []
    for path in sorted((REAL / "ct-abdomen").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        files.append(tmp_path / path.name)
        dataset.save_as(files[-1])
    geometry = read_series(files).geometry
    mask, grid = read_labels(REAL / "ct-abdomen-organs.nii.gz")
    mask = reorient(mask, grid, geometry)
    present = np.unique(mask)
    assert len(present) > 20
    few = np.searchsorted(present, mask).astype(np.uint8)
    names = {number: f"organ {value}" for number, value in enumerate(present.tolist())}
    write_seg(tmp_path / "organs.dcm", few, geometry, files, names=names, kind=kind)
    assert_same_voxels(tmp_path / "organs.dcm", few, geometry)


def test_sources_without_the_preamble_are_referred_to(tmp_path):
    files = write_series(tmp_path / "ct", values())
    for path in files[:3]:
        dataset = pydicom.dcmread(path)
        dataset.preamble = None
        del dataset.file_meta
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    volume = read_series(tmp_path / "ct")
    mask = labels()
    write_seg(tmp_path / "mask.dcm", mask, volume.geometry, files, names=NAMES)
    assert_same_voxels(tmp_path / "mask.dcm", mask, volume.geometry)
