import json
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import SHARED

from samkd.errors import BadInputError
from samkd.volumes import Geometry, Volume
from samkd.volumes.datasets.registry import read_case, read_dataset, with_classes
from samkd.volumes.datasets.survey import check_dataset
from samkd.volumes.geometry import reorient
from samkd.volumes.io.nifti import write_labels, write_scan
from samkd.volumes.io.scans import Source

HIPPOCAMPUS = SHARED / "data" / "hippocampus"
GEOMETRY = Geometry(np.diag([2.0, 1.0, 1.0, 1.0]), (4, 5, 6))


@pytest.fixture
def root(tmp_path) -> Path:
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for part, names in (("Tr", ("a", "b", "c")), ("Ts", ("d", "e"))):
        for name in names:
            scan = Volume(rng.normal(size=(1, 4, 5, 6)).astype(np.float32), GEOMETRY)
            write_scan(tmp_path / f"images{part}" / f"{name}.nii.gz", scan)
            if name != "e":
                mask = rng.integers(0, 3, (4, 5, 6))
                write_labels(tmp_path / f"labels{part}" / f"{name}.nii.gz", mask, GEOMETRY, like=None)
    describe(tmp_path)
    return tmp_path


def describe(root: Path, **changes) -> None:
    content = {
        "name": "Toy",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "training": [pair(n) for n in "abc"],
        "test": ["./imagesTs/d.nii.gz", {"image": "imagesTs/e.nii.gz"}],
        **changes,
    }
    kept = {key: value for key, value in content.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(kept))


def pair(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def faults(root: Path, **changes) -> str:
    describe(root, **changes)
    with pytest.raises(BadInputError) as caught:
        read_dataset(root)
    assert str(root / "dataset.json") in str(caught.value)
    return str(caught.value)


def test_reads_the_decathlon_layout(root):
    dataset = read_dataset(root)
    assert dataset.name == "Toy" and dataset.channels == ("CT",)
    assert dataset.labels == {0: "background", 1: "liver", 2: "tumour"}
    assert [case.name for case in dataset.training] == ["a", "b", "c"]
    assert dataset.layout == "Medical Segmentation Decathlon"
    assert dataset.training[0].label == Source("a", (root / "labelsTr" / "a.nii.gz",))
    assert [(case.name, case.label) for case in dataset.test] == [
        ("d", Source("d", (root / "labelsTs" / "d.nii.gz",))),
        ("e", None),
    ]
    volume, mask = read_case(dataset.training[0], dataset)
    assert mask is not None and volume.array.shape[1:] == mask.shape == (4, 5, 6)
    assert read_case(dataset.test[1], dataset)[1] is None


def test_all_faults_come_at_once(root):
    message = faults(
        root,
        modality=None,
        labels={"0": "background", "2": "liver"},
        training=[pair("a"), pair("a"), pair("x"), {"image": "./imagesTr/b.nii.gz"}, "imagesTr/c.nii.gz"],
        test=["../outside.nii.gz", "/etc/passwd.nii", "./imagesTr/a.nii.gz", "imagesTs/d.mha", 7],
        numTraining=4,
    )
    for part in (
        '"modality" is null',
        "['0', '2']",
        "the case 'a' is listed twice",
        "training[2] image './imagesTr/x.nii.gz' does not exist",
        'training[3] is {"image": "./imagesTr/b.nii.gz"}',
        'training[4] is "imagesTr/c.nii.gz"',
        "test[0] image '../outside.nii.gz' leaves the dataset's folder",
        "test[1] image '/etc/passwd.nii' leaves",
        'test[3] image is "imagesTs/d.mha"',
        "test[4] is 7",
        '"training" lists 5 case(s) where numTraining announces 4',
    ):
        assert part in message


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"training": [], "test": []}, "lists no case"),
        ({"training": None}, '"training" is null'),
        ({"labels": {"background": 0}}, '"labels" has the numbers'),
        ({"labels": {"1": "liver"}}, '"labels" has the numbers'),
        ({"labels": {"0": "x", "1": "x"}}, "different, non-empty"),
        ({"labels": []}, '"labels" is []'),
        ({"test": {"image": "x"}}, "expected a list"),
    ],
)
def test_content_is_checked(root, changes, part):
    assert part in faults(root, **changes)


def test_a_link_to_a_training_scan_is_no_test_case(root):
    (root / "imagesTs" / "z.nii.gz").symlink_to(root / "imagesTr" / "a.nii.gz")
    assert f"z.nii.gz is the same file as {root / 'imagesTr' / 'a.nii.gz'}" in faults(root, test=["imagesTs/z.nii.gz"])


def test_the_same_name_in_another_folder_is_the_same_case(root):
    (root / "imagesTs" / "a.nii.gz").write_bytes(b"other")
    assert "the case 'a' is listed twice" in faults(root, test=["imagesTs/a.nii.gz"])


