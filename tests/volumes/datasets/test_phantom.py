import json
from pathlib import Path

import numpy as np
import pytest

from samkd.errors import OutputError, UsageError
from samkd.volumes.datasets.phantom import generate as phantom
from samkd.volumes.datasets.phantom.generate import LABELS, make_case, write_phantom
from samkd.volumes.datasets.registry import read_case, read_dataset
from samkd.volumes.datasets.survey import check_dataset
from samkd.volumes.geometry import reorient

ORGANS = range(1, 7)


@pytest.fixture(scope="module")
def cases():
    """Twelve seeds to fit on and eight to score on."""
    return [make_case(seed) for seed in range(20)]


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def centre_mm(volume, mask, label):
    index = np.argwhere(mask == label).mean(0)
    return volume.geometry.affine[:3, :3] @ index + volume.geometry.affine[:3, 3]


def test_a_seed_is_a_patient():
    (one, mask), (again, mask_again), (other, _) = make_case(3), make_case(3), make_case(5)
    np.testing.assert_array_equal(one.array, again.array)
    np.testing.assert_array_equal(mask, mask_again)
    np.testing.assert_array_equal(one.geometry.affine, again.geometry.affine)
    assert one.array.dtype == np.float32 and mask.dtype == np.uint8
    assert not np.allclose(one.geometry.affine, other.geometry.affine)
    with pytest.raises(UsageError, match="-1"):
        make_case(-1)


def test_orientation_is_only_the_way_a_patient_is_stored():
    (upright, mask), (stored, stored_mask) = make_case(3, orientation="SPL"), make_case(3, orientation="RIP")
    assert stored.geometry.axis_codes == "RIP"
    np.testing.assert_array_equal(reorient(stored.array, stored.geometry, upright.geometry), upright.array)
    np.testing.assert_array_equal(reorient(stored_mask, stored.geometry, upright.geometry), mask)


def test_another_shape_shows_the_same_patient():
    coarse, coarse_mask = make_case(4, orientation="SPL")
    fine, fine_mask = make_case(4, orientation="SPL", shape=(50, 120, 150))
    assert fine.array.shape == (1, 50, 120, 150)
    for label in ORGANS:
        volumes = [
            np.count_nonzero(mask == label) * np.prod(volume.geometry.spacing)
            for volume, mask in ((coarse, coarse_mask), (fine, fine_mask))
        ]
        if min(volumes) > 0:
            assert volumes[0] == pytest.approx(volumes[1], rel=0.15), LABELS[label]
            centres = centre_mm(coarse, coarse_mask, label) - centre_mm(fine, fine_mask, label)
            assert np.linalg.norm(centres) < 6, LABELS[label]


def test_grids_are_those_of_a_coarse_abdominal_ct(cases):
    codes = {volume.geometry.axis_codes for volume, _ in cases}
    assert len(codes) >= 3
    oblique = 0
    for volume, _ in cases:
        upright = volume.geometry.oriented("SPL")
        thickness, row, column = upright.spacing
        assert 4 <= thickness <= 6.5 and 3.4 <= row <= 4.6 and row == pytest.approx(column)
        assert 36 <= upright.shape[0] <= 44 and 72 <= upright.shape[1] <= 88 and 88 <= upright.shape[2] <= 104
        cosines = upright.affine[:3, :3] / upright.spacing
        oblique += np.abs(cosines).max(0).min() < 0.9999
        assert np.degrees(np.arccos(np.abs(cosines).max(0).min())) < 16
    assert 5 <= oblique < 20


def test_organs_have_the_hounsfield_units_of_an_enhanced_ct(cases):
    expected = {1: (25, 95), 2: (15, 85), 3: (95, 185), 4: (95, 185), 5: (-15, 40), 6: (110, 250)}
    for volume, mask in cases:
        np.testing.assert_array_equal(volume.array, np.rint(volume.array))
        assert volume.array.min() >= -1024 and volume.array.max() > 250
        for label, (low, high) in expected.items():
            if np.any(mask == label):
                assert low < np.median(volume.array[0][mask == label]) < high, LABELS[label]
        assert 0.15 < np.mean((volume.array > -160) & (volume.array < 250)) < 0.75


def test_left_and_right_are_the_patients(cases):
    for volume, mask in cases:
        centre = {label: centre_mm(volume, mask, label) for label in ORGANS if np.any(mask == label)}
        assert centre[1][0] > centre[6][0] > centre[2][0], "liver right, aorta between, spleen left"
        for left, right in ((3, 6), (6, 4), (6, 5)):
            if left in centre and right in centre:
                assert centre[left][0] < centre[right][0], (LABELS[left], LABELS[right])
        spine = volume.geometry.affine[:3, :3] @ np.argwhere(volume.array[0] > 250).mean(0)
        assert spine[1] + volume.geometry.affine[1, 3] < centre[6][1], "the aorta runs in front of the spine"
        assert all(centre[1][2] > centre[kidney][2] for kidney in {3, 4} & set(centre)), "the liver lies above them"


def test_most_patients_have_every_organ_and_some_do_not():
    shape = (24, 50, 60)  # coarse, for speed: the patients are the same
    counts = np.array([np.bincount(make_case(s, shape=shape)[1].ravel(), minlength=7) for s in range(60)])
    present = (counts > 0).mean(0)
    assert (counts > 0).all(1).mean() >= 0.65
    assert present[[1, 2, 6]].min() == 1
    assert 0.7 <= present[5] < 1, "the gallbladder of about one in seven was removed"
    assert 0.88 <= present[[3, 4]].mean() < 1, "a few have one kidney"
    assert min(counts[counts[:, label] > 0, label].min() for label in ORGANS) >= 15, "an organ is no speck"


