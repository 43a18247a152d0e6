"""The whole way of a scan: every orientation, written back and read with plain nibabel."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from samkd.errors import BadInputError
from samkd.volumes import Plan
from samkd.volumes.io.nifti import read_scan, write_labels
from samkd.volumes.pipeline import segment

ORIENTATIONS = [
    np.array(list(zip(order, signs, strict=True)))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
KEEP = Plan(intensity=({"rule": "window", "low": 0, "high": 4},), patch=(4, 8, 8))


def body() -> tuple[np.ndarray, np.ndarray]:
    """Labels 0..4 without any symmetry, [i, j, k], and an oblique 0.7 x 0.9 x 2.5 mm affine, nearest to RAS."""
    labels = np.zeros((13, 11, 6), np.int16)
    labels[2:9, 3:9, 1:5] = 1
    labels[3:5, 4:6, 2:4] = 2
    labels[7:9, 3:5, 1:2] = 3
    labels[12, 10, 5] = 4
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (-31.5, 12.25, 140.0)
    return labels, affine


def saved(path, ornt, form) -> nib.Nifti1Image:
    labels, affine = body()
    data = apply_orientation(labels, ornt)
    affine = affine @ inv_ornt_aff(ornt, labels.shape)
    image = nib.Nifti1Image(data, None)
    image.set_sform(affine if form != "qform" else None, code=int(form != "qform"))
    image.set_qform(affine if form != "sform" else None, code=int(form != "sform"))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return nib.Nifti1Image.from_filename(path)


def one_hot(patches):
    values = np.round(patches[:, 0] * 4)
    return np.stack([values == k for k in range(5)], axis=1).astype(np.float32)


def dice(a, b) -> float:
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("form", ["sform", "qform", "both"])
@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join("-+"[int(s > 0)] + "ijk"[int(a)] for a, s in o))
def test_all_48_orientations_come_back_exactly(tmp_path, ornt, form):
    source = saved(tmp_path / "scan.nii.gz", ornt, form)
    volume = read_scan(tmp_path / "scan.nii.gz")
    seen = []

    def infer(patches):
        seen.append(patches[0, 0])
        return one_hot(patches)

    whole = Plan(intensity=KEEP.intensity, patch=(6, 11, 13))
    segment(volume, whole, infer, num_classes=5)
    # The network sees one and the same picture, whichever way the file was stored: d to S, h to P, w to L.
    np.testing.assert_array_equal(np.round(seen[0] * 4), body()[0].transpose(2, 1, 0)[:, ::-1, ::-1])

    found = segment(volume, KEEP, one_hot, num_classes=5, batch=2)
    write_labels(tmp_path / "mask.nii.gz", found, volume.geometry, like=tmp_path / "scan.nii.gz")
    mask = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    truth, result = np.asarray(source.dataobj), np.asarray(mask.dataobj)
    assert all(dice(truth == k, result == k) == 1.0 for k in range(1, 5))
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert mask.header["sform_code"] == source.header["sform_code"]
    assert mask.header["qform_code"] == source.header["qform_code"]


@pytest.mark.parametrize("ornt", ORIENTATIONS[::5], ids=str)
def test_an_isotropic_plan_keeps_the_place_of_an_organ(tmp_path, ornt):
    source = saved(tmp_path / "scan.nii.gz", ornt, "both")
    plan = Plan(spacing=(1, 1, 1), intensity=({"rule": "window", "low": 0, "high": 1},), patch=(8, 8, 8))
    volume = read_scan(tmp_path / "scan.nii.gz")
    found = segment(volume, plan, lambda x: np.concatenate([1 - x, x], axis=1), num_classes=2)
    write_labels(tmp_path / "mask.nii.gz", found, volume.geometry, like=tmp_path / "scan.nii.gz")
    mask = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    centroids = []
    for image in (source, mask):
        inside = np.asarray(image.dataobj) > 0
        centroids.append(np.asarray(image.affine)[:3] @ (*np.argwhere(inside).mean(axis=0), 1))
    assert np.linalg.norm(centroids[0] - centroids[1]) < 0.7 / 2
    assert dice(np.asarray(source.dataobj) > 0, np.asarray(mask.dataobj) > 0) > 0.8


def test_a_grid_smaller_than_the_patch(tmp_path):
    saved(tmp_path / "scan.nii.gz", ORIENTATIONS[0], "both")
    volume = read_scan(tmp_path / "scan.nii.gz")
    plan = Plan(intensity=KEEP.intensity, patch=(16, 16, 16))
    np.testing.assert_array_equal(segment(volume, plan, one_hot, num_classes=5), volume.array[0])


def test_a_blank_scan_is_refused(tmp_path):
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4))
    image.to_filename(tmp_path / "blank.nii")
    plan = Plan(intensity=({"rule": "zscore"},), patch=(8, 8, 8))
    with pytest.raises(BadInputError, match="blank"):
        segment(read_scan(tmp_path / "blank.nii"), plan, one_hot, num_classes=5)