def test_a_missing_or_broken_json_is_refused(root):
    (root / "dataset.json").write_text("{")
    with pytest.raises(BadInputError, match="not valid JSON"):
        read_dataset(root)
    (root / "dataset.json").write_text("[]")
    with pytest.raises(BadInputError, match="holds a list"):
        read_dataset(root)
    (root / "dataset.json").unlink()
    with pytest.raises(BadInputError, match="is no dataset"):
        read_dataset(root)


def test_a_mask_on_another_grid_is_refused(root):
    dataset = read_dataset(root)
    path = root / "labelsTr" / "a.nii.gz"
    write_labels(path, np.zeros((4, 5, 7), np.uint8), Geometry(GEOMETRY.affine, (4, 5, 7)), like=None)
    with pytest.raises(BadInputError, match=r"a\.nii\.gz: has the shape \(4, 5, 7\)"):
        read_case(dataset.training[0], dataset)
    moved = GEOMETRY.affine.copy()
    moved[0, 3] = 0.5
    write_labels(path, np.zeros((4, 5, 6), np.uint8), Geometry(moved, (4, 5, 6)), like=None)
    with pytest.raises(BadInputError, match=r"up to 0\.5 mm away"):
        read_case(dataset.training[0], dataset)


def test_a_mask_elsewhere_is_put_on_its_scan_only_when_asked(root):
    dataset = read_dataset(root)
    case = dataset.training[0]
    volume, mask = read_case(case, dataset)
    assert mask is not None and case.label is not None
    moved = volume.geometry.affine.copy()
    moved[0, 3] += 5
    write_labels(case.label.files[0], mask, Geometry(moved, volume.geometry.shape), like=None)
    with pytest.raises(BadInputError, match=r"lies up to 5 mm away .* samkd convert --fix-affine"):
        read_case(case, dataset)
    _, result = read_case(case, dataset, fix_affine=True)
    np.testing.assert_array_equal(result, mask)
    write_labels(case.label.files[0], mask[:-1], Geometry(moved, mask[:-1].shape), like=None)
    with pytest.raises(BadInputError, match="has the shape"):
        read_case(case, dataset, fix_affine=True)


def test_undeclared_labels_are_named(root):
    dataset = read_dataset(root)
    mask = np.zeros((4, 5, 6), np.uint16)
    mask[0, 0, :2] = 7, 300
    write_labels(root / "labelsTr" / "a.nii.gz", mask, GEOMETRY, like=None)
    with pytest.raises(BadInputError, match=r"labels \[7, 300\]; the dataset declares \[0, 1, 2\]"):
        read_case(dataset.training[0], dataset)


def test_several_modalities_are_channels(root):
    rng = np.random.default_rng(0)
    for name in "abc":
        scan = Volume(rng.normal(size=(2, 4, 5, 6)).astype(np.float32), GEOMETRY)
        write_scan(root / "imagesTr" / f"{name}.nii.gz", scan)
    describe(root, modality={"1": "T2", "0": "T1"}, test=None)
    dataset = read_dataset(root)
    assert dataset.channels == ("T1", "T2") and dataset.test == ()
    assert read_case(dataset.training[0], dataset)[0].array.shape == (2, 4, 5, 6)


def test_check_goes_on_after_a_fault(root):
    dataset = read_dataset(root)
    (root / "imagesTr" / "a.nii.gz").write_bytes(b"broken")
    write_labels(root / "labelsTr" / "a.nii.gz", np.full((4, 5, 6), 9), GEOMETRY, like=None)
    seen = []
    rows = check_dataset(dataset, on_case=lambda row: seen.append(row["name"]))
    assert seen == [row["name"] for row in rows] == ["a", "b", "c", "d", "e"]
    assert "damaged" in rows[0]["fault"] and "labels [9]" in rows[0]["fault"]
    assert rows[0]["shape"] is None and rows[0]["label_voxels"] is None
    good = rows[1]
    assert good["fault"] is None and good["split"] == "training" and rows[3]["split"] == "test"
    assert good["shape"] == [4, 5, 6] and good["spacing"] == [2.0, 1.0, 1.0]
    volume, mask = read_case(dataset.training[1], dataset)
    assert mask is not None
    assert good["axis_codes"] == volume.geometry.axis_codes
    assert good["intensity"]["CT"]["p50"] == pytest.approx(np.median(volume.array))
    assert good["label_voxels"] == {
        "background": (mask == 0).sum(),
        "liver": (mask == 1).sum(),
        "tumour": (mask == 2).sum(),
    }
    assert rows[4]["label_voxels"] is None and rows[4]["fault"] is None
    json.dumps(rows)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real scans of shared/data are not here")