def test_intensity_alone_does_not_find_the_organs(cases):
    edges = np.arange(-200, 401, 5)
    scores = []
    for label in ORGANS:
        inside = sum(np.histogram(v.array[0][m == label], edges)[0] for v, m in cases[:12])
        everywhere = sum(np.histogram(v.array, edges)[0] for v, _ in cases[:12])
        size = sum(np.count_nonzero(m == label) for _, m in cases[:12])
        hits, result = (np.concatenate([[0], np.cumsum(counts)]) for counts in (inside, everywhere))
        table = np.triu(2 * (hits[None] - hits[:, None]) / (result[None] - result[:, None] + size))
        low, high = np.unravel_index(table.argmax(), table.shape)
        for volume, mask in cases[12:]:
            if np.any(mask == label):
                chosen = (volume.array[0] >= edges[low]) & (volume.array[0] < edges[high])
                scores.append(dice(chosen, mask == label))
    assert 0.1 < np.mean(scores) < 0.5


def test_position_alone_does_not_find_the_organs(cases):
    """The majority vote of all other patients, their bodies' bounding boxes laid on one another."""
    boxes = np.stack([in_body_box(*case) for case in cases])
    votes = np.stack([(boxes == label).sum(0) for label in range(7)])
    scores = []
    for box in boxes:
        atlas = (votes - np.stack([box == label for label in range(7)])).argmax(0)
        scores += [dice(atlas == label, box == label) for label in ORGANS if np.any(box == label)]
    assert 0.2 < np.mean(scores) < 0.7


def in_body_box(volume, mask):
    upright = volume.geometry.oriented("SPL")
    body = reorient(volume.array[0], volume.geometry, upright) > -300
    picks = []
    for axis, count in enumerate((40, 64, 80)):
        filled = np.flatnonzero(body.mean(tuple(a for a in range(3) if a != axis)) > 0.08)
        picks.append(np.linspace(filled[0], filled[-1], count).round().astype(int))
    return reorient(mask, volume.geometry, upright)[np.ix_(*picks)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", training=2, test=1, seed=7)


def test_the_dataset_reads_back(written):
    dataset = read_dataset(written)
    assert dataset.labels == LABELS and dataset.channels == ("CT",)
    assert len(dataset.training) == 2 and len(dataset.test) == 1 and dataset.test[0].label is not None
    assert [row["fault"] for row in check_dataset(dataset)] == [None] * 3
    patients = []
    for case in (*dataset.training, *dataset.test):
        volume, mask = read_case(case, dataset)
        assert mask is not None
        assert {1, 2, 6} <= set(np.unique(mask).tolist())
        assert volume.geometry.axis_codes in phantom._ORIENTATIONS
        patients.append(volume.geometry.affine[:3, 3])
    assert len(np.unique(np.round(patients, 3), axis=0)) == 3, "no patient is in both halves"
    assert not list(written.parent.glob("*.tmp-*"))


def test_the_same_phantom_is_kept_and_anything_else_refused(written, tmp_path):
    scan = next(written.glob("imagesTr/*.nii.gz"))
    before = scan.stat().st_mtime_ns
    assert write_phantom(written, training=2, test=1, seed=7) == written
    assert scan.stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="something else"):
        write_phantom(written, training=3, test=1, seed=7)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(OutputError, match="mine"):
        write_phantom(tmp_path / "mine", training=1, test=1, seed=0)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_every_organ_of_a_scan_as_a_case_of_its_own(written, tmp_path):
    root = write_phantom(tmp_path / "apart", training=2, test=1, seed=7, organs_apart=True)
    together, apart = read_dataset(written), read_dataset(root)
    assert apart.labels == {0: "background", 1: "organ"}
    for whole, parts in ((together.training, apart.training), (together.test, apart.test)):
        result = {case.name: case for case in parts}
        for case in whole:
            volume, mask = read_case(case, together)
            assert mask is not None
            for organ in np.unique(mask)[1:]:
                part = result.pop(f"{case.name}_{organ}")
                scan, one = read_case(part, apart)
                assert np.array_equal(scan.array, volume.array) and scan.geometry.same_grid(volume.geometry)
                assert np.array_equal(one == 1, mask == organ)
        assert not result
    with pytest.raises(OutputError, match="something else"):
        write_phantom(root, training=2, test=1, seed=7)


def test_two_processes_may_make_the_same_phantom_at_once(tmp_path, monkeypatch):
    root, write_cases = tmp_path / "phantom", phantom._write_cases

    def overtaken(draft, made):
        write_cases(draft, made)
        write_cases(root, made)

    monkeypatch.setattr(phantom, "_write_cases", overtaken)
    assert write_phantom(root, training=1, test=1, seed=3) == root
    assert len(read_dataset(root).training) == 1
    assert not list(tmp_path.glob("*.tmp-*"))


def test_more_training_cases_leave_the_test_cases_as_they_are(written, tmp_path):
    other = write_phantom(tmp_path / "other", training=1, test=1, seed=7)
    name = "phantom_test_000.nii.gz"
    for folder in ("imagesTs", "labelsTs"):
        assert (other / folder / name).read_bytes() == (written / folder / name).read_bytes()
    assert json.loads((other / "dataset.json").read_text())["phantom"]["training"] == 1


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def full_disk(path, volume):
        raise OutputError(f"{path}: no space")

    monkeypatch.setattr(phantom, "write_scan", full_disk)
    with pytest.raises(OutputError, match="no space"):
        write_phantom(tmp_path / "phantom", training=1, test=1, seed=0)
    assert list(tmp_path.iterdir()) == []
