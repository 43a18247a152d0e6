"""Series read from DICOM: values and place against what was written, and against SimpleITK's own reader."""

import subprocess
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers.dicom_series import TO_RAS, edit, rotation, values, write_multiframe, write_series
from helpers.paths import SHARED
from pydicom import uid

from samkd.errors import BadInputError
from samkd.volumes.geometry import Geometry, reorient
from samkd.volumes.io.dicom.series import find_series, read_series
from samkd.volumes.io.nifti import read_labels
from samkd.volumes.io.scans import sources

REAL = SHARED / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real scans of shared/data are not here")
SYNTAXES = [
    *(uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLosslessSV1),
    *(uid.JPEGLSLossless, uid.JPEG2000Lossless),
]


def itk(files) -> tuple[np.ndarray, Geometry]:
    """Values [D, H, W] and grid of slices in order, by SimpleITK, which has a DICOM reader of its own."""
    slices = [sitk.ReadImage(str(file), sitk.sitkFloat64) for file in files]
    assert all(image.GetSize()[2] == 1 for image in slices)
    first, last = slices[0], slices[-1]
    step = np.subtract(last.GetOrigin(), first.GetOrigin()) / (len(slices) - 1)
    direction = np.array(first.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3] = np.stack([step, *(direction[:, a] * first.GetSpacing()[a] for a in (1, 0)), first.GetOrigin()], 1)
    affine[:3] = TO_RAS @ affine[:3]
    array = np.concatenate([sitk.GetArrayFromImage(image) for image in slices])
    return array, Geometry(affine, array.shape)


def assert_same(volume, array, geometry) -> None:
    aligned = geometry.aligned(volume.geometry)
    assert aligned.same_grid(volume.geometry, tolerance_mm=1e-6)
    np.testing.assert_array_equal(volume.array[0], reorient(array, geometry, aligned).astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_oblique_series_in_any_order_lies_where_it_was_written(tmp_path, seed):
    stored, axes = values(seed), rotation(seed)
    files = write_series(tmp_path / "ct", stored, axes=axes)
    (tmp_path / "ct" / "notes.txt").write_text("no scan")
    volume = read_series(tmp_path / "ct")
    assert volume.array.dtype == np.float32 and volume.array.shape == (1, *stored.shape)
    np.testing.assert_array_equal(volume.array[0], stored - 1024.0)
    for index in ((0, 0, 0), (5, 8, 6), (2, 3, 4)):
        d, h, w = index
        place = TO_RAS @ (np.array([-31, 12.5, 400]) + d * 2.5 * axes[2] + h * 0.8 * axes[1] + w * 0.7 * axes[0])
        np.testing.assert_allclose((volume.geometry.affine @ [*index, 1])[:3], place, atol=1e-6)
    np.testing.assert_allclose(volume.geometry.spacing, (2.5, 0.8, 0.7), atol=1e-9)
    assert_same(volume, *itk(files))


def test_slices_run_along_their_normal_whatever_the_table_did(tmp_path):
    files = write_series(tmp_path, values(), axes=np.diag([1.0, 1.0, -1.0]))
    volume = read_series(tmp_path)
    assert volume.geometry.axis_codes == "SPL"
    np.testing.assert_array_equal(volume.array[0], values()[::-1] - 1024.0)
    assert_same(volume, *itk(files))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_transfer_syntaxes(tmp_path, syntax):
    stored = values(shape=(3, 40, 36)).astype(np.uint16)
    files = write_series(tmp_path, stored, syntax=syntax)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_series(tmp_path).array[0], stored - 1024.0)


def test_each_slice_has_its_own_rescale_and_unused_bits_do_not_count(tmp_path):
    def change(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, -index
        dataset.BitsStored, dataset.HighBit = 12, 11
        overlaid = values()[index].astype(np.uint16) | 0xF000
        dataset.PixelData = overlaid.tobytes()

    write_series(tmp_path, values().astype(np.uint16), modality="PT", change=change)
    slope = np.arange(6)[:, None, None]
    np.testing.assert_array_equal(read_series(tmp_path).array[0], values() * (0.5 + slope) - slope)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 4095), (np.int16, -1)])
def test_monochrome1_is_inverted(tmp_path, dtype, top):
    def change(dataset, index):
        dataset.PhotometricInterpretation, dataset.BitsStored, dataset.HighBit = "MONOCHROME1", 12, 11

    write_series(tmp_path, values().astype(dtype), modality="MR", change=change)
    np.testing.assert_array_equal(read_series(tmp_path).array[0], top - values().astype(np.float32))
    for file in tmp_path.iterdir():
        edit(file, Modality="CT")
    with pytest.raises(BadInputError, match="CT in MONOCHROME1"):
        read_series(tmp_path)


def test_multiframe(tmp_path):
    path = write_multiframe(tmp_path / "mr.dcm", values(), order=[3, 0, 5, 1, 4, 2], slopes=[1, 2, 3, 4, 5, 6])
    for source in (path, tmp_path):
        volume = read_series(source)
        np.testing.assert_array_equal(volume.array[0], values() * np.arange(1, 7)[:, None, None])
        expected = [[0, 0, -0.6, -5], [0, -0.5, 0, -6], [2, 0, 0, 0], [0, 0, 0, 1]]
        np.testing.assert_allclose(volume.geometry.affine, expected, atol=1e-9)