def test_all_220_real_cases_are_sound():
    dataset = read_dataset(HIPPOCAMPUS)
    assert (len(dataset.training), len(dataset.test)) == (180, 40)
    assert all(case.label is not None for case in dataset.test)
    rows = check_dataset(dataset)
    assert [row["fault"] for row in rows if row["fault"]] == []
    assert all(row["spacing"] == [1.0, 1.0, 1.0] and row["label_voxels"]["Anterior"] > 0 for row in rows)


def test_chosen_classes_are_merged_renamed_and_the_others_background(root):
    describe(root, labels={"0": "background", "1": "liver", "2": "tumour", "3": "vessel"})
    dataset = read_dataset(root)
    case = dataset.training[0]
    _, before = read_case(case, dataset)
    assert before is not None and set(np.unique(before)) == {0, 1, 2}
    one = with_classes(dataset, {"lesion": ["tumour"], "organ": ["vessel", "liver"]})
    assert one.labels == {0: "background", 1: "lesion", 2: "organ"}
    _, after = read_case(case, one)
    np.testing.assert_array_equal(after, np.array([0, 2, 1, 2])[before])
    assert after is not None and after.dtype == before.dtype
    with pytest.raises(
        BadInputError, match=r"has no class kidney; twice: liver\. Its classes are liver, tumour, vessel"
    ):
        with_classes(dataset, {"a": ["liver", "kidney"], "b": ["liver"]})


def test_a_label_beyond_the_declared_ones_is_refused_with_chosen_classes_too(root):
    describe(root, labels={"0": "background", "1": "liver"})
    with pytest.raises(BadInputError, match=r"holds the labels \[2\]"):
        dataset = with_classes(read_dataset(root), {"organ": ["liver"]})
        read_case(dataset.training[0], dataset)


@pytest.mark.parametrize("fix_affine", [False, True])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR", "IPL"])
def test_a_mask_in_another_voxel_order_is_read_in_the_scans(root, codes, fix_affine):
    """nib.as_closest_canonical and ITK store the same places in another order; only its header tells."""
    dataset = read_dataset(root)
    case = dataset.training[0]
    volume, mask = read_case(case, dataset)
    assert mask is not None and case.label is not None
    turned = volume.geometry.oriented(codes)
    write_labels(case.label.files[0], reorient(mask, volume.geometry, turned), turned, like=None)
    _, read = read_case(case, dataset, fix_affine=fix_affine)
    np.testing.assert_array_equal(read, mask)
    assert check_dataset(dataset)[0]["fault"] is None


def test_an_oblique_mask_in_another_voxel_order_is_read_too(root):
    dataset = read_dataset(root)
    case = dataset.training[0]
    angle = np.radians(40)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = Geometry(turn @ GEOMETRY.affine, GEOMETRY.shape)
    volume, mask = read_case(case, dataset)
    assert mask is not None and case.label is not None
    write_scan(case.image.files[0], Volume(volume.array, oblique))
    turned = oblique.oriented("PIR")
    write_labels(case.label.files[0], reorient(mask, oblique, turned), turned, like=None)
    np.testing.assert_array_equal(read_case(case, dataset)[1], mask)


def test_fix_affine_never_mirrors_a_mask(root):
    """A mask elsewhere whose axes run otherwise: which voxel is which nobody knows."""
    dataset = read_dataset(root)
    case = dataset.training[0]
    volume, mask = read_case(case, dataset)
    assert mask is not None and case.label is not None
    codes = volume.geometry.axis_codes
    other = "".join({"L": "R", "R": "L", "A": "P", "P": "A"}.get(code, code) for code in codes)
    turned = volume.geometry.oriented(other)
    moved = turned.affine.copy()
    moved[0, 3] += 7
    write_labels(case.label.files[0], reorient(mask, volume.geometry, turned), Geometry(moved, turned.shape), like=None)
    for fix_affine in (False, True):
        with pytest.raises(
            BadInputError, match=rf"towards {other}, .* {codes}, so --fix-affine would mirror"
        ) as caught:
            read_case(case, dataset, fix_affine=fix_affine)
        assert "if its header is wrong" not in str(caught.value)


def test_a_mask_turned_by_a_few_degrees_is_not_on_its_scan(root):
    dataset = read_dataset(root)
    case = dataset.training[0]
    volume, mask = read_case(case, dataset)
    assert mask is not None and case.label is not None
    angle = np.radians(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    write_labels(case.label.files[0], mask, Geometry(turn @ volume.geometry.affine, mask.shape), like=None)
    with pytest.raises(BadInputError, match=r"mm away .* samkd convert --fix-affine"):
        read_case(case, dataset)
    np.testing.assert_array_equal(read_case(case, dataset, fix_affine=True)[1], mask)
