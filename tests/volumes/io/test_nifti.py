import errno
import gzip
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers.paths import SHARED

from samkd.errors import BadInputError, OutputError
from samkd.volumes import Geometry, Volume, files
from samkd.volumes.io import nifti
from samkd.volumes.io.nifti import read_labels, read_scan, write_for_display, write_labels, write_scan

REAL = SHARED / "data"
AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.9, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1.0]])
SHAPE = (4, 5, 6)  # i, j, k


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = AFFINE.copy()
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    return affine


def image(data=None, *, affine=AFFINE, sform=1, qform=1, kind=nib.Nifti1Image):
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if data is None else data
    made = kind(data, affine)
    made.set_sform(affine if sform else None, code=sform)
    made.set_qform(affine if qform else None, code=qform)
    made.header.set_xyzt_units("mm")
    return made


def patched(path: Path, **fields) -> Path:
    """Overwrite header fields of an uncompressed NIfTI-1 file, past all of nibabel's checks."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.structarr.tobytes()
    path.write_bytes(raw)
    return path


@pytest.fixture
def plain(tmp_path) -> Path:
    path = tmp_path / "scan.nii"
    image().to_filename(path)
    return path


@pytest.fixture
def packed(tmp_path) -> Path:
    path = tmp_path / "scan.nii.gz"
    noise = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    image(noise).to_filename(path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_scan_is_d_h_w_with_its_affine(tmp_path, kind, suffix):
    source = image(kind=kind)
    path = tmp_path / f"scan{suffix}"
    source.to_filename(path)
    volume = read_scan(path)
    assert volume.array.shape == (1, 6, 5, 4) and volume.array.dtype == np.float32
    assert volume.geometry.spacing == pytest.approx((2.5, 0.9, 0.7))
    assert volume.geometry.axis_codes == "SAL"
    data = np.asarray(source.dataobj)
    for i, j, k in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
        assert volume.array[0, k, j, i] == data[i, j, k]
        np.testing.assert_allclose(volume.geometry.affine @ (k, j, i, 1), AFFINE @ (i, j, k, 1), rtol=1e-6)


def test_slope_and_intercept_give_hu(tmp_path):
    made = image(np.array([0, 1000, 2000, 4000], np.uint16).reshape(4, 1, 1))
    made.header.set_slope_inter(0.5, -1024)
    made.to_filename(tmp_path / "a.nii")
    raw = np.fromfile(tmp_path / "a.nii", np.uint16)[-4:]
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii").array.ravel(), raw * np.float32(0.5) - 1024)


def test_big_endian(tmp_path):
    data = np.arange(120, dtype=">i2").reshape(SHAPE)
    nib.Nifti1Image(data, AFFINE, nib.Nifti1Header(endianness=">")).to_filename(tmp_path / "b.nii")
    np.testing.assert_array_equal(read_scan(tmp_path / "b.nii").array[0], data.T)


def test_trailing_axes_of_one_are_dropped(tmp_path):
    image(np.ones((*SHAPE, 1, 1), np.float32)).to_filename(tmp_path / "a.nii")
    assert read_scan(tmp_path / "a.nii").array.shape == (1, 6, 5, 4)


def test_channels_come_first(tmp_path):
    data = np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32)
    image(data).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii.gz", channels=3).array, data.transpose(3, 2, 1, 0))
    for channels in (1, 2):
        with pytest.raises(BadInputError, match=r"a\.nii\.gz: is 4-D"):
            read_scan(tmp_path / "a.nii.gz", channels=channels)
    with pytest.raises(BadInputError, match="4-D"):
        read_labels(tmp_path / "a.nii.gz")


def test_sform_wins_over_qform_of_another_code(tmp_path):
    made = image(sform=2)
    made.set_qform(turned(40), code=1)
    made.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "a.nii").geometry.affine[:, [2, 1, 0, 3]], AFFINE, rtol=1e-6)


def test_qform_alone_is_enough(tmp_path):
    image(affine=turned(20), sform=0).to_filename(tmp_path / "a.nii")
    result = read_scan(tmp_path / "a.nii").geometry.affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(result, turned(20), atol=1e-5)


def test_a_qfac_of_zero_means_one(plain):
    made = image(affine=np.diag([1.0, 1, 1, 1]), sform=0)
    made.to_filename(plain)
    pixdim = made.header["pixdim"].copy()
    pixdim[0] = 0
    assert read_scan(patched(plain, pixdim=pixdim)).geometry.axis_codes == "SAR"


def test_contradicting_forms_are_refused(tmp_path):
    made = image()
    made.set_qform(turned(20), code=1)
    made.to_filename(tmp_path / "a.nii")
    with pytest.raises(BadInputError, match="sform and its qform, both of code 1"):
        read_scan(tmp_path / "a.nii")
    made.set_qform(turned(1), code=1)  # less than half a voxel at every corner
    made.to_filename(tmp_path / "a.nii")
    read_scan(tmp_path / "a.nii")


def test_no_place_is_refused(tmp_path):
    image(sform=0, qform=0).to_filename(tmp_path / "a.nii")
    with pytest.raises(BadInputError, match="left and right are unknown"):
        read_scan(tmp_path / "a.nii")


def test_shear_is_refused(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = 0.5
    made = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    made.to_filename(tmp_path / "a.nii")
    with pytest.raises(BadInputError, match="sheared"):
        read_scan(tmp_path / "a.nii")


@pytest.mark.parametrize("degrees", [0.2, 13.0])
def test_the_command_named_for_a_sheared_scan_makes_one_that_is_read(tmp_path, degrees):
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.radians(degrees))
    data = np.full((20, 30, 12), -1000, np.int16)
    data[5:15, 10:20, 3:9] = 40
    nib.Nifti1Image(data, affine).to_filename(tmp_path / "IN.nii.gz")
    with pytest.raises(BadInputError, match=r"sheared.*order=0") as caught:
        read_scan(tmp_path / "IN.nii.gz")
    command = shlex.split(str(caught.value).partition("(a mask with order=0): ")[2])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, capture_output=True)
    volume = read_scan(tmp_path / "OUT.nii.gz")
    litres = np.prod(volume.geometry.spacing) * np.count_nonzero(volume.array > -480)
    assert litres == pytest.approx(10 * 10 * 6 * 2, rel=0.1) and volume.array.min() == -1000


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_impossible_spacing_is_refused(plain, axis, value):
    pixdim = nib.Nifti1Header(plain.read_bytes()[:348], check=False)["pixdim"].copy()
    pixdim[axis] = value
    with pytest.raises(BadInputError, match=r"scan\.nii: has the voxel spacing"):
        read_scan(patched(plain, pixdim=pixdim))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"srow_x": [0, 0, 0, 5], "qform_code": 0}, "singular"),
        ({"srow_x": [np.nan, 0, 0, 5]}, "singular"),
        ({"sform_code": 0, "quatern_b": 3.0}, "no rotation"),
        ({"dim": [3, 4, 5, 0, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [3, 4, -5, 6, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [9, 4, 5, 6, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [3, 4, 5, 7, 1, 1, 1, 1]}, "cut off"),
        ({"dim": [3, 4, 5, 5, 1, 1, 1, 1]}, "goes on after"),
        ({"datatype": 128}, "expected integers or floats"),
        ({"datatype": 32}, "expected integers or floats"),
        ({"datatype": 7777}, "data type 7777"),
        ({"vox_offset": 0}, "start at byte 0"),
        ({"vox_offset": np.nan}, "start at byte nan"),
        ({"scl_slope": 1.0, "scl_inter": np.inf}, "slope and intercept"),
        ({"xyzt_units": 3}, "expected mm"),
        ({"magic": b"ni1"}, "single-file"),
        ({"sizeof_hdr": 12}, "single-file"),
    ],
)
def test_broken_headers_are_refused(plain, fields, message):
    with pytest.raises(BadInputError, match=message) as caught:
        read_scan(patched(plain, **fields))
    assert str(plain) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("read", [read_scan, read_labels])
def test_values_that_are_not_finite_are_refused(tmp_path, value, read):
    data = np.zeros(SHAPE, np.float32)
    data[1, 2, 3] = value
    image(data).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(BadInputError, match="holds 1 voxels that are NaN"):
        read(tmp_path / "a.nii.gz")


def test_every_cut_of_a_compressed_file_is_refused(packed):
    whole = packed.read_bytes()
    for length in (0, 5, 100, 400, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 4, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(BadInputError):
            read_scan(packed)


@pytest.mark.parametrize("place", [-1, -5, -8, 2000])
def test_a_flipped_byte_in_a_compressed_file_is_refused(packed, place):
    whole = bytearray(packed.read_bytes())
    whole[place] ^= 0xFF
    packed.write_bytes(whole)
    with pytest.raises(BadInputError, match=r"is damaged|are damaged"):
        read_scan(packed)


def test_a_wrong_checksum_of_right_data_is_refused(tmp_path, plain):
    path = tmp_path / "a.nii.gz"
    whole = bytearray(gzip.compress(plain.read_bytes()))
    whole[-8] ^= 1
    path.write_bytes(whole)
    with pytest.raises(BadInputError, match="CRC"):
        read_scan(path)


def test_trailing_bytes_are_refused(packed, plain):
    packed.write_bytes(packed.read_bytes() + b"more")
    with pytest.raises(BadInputError):
        read_scan(packed)
    plain.write_bytes(plain.read_bytes() + b"x")
    with pytest.raises(BadInputError, match="goes on after"):
        read_scan(plain)


def test_a_bomb_is_left_unopened(tmp_path, plain, monkeypatch):
    whole = plain.read_bytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(whole + bytes(200_000_000), 1))
    taken = 0
    read = gzip.GzipFile.read

    def counted(self, size=-1):
        nonlocal taken
        data = read(self, size)
        taken += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(BadInputError, match="goes on after"):
        read_scan(path)
    assert taken == len(whole) + 1


def test_more_voxels_than_memory_are_refused_before_reading(plain):
    patched(plain, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    with pytest.raises(BadInputError, match="GB of memory are free"):
        read_scan(plain)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii.bz2", "scan.gz", "scan"])
def test_other_names_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 400)
    with pytest.raises(BadInputError, match=r"\*\.nii or \*\.nii\.gz"):
        read_scan(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path, packed, plain):
    with pytest.raises(BadInputError, match="No such file"):
        read_scan(tmp_path / "none.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(BadInputError, match="cannot be read"):
        read_scan(tmp_path / "folder.nii")
    shutil.copy(plain, packed)  # not compressed although its name says so
    with pytest.raises(BadInputError, match="damaged"):
        read_scan(packed)
    plain.write_bytes(b"DICM" * 200)
    with pytest.raises(BadInputError, match="not a single-file NIfTI"):
        read_scan(plain)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_labels_of_any_type_come_as_small_integers(tmp_path, dtype):
    data = np.zeros(SHAPE, dtype)
    data[1, 2, 3] = 117
    image(data).to_filename(tmp_path / "a.nii.gz")
    labels, geometry = read_labels(tmp_path / "a.nii.gz")
    assert labels.dtype == np.uint8 and labels[3, 2, 1] == 117 and labels.sum() == 117
    assert geometry.shape == (6, 5, 4)


@pytest.mark.parametrize("value, message", [(1.5, "such as 1.5"), (-1.0, "from -1 to 0"), (70000.0, "to 70000")])
def test_what_is_no_label_is_refused(tmp_path, value, message):
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, 0] = value
    image(data).to_filename(tmp_path / "a.nii")
    with pytest.raises(BadInputError, match=message):
        read_labels(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32])
@pytest.mark.parametrize("classes", [2, 7, 25])
def test_a_mask_that_nibabel_saved_with_a_slope_is_read(tmp_path, dtype, classes):
    """What get_fdata, the old header and save make of a mask: stored integers times a slope, plus an intercept."""
    labels = np.random.default_rng(0).integers(0, classes, SHAPE).astype(dtype)
    labels.flat[:2] = 0, classes - 1
    whole = image(labels)
    header = whole.header
    header.set_data_dtype(dtype)
    nib.Nifti1Image(whole.get_fdata(), AFFINE, header).to_filename(tmp_path / "m.nii.gz")
    stored: Any = nib.Nifti1Image.from_filename(tmp_path / "m.nii.gz").dataobj
    assert stored.slope != 1
    np.testing.assert_array_equal(read_labels(tmp_path / "m.nii.gz")[0], labels.transpose(2, 1, 0))


def test_floats_close_to_whole_numbers_are_these(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values[1:, 0, 0] = 1.0009, 2.9991, -0.0009
    image(values).to_filename(tmp_path / "m.nii")
    assert read_labels(tmp_path / "m.nii")[0][0, 0].tolist() == [0, 1, 3, 0]
    values[0, 0, 0] = 6.0021
    image(values).to_filename(tmp_path / "m.nii")
    with pytest.raises(BadInputError, match=r"holds 1 values that are not whole numbers, such as 6\.0021"):
        read_labels(tmp_path / "m.nii")


def test_a_slope_that_hides_what_the_labels_were_is_named(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[1, 0, 0] = 3
    path = tmp_path / "m.nii"
    image(values).to_filename(path)
    patched(path, scl_slope=0.35, scl_inter=0.0)
    with pytest.raises(BadInputError, match=r"such as 1\.05.*stored numbers times scl_slope 0\.35"):
        read_labels(path)
    patched(path, scl_slope=1 / 255, scl_inter=0.0)
    with pytest.raises(BadInputError, match=r"such as 0\.01176.*scl_slope 0\.0039"):
        read_labels(path)


@pytest.mark.parametrize("largest, dtype", [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_labels_round_trip(tmp_path, plain, largest, dtype):
    geometry = read_scan(plain).geometry
    labels = np.zeros(geometry.shape, np.int64)
    labels[1, 2, 3] = largest
    write_labels(tmp_path / "m.nii.gz", labels, geometry, like=plain)
    result, place = read_labels(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(result, labels)
    np.testing.assert_array_equal(place.affine, geometry.affine)
    written = nib.Nifti1Image.from_filename(tmp_path / "m.nii.gz")
    assert written.get_data_dtype() == dtype
    raw = nib.Nifti1Header(gzip.decompress((tmp_path / "m.nii.gz").read_bytes())[:348])
    assert (raw["scl_slope"], raw["scl_inter"]) == (1, 0)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("sform, qform", [(1, 0), (0, 1), (2, 1), (4, 3), (1, 1)])
def test_like_keeps_the_place_to_the_bit(tmp_path, kind, sform, qform):
    source = image(affine=turned(20), sform=sform, qform=qform, kind=kind)
    source.header["descrip"] = b"a patient's name"
    source.header.set_xyzt_units("mm", "sec")
    source.to_filename(tmp_path / "s.nii.gz")
    geometry = read_scan(tmp_path / "s.nii.gz").geometry
    write_labels(tmp_path / "m.nii.gz", np.ones(geometry.shape, bool), geometry, like=tmp_path / "s.nii.gz")
    a, b = (kind.from_filename(tmp_path / name).header for name in ("s.nii.gz", "m.nii.gz"))
    assert type(a) is type(b)
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        np.testing.assert_array_equal(a[field], b[field])
    for field in ("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):
        assert a[field] == b[field]
    np.testing.assert_array_equal(a["pixdim"][:4], b["pixdim"][:4])
    assert b["descrip"].item() == b"samkd"


def test_without_like_the_affine_is_exact_in_float32(tmp_path):
    geometry = Geometry(turned(15)[:, [2, 1, 0, 3]], (6, 5, 4))
    write_labels(tmp_path / "m.nii", np.zeros(geometry.shape, np.uint8), geometry, like=None)
    written = nib.Nifti1Image.from_filename(tmp_path / "m.nii")
    np.testing.assert_array_equal(np.float32(written.affine), turned(15).astype(np.float32))
    np.testing.assert_allclose(written.get_qform(), turned(15), atol=1e-4)
    assert read_labels(tmp_path / "m.nii")[1].same_grid(geometry)


def test_equal_labels_give_equal_bytes(tmp_path, plain, monkeypatch):
    geometry = read_scan(plain).geometry
    labels = np.ones(geometry.shape, np.uint8)
    write_labels(tmp_path / "a.nii.gz", labels, geometry, like=plain)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_labels(tmp_path / "b.nii.gz", labels.astype(np.int64), geometry, like=plain)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_labels_that_do_not_fit_are_refused(tmp_path, plain):
    geometry = read_scan(plain).geometry
    target = tmp_path / "m.nii.gz"
    with pytest.raises(BadInputError, match="do not fit"):
        write_labels(target, np.zeros((4, 5, 6), np.uint8), geometry, like=plain)
    with pytest.raises(BadInputError, match="from -1 to -1"):
        write_labels(target, np.full(geometry.shape, -1), geometry, like=plain)
    with pytest.raises(BadInputError, match="float32"):
        write_labels(target, np.zeros(geometry.shape, np.float32), geometry, like=plain)
    elsewhere = geometry.oriented("SPL")
    with pytest.raises(BadInputError, match="not on the grid"):
        write_labels(target, np.zeros(elsewhere.shape, np.uint8), elsewhere, like=plain)
    assert not target.exists()


def test_a_scan_round_trips(tmp_path):
    geometry = Geometry(turned(15)[:, [2, 1, 0, 3]], (6, 5, 4))
    for channels in (1, 2):
        array = np.random.default_rng(0).normal(size=(channels, 6, 5, 4)).astype(np.float32)
        write_scan(tmp_path / "s.nii.gz", Volume(array, geometry))
        result = read_scan(tmp_path / "s.nii.gz", channels=channels)
        np.testing.assert_array_equal(result.array, array)
        assert result.geometry.same_grid(geometry, tolerance_mm=1e-4)


def test_an_unwritable_folder_leaves_nothing(tmp_path, plain):
    geometry = read_scan(plain).geometry
    labels = np.zeros(geometry.shape, np.uint8)
    before = sorted(tmp_path.iterdir())
    for target in (plain / "m.nii.gz", tmp_path / "none" / "m.nii.gz"):
        with pytest.raises(OutputError, match=r"m\.nii\.gz: cannot be written"):
            write_labels(target, labels, geometry, like=plain)
    with pytest.raises(OutputError, match=r"\*\.nii"):
        write_labels(tmp_path / "m.mha", labels, geometry, like=plain)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_mask(tmp_path, plain, monkeypatch, moment, suffix):
    geometry = read_scan(plain).geometry
    target = tmp_path / f"m{suffix}"
    write_labels(target, np.ones(geometry.shape, np.uint8), geometry, like=plain)
    before, listing = target.read_bytes(), sorted(tmp_path.iterdir())

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(nifti.np, "ascontiguousarray", full)
    elif moment == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_labels(target, np.zeros(geometry.shape, np.uint8), geometry, like=plain)
    assert target.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == listing


def test_any_failure_in_the_block_removes_the_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with files.atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans of shared/data are not here")
@pytest.mark.parametrize("scan, mask", [("ct", "organs"), ("mr", "mr-organs")])
def test_real_scans(tmp_path, scan, mask):
    folder = REAL / "ct-abdomen"
    volume = read_scan(folder / f"{scan}.nii.gz")
    labels, geometry = read_labels(folder / f"{mask}.nii.gz")
    reference = nib.Nifti1Image.from_filename(folder / f"{scan}.nii.gz")
    np.testing.assert_allclose(volume.array[0], np.asarray(reference.dataobj).T, rtol=1e-6)
    assert geometry.same_grid(volume.geometry) and len(np.unique(labels)) > 20
    write_labels(tmp_path / "m.nii.gz", labels, geometry, like=folder / f"{scan}.nii.gz")
    written = nib.Nifti1Image.from_filename(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(written.affine, reference.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, labels)
    assert not written.header.extensions


@pytest.mark.parametrize(("values", "width"), [([-1024, 0, 3071], 2), ([0, 0.5, 1], 4), ([0, 40000, 1], 4)])
def test_a_scan_for_a_viewer_has_its_values_in_as_few_bytes_as_hold_them(tmp_path, values, width):
    volume = Volume(np.array(values, np.float32).reshape(1, 1, 1, 3), Geometry(np.diag([2.0, 1, 3, 1]), (1, 1, 3)))
    write_for_display(tmp_path / "scan.nii.gz", volume)
    assert len(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())) == 352 + 3 * width
    written = read_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(written.array, volume.array)
    np.testing.assert_allclose(written.geometry.affine, volume.geometry.affine)