def test_one_slice_has_its_thickness(tmp_path):
    (path,) = write_series(tmp_path, values()[:1])
    assert read_series(path).geometry.spacing == pytest.approx((2.5, 0.8, 0.7))
    edit(path, SliceThickness=None)
    with pytest.raises(BadInputError, match="SliceThickness"):
        read_series(path)


def test_nested_series_are_named_by_folders_alone(tmp_path):
    write_series(tmp_path / "scans" / "one", values())
    write_series(tmp_path / "scans" / "two" / "parts", values(1))
    for file in write_series(tmp_path / "scans" / "two" / "parts" / "more", values(2)):
        file.rename(tmp_path / "scans" / "two" / "parts" / f"b{file.name}")
    result = find_series(tmp_path)
    assert {name: len(files) for name, files in result.items()} == {"one": 6, "parts-1": 6, "parts-2": 6}
    assert [source.mask_name for source in sources(tmp_path)] == ["one.nii.gz", "parts-1.nii.gz", "parts-2.nii.gz"]
    np.testing.assert_array_equal(read_series(result["parts-2"]).array[0], values(2) - 1024.0)
    with pytest.raises(BadInputError, match=r"found 2 \(parts-1, 6 files; parts-2, 6 files\)"):
        read_series(tmp_path / "scans" / "two")


def test_series_behind_links_are_read_and_named_by_the_links(tmp_path):
    write_series(tmp_path / "store" / "1.2.3", values())
    (tmp_path / "scans").mkdir()
    for name in ("before", "after"):  # two links to one folder are one series
        (tmp_path / "scans" / name).symlink_to(tmp_path / "store" / "1.2.3")
    (tmp_path / "scans" / "again").symlink_to(tmp_path / "scans")
    assert {name: len(files) for name, files in find_series(tmp_path / "scans").items()} == {"after": 6}
    assert [source.mask_name for source in sources(tmp_path / "scans")] == ["after.nii.gz"]
    np.testing.assert_array_equal(read_series(tmp_path / "scans").array[0], values() - 1024.0)


def test_a_slice_that_is_a_link_to_nowhere_is_said(tmp_path):
    last = sorted(write_series(tmp_path, values()))[-1]
    last.unlink()
    last.symlink_to("elsewhere")
    with pytest.raises(BadInputError, match="is a link that leads nowhere"):
        find_series(tmp_path)


def test_blank_uids_are_tolerated_and_what_is_no_slice_is_passed_over(tmp_path):
    files = write_series(tmp_path, values())
    report, scout, shot = tmp_path / "report", tmp_path / "scout", tmp_path / "shot"
    for path in (report, scout, shot):
        path.write_bytes(files[0].read_bytes())
    edit(report, SOPClassUID=uid.XRayRadiationDoseSRStorage)
    edit(scout, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dataset = pydicom.dcmread(shot)
    dataset.SOPClassUID = uid.SecondaryCaptureImageStorage
    del dataset.ImagePositionPatient
    dataset.save_as(shot)
    for file in files:
        edit(file, SOPClassUID="", SOPInstanceUID="", SeriesInstanceUID="", StudyInstanceUID="")
    (tmp_path / "NODICOM").write_bytes(bytes(200))
    assert list(find_series(tmp_path).values()) == [tuple(sorted(files))]
    np.testing.assert_array_equal(read_series(tmp_path).array[0], values() - 1024.0)
    for path in (report, scout, shot):
        with pytest.raises(BadInputError, match=f"{path.name}: is no slice"):
            read_series(path)


def test_without_pydicom_the_install_command_is_named_and_other_formats_work(tmp_path):
    write_series(tmp_path / "ct", values())
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from samkd.volumes.io.scans import Source, sources, read_source\n"
        "from pathlib import Path\n"
        "from samkd.errors import MissingExtraError\n"
        "for call in (lambda: sources('ct'), lambda: read_source(Source('x', (Path('ct/003.dcm'),)))):\n"
        "    try: call()\n"
        "    except MissingExtraError as error: print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.count("pip install 'samkd[dicom]'") == 2 and done.stdout.startswith("5 "), done.stderr


@needs_real
def test_real_ct_in_jpeg2000_equals_an_independent_reader():
    folder = REAL / "dicom" / "ct-abdomen"
    volume = read_series(folder)
    files = sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path, stop_before_pixels=True).InstanceNumber)
    assert_same(volume, *itk(files))
    assert volume.array.shape == (1, 20, 512, 512) and volume.geometry.axis_codes == "SPL"
    assert (volume.array.min(), volume.array.max()) == (-1024, 1839)
    _, organs = read_labels(REAL / "dicom" / "ct-abdomen-organs.nii.gz")
    assert organs.aligned(volume.geometry).same_grid(volume.geometry, tolerance_mm=1e-3)


@needs_real
def test_real_mr_series_equal_an_independent_reader():
    result = find_series(REAL / "dicom" / "mr-hippocampus")
    assert {name: len(files) for name, files in result.items()} == {"study1": 32, "study2": 35, "study3": 40}
    for files in result.values():
        ordered = sorted(files, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
        assert_same(read_series(files), *itk(ordered))
