"""Scans in formats that are not read: refused with a way out that works, counted, and never written."""

import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from samkd.errors import BadInputError, UsageError
from samkd.volumes.io.nifti import read_scan
from samkd.volumes.io.scans import find_scans, mask_paths

AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
VOXELS = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
OUTPUTS = ("m.nrrd", "m.seg.nrrd", "m.nhdr", "m.mha", "m.mhd", "m.hdr", "m.img", "m.mgz", "m.npy", "m.npz", "m.zip")


def scan(folder):
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def written(folder, suffix):
    """The scan of `scan`, as a library writes it in another format."""
    path = folder / f"scan{suffix}"
    if suffix in (".hdr", ".img"):
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), path)
    elif suffix == ".mgz":
        nib.save(nib.MGHImage.from_image(nib.Nifti1Image(VOXELS, AFFINE)), path)
    else:
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.ReadImage(str(scan(folder))), str(path))
        (folder / "scan.nii.gz").unlink()
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".mgz"])
def test_the_way_out_gives_the_same_scan_when_it_is_followed(tmp_path, suffix):
    path = written(tmp_path, suffix)
    with pytest.raises(BadInputError, match="which is not read") as fault:
        find_scans([path])
    command = str(fault.value)[str(fault.value).index("python -c") :]
    program = shlex.split(command)
    subprocess.run([sys.executable, *program[1:]], cwd=tmp_path, check=True)
    volume = read_scan(tmp_path / "scan.nii.gz")
    expected = read_scan(scan(tmp_path))
    assert np.array_equal(volume.array, expected.array)
    assert np.allclose(volume.geometry.affine, expected.geometry.affine, atol=1e-5)


def test_analyze_is_refused_because_it_does_not_know_left_from_right(tmp_path):
    nib.save(nib.AnalyzeImage(VOXELS, AFFINE), tmp_path / "old.img")
    with pytest.raises(BadInputError, match="does not say which side"):
        find_scans([tmp_path / "old.hdr"])


def test_a_folder_that_holds_nothing_else_names_their_number_and_the_way_out(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    (tmp_path / "b.mha").write_bytes(b"ObjectType = Image\n")
    with pytest.raises(BadInputError, match=r"2 file\(s\) of formats that are not read.*a\.nrrd.*SimpleITK"):
        find_scans([tmp_path])


def test_beside_scans_they_are_counted_in_a_warning(tmp_path, log_lines):
    scan(tmp_path)
    (tmp_path / "scan.seg.nrrd").write_bytes(b"NRRD0004\n")
    (tmp_path / ".hidden.nrrd").write_bytes(b"NRRD0004\n")
    assert [each.name for each in find_scans([tmp_path])] == ["scan"]
    assert ["1 file(s) of formats that are not read" in line for line in log_lines] == [True]


def test_dicom_named_img_is_dicom(tmp_path):
    (tmp_path / "IM_0001.img").write_bytes(bytes(128) + b"DICM" + bytes(200))
    (source,) = find_scans([tmp_path / "IM_0001.img"])
    assert source.is_dicom


@pytest.mark.parametrize("name", [*OUTPUTS, *(name.upper() for name in OUTPUTS), "m.png", "m.jpg", "m.tif"])
def test_no_other_format_is_taken_for_a_folder_or_a_mask(tmp_path, name):
    scans = find_scans([scan(tmp_path)])
    with pytest.raises(UsageError, match=r"masks are written as \.nii\.gz"):
        mask_paths(scans, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_may_have_such_a_name_when_it_is_there(tmp_path):
    (tmp_path / "masks.img").mkdir()
    (mask,) = mask_paths(find_scans([scan(tmp_path)]), tmp_path / "masks.img")
    assert mask == tmp_path / "masks.img" / "scan.nii.gz"
    (mask,) = mask_paths(find_scans([scan(tmp_path)]), tmp_path / "masks.v2")
    assert mask == tmp_path / "masks.v2" / "scan.nii.gz"


@pytest.mark.parametrize("name", ["m.jpg", "m.tiff", "m.bmp"])
def test_the_mask_of_a_picture_is_no_lossy_picture(tmp_path, name):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "picture.png")
    with pytest.raises(UsageError, match="masks are written as"):
        mask_paths(find_scans([tmp_path / "picture.png"]), tmp_path / name)
    assert mask_paths(find_scans([tmp_path / "picture.png"]), tmp_path / "m.png") == [tmp_path / "m.png"]
