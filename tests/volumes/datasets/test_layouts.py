import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import dataset_layouts
from helpers.dataset_layouts import (
    COLOURS,
    LAYOUTS,
    NIFTI,
    SHAPE,
    affine_of,
    box,
    write_json,
    write_picture,
)
from nibabel.nifti1 import Nifti1Image
from PIL import Image

from samkd.errors import BadInputError, OutputError
from samkd.volumes import Geometry, Plan, Volume
from samkd.volumes.datasets.convert import write_nnunet
from samkd.volumes.datasets.registry import read_case, read_dataset
from samkd.volumes.datasets.survey import check_dataset
from samkd.volumes.geometry import reorient
from samkd.volumes.io.nifti import read_labels, write_labels, write_scan
from samkd.volumes.io.pictures import write_picture_labels
from samkd.volumes.io.scans import Source, as_nifti, mask_in, read_mask, read_source, sources, write_mask
from samkd.volumes.preprocess import preprocess, preprocess_labels, restore

ORIENTATIONS = [
    "".join(side) for order in itertools.permutations(("LR", "PA", "IS")) for side in itertools.product(*order)
]
EXPECTED = {  # channels, classes, training cases, test cases, test cases with a mask
    "Medical Segmentation Decathlon": (("CT",), 3, 3, 1, 1),
    "nnU-Net v2 raw": (("T1", "FLAIR"), 3, 3, 1, 1),
    "BTCV": (("CT",), 14, 3, 1, 0),
    "AMOS22": (("CT or MR",), 16, 6, 4, 2),
    "pair of folders": (("scan",), 3, 3, 1, 1),
    "2-D pictures": (("red", "green", "blue"), 3, 3, 1, 1),
    "EndoVis videos": (("red", "green", "blue"), 3, 3, 1, 1),
}


def faults(root: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        read_dataset(root)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_found_named_and_sound(tmp_path, name):
    dataset = read_dataset(LAYOUTS[name](tmp_path))
    channels, classes, training, test, labelled = EXPECTED[name]
    assert dataset.layout == name and dataset.channels == channels and list(dataset.labels) == list(range(classes))
    assert (len(dataset.training), len(dataset.test)) == (training, test)
    assert all(case.label for case in dataset.training) and sum(1 for case in dataset.test if case.label) == labelled
    rows = check_dataset(dataset)
    assert [row["fault"] for row in rows] == [None] * (training + test)
    depth = {"2-D pictures": 1, "EndoVis videos": 5}.get(name, SHAPE[0])
    assert all(row["shape"] == [depth, *SHAPE[1:]] for row in rows)
    volume, mask = read_case(dataset.training[0], dataset)
    assert mask is not None and volume.array.shape == (len(channels), depth, *SHAPE[1:]) and mask.shape[0] == depth
    bright = volume.array[0][mask > 0].mean() - volume.array[0][mask == 0].mean()
    assert bright > 50, "the mask does not lie on the generated box"


def test_all_48_orientations_are_there():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("name", NIFTI)
def test_a_mask_comes_back_on_its_voxels_in_all_48_orientations(tmp_path, name):
    """Read, prepare upright, label, restore, write; then nibabel, which knows nothing of us, compares the files."""
    plan = Plan(orientation="SPL", intensity=(), patch=(4, 4, 4))
    for codes in ORIENTATIONS:
        root = NIFTI[name](tmp_path / codes, training=1, test=0, codes=codes)
        dataset = read_dataset(root)
        case = dataset.training[0]
        volume, _ = read_case(case, dataset)
        assert volume.geometry.axis_codes == codes
        np.testing.assert_allclose(volume.geometry.affine, affine_of(codes), atol=1e-5)
        prepared = preprocess(volume, plan)
        assert prepared.geometry.axis_codes == "SPL"
        assert case.label is not None
        labels, geometry = read_mask(case.label)
        upright = preprocess_labels(labels, geometry, plan)
        certain = np.stack([upright == label for label in dataset.labels]).astype(np.float32)
        out = tmp_path / codes / "out" / case.image.mask_name
        out.parent.mkdir()
        write_mask(out, restore(certain, prepared.geometry, volume.geometry), volume.geometry, source=case.image)
        made, truth = (Nifti1Image.from_filename(path) for path in (out, case.label.files[0]))
        np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(truth.dataobj))
        np.testing.assert_allclose(np.asarray(made.affine), np.asarray(truth.affine), atol=1e-5)


@pytest.mark.parametrize("name", ["2-D pictures", "EndoVis videos"])
def test_picture_masks_come_back_on_their_pixels(tmp_path, name):
    """A picture has no orientation to lose: rows, columns and frames are as stored. NIfTI keeps them too."""
    dataset = read_dataset(LAYOUTS[name](tmp_path / "data"))
    plan = Plan(orientation="SPL", intensity=(), patch=(1, 4, 4))
    case = dataset.training[0]
    volume, mask = read_case(case, dataset)
    assert mask is not None and volume.geometry.axis_codes == "SPL" and volume.geometry.spacing == (1, 1, 1)
    np.testing.assert_array_equal(preprocess(volume, plan).array, volume.array)
    write_mask(tmp_path / case.image.mask_name, mask, volume.geometry, source=case.image)
    again, geometry = read_mask(mask_in(tmp_path, case.image))
    np.testing.assert_array_equal(again, mask)
    assert geometry.same_grid(volume.geometry)
    first = tmp_path / case.image.mask_name
    first = first if first.is_file() else first / f"{case.image.files[0].stem}.png"
    np.testing.assert_array_equal(np.asarray(Image.open(first)), mask[0])
    write_mask(tmp_path / "mask.nii.gz", mask, volume.geometry, source=case.image)
    labels, place = read_labels(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(labels, mask)
    assert place.same_grid(volume.geometry)
    scan = as_nifti(case.image, tmp_path, channels=3)
    np.testing.assert_array_equal(read_source(Source("x", (scan,)), channels=3).array, volume.array)


def test_labels_up_to_65535_come_back_exactly(tmp_path):
    labels = np.arange(65536).reshape(1, 256, 256)
    picture = tmp_path / "scan.png"
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(picture)
    write_picture_labels(tmp_path / "mask.png", labels, (picture,))
    again, geometry = read_mask(Source("mask", (tmp_path / "mask.png",)))
    np.testing.assert_array_equal(again, labels)
    assert again.dtype == np.uint16
    write_labels(tmp_path / "mask.nii.gz", labels, geometry, like=None)
    np.testing.assert_array_equal(read_mask(Source("mask", (tmp_path / "mask.nii.gz",)))[0], labels)
    small = labels.reshape(256, 16, 16)
    write_labels(tmp_path / "cube.nii", small, Geometry(np.eye(4), small.shape), like=None)
    np.testing.assert_array_equal(np.asarray(Nifti1Image.from_filename(tmp_path / "cube.nii").dataobj).T, small)


@pytest.mark.parametrize("name", LAYOUTS)
def test_converted_to_nnunet_it_is_the_same_dataset(tmp_path, name):
    dataset = read_dataset(LAYOUTS[name](tmp_path / "data"))
    write_nnunet(dataset, tmp_path / "out")
    again = read_dataset(tmp_path / "out")
    assert again.layout == "nnU-Net v2 raw" and again.channels == dataset.channels and again.labels == dataset.labels
    before = {case.name: case for case in (*dataset.training, *dataset.test)}
    after = {case.name: case for case in (*again.training, *again.test)}
    assert before.keys() == after.keys()
    for case_name, case in before.items():
        (one, truth), (two, mask) = read_case(case, dataset), read_case(after[case_name], again)
        np.testing.assert_array_equal(one.array, two.array)
        assert one.geometry.same_grid(two.geometry) and (truth is None) == (mask is None)
        if truth is not None:
            np.testing.assert_array_equal(truth, mask)
    with pytest.raises(OutputError, match="not empty"):
        write_nnunet(dataset, tmp_path / "out")


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    dataset = read_dataset(dataset_layouts.btcv(tmp_path / "data"))
    broken = dataset.training[1].image.files[0]
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(BadInputError, match="img0002"):
        write_nnunet(dataset, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_unknown_folder_says_what_was_looked_for(tmp_path):
    message = faults(tmp_path)
    assert "is no dataset" in message and all(name in message for name in LAYOUTS)
    assert "is no folder" in faults(tmp_path / "nowhere")


def test_two_layouts_in_one_folder_are_ambiguous(tmp_path):
    dataset_layouts.btcv(tmp_path)
    dataset_layouts.decathlon(tmp_path)
    message = faults(tmp_path)
    assert "fits several layouts" in message
    assert "BTCV" in message and "Decathlon" in message and "AMOS22" not in message


def test_amos_modality_goes_by_number(tmp_path):
    dataset_layouts.amos(tmp_path)
    mr = read_dataset(tmp_path, modality="MR")
    assert mr.channels == ("MR",) and [case.name for case in mr.training] == ["amos_0501", "amos_0502", "amos_0503"]
    ct = read_dataset(tmp_path, modality="CT")
    assert [case.name for case in ct.test] == ["amos_0101", "amos_0201"]
    assert ct.labels[9] == "inferior vena cava" and ct.labels[15] == "prostate or uterus"
    with pytest.raises(BadInputError, match="'PET' cannot be chosen"):
        read_dataset(tmp_path, modality="PET")
    dataset_layouts.btcv(tmp_path / "b")
    with pytest.raises(BadInputError, match="only AMOS22"):
        read_dataset(tmp_path / "b", modality="CT")
    content = json.loads((tmp_path / "dataset.json").read_text())
    write_json(tmp_path / "dataset.json", {**content, "labels": {"0": "background", "1": "spleen"}})
    assert "expected the numbers 0 to 15" in faults(tmp_path)


def test_nnunet_faults_come_at_once(tmp_path):
    dataset_layouts.nnunet(tmp_path)
    (tmp_path / "imagesTr" / "case_000_0001.nii.gz").unlink()
    (tmp_path / "imagesTr" / "stray.nii.gz").write_bytes(b"")
    (tmp_path / "labelsTr" / "case_001.nii.gz").rename(tmp_path / "labelsTr" / "other.nii.gz")
    message = faults(tmp_path)
    for part in (
        "case_000 has the channels [0]; expected [0, 1]",
        "stray.nii.gz does not end with its channel",
        "labelsTr/case_001.nii.gz does not exist",
        "labelsTr/other.nii.gz has no scan",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions and an ignore label are not read"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 2}}, "regions and an ignore label"),
        ({"labels": {"background": 0, "organ": 2}}, "without gaps"),
        ({"labels": {"background": 0, "organ": True}}, '"labels" gives {"organ": true}; expected whole numbers'),
        ({"file_ending": ".mha"}, '"file_ending" is ".mha"'),
        ({"numTraining": 7}, "announces 7"),
        ({"channel_names": {"0": "T1"}}, "has the channels [0, 1]; expected [0]"),
        ({"dataset": {}}, "lists files of its own"),
    ],
)
def test_nnunet_dataset_json_is_checked(tmp_path, changes, part):
    dataset_layouts.nnunet(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    write_json(tmp_path / "dataset.json", {**content, **changes})
    assert part in faults(tmp_path)


def test_nnunet_pictures_hold_their_channels_in_one_file(tmp_path):
    for i in range(2):
        write_picture(tmp_path / "imagesTr" / f"a{i}_0000.png", tmp_path / "labelsTr" / f"a{i}.png", seed=i, classes=2)
    channels = {"0": "R", "1": "G", "2": "B"}
    labels = {"background": 0, "lesion": 1}
    write_json(tmp_path / "dataset.json", {"channel_names": channels, "labels": labels, "file_ending": ".png"})
    dataset = read_dataset(tmp_path)
    assert read_case(dataset.training[0], dataset)[0].array.shape == (3, 1, *SHAPE[1:])


def test_channels_on_different_grids_are_refused(tmp_path):
    dataset = read_dataset(dataset_layouts.nnunet(tmp_path))
    path = dataset.training[0].image.files[1]
    geometry = Geometry(affine_of("IPL", spacing=(2.6, 1, 0.8)), SHAPE)
    write_labels(path, np.zeros(SHAPE, np.uint8), geometry, like=None)
    with pytest.raises(BadInputError, match=r"case_000_0001\.nii\.gz: is not on the grid of the first channel"):
        read_case(dataset.training[0], dataset)


def test_channels_in_another_voxel_order_are_read_in_the_firsts(tmp_path):
    dataset = read_dataset(dataset_layouts.nnunet(tmp_path))
    case = dataset.training[0]
    volume, _ = read_case(case, dataset)
    turned = volume.geometry.oriented("RAS")
    second = Volume(reorient(volume.array[1:], volume.geometry, turned), turned)
    write_scan(case.image.files[1], second)
    np.testing.assert_array_equal(read_case(case, dataset)[0].array, volume.array)


def test_btcv_faults(tmp_path):
    dataset_layouts.btcv(tmp_path)
    (tmp_path / "Training" / "label" / "label0002.nii.gz").unlink()
    shutil.copy(tmp_path / "Training" / "img" / "img0001.nii.gz", tmp_path / "Training" / "img" / "scan.nii.gz")
    message = faults(tmp_path)
    assert "img0002 has no Training/label/label0002" in message and "scan.nii.gz is not named imgNNNN" in message


def test_classes_of_a_pair_are_found_in_its_masks(tmp_path):
    dataset_layouts.pictures(tmp_path)
    (tmp_path / "labels.json").unlink()
    dataset = read_dataset(tmp_path)
    assert dataset.labels == {0: "background", 1: "label 128", 2: "label 255"} and dataset.codes == (0, 128, 255)
    _, mask = read_case(dataset.training[0], dataset)
    assert mask is not None
    np.testing.assert_array_equal(mask[0], box(0, SHAPE[1:], 3))


def test_more_numbers_than_a_mask_has_are_refused(tmp_path):
    dataset_layouts.pictures(tmp_path)
    (tmp_path / "labels.json").unlink()
    noise = np.random.default_rng(0).integers(0, 60000, SHAPE[1:]).astype(np.uint16)
    Image.fromarray(noise).save(tmp_path / "train" / "masks" / "train_000.png")
    assert "are they masks?" in faults(tmp_path)


def test_pairs_must_match(tmp_path):
    dataset_layouts.folders(tmp_path)
    (tmp_path / "train" / "masks" / "train_001.nii.gz").rename(tmp_path / "train" / "masks" / "x.nii.gz")
    write_picture(tmp_path / "test" / "images" / "p.png", None, seed=0, classes=2)
    message = faults(tmp_path)
    assert "train_001.nii.gz has no mask" in message and "x.nii.gz has no scan" in message and "are mixed" in message
    shutil.copytree(tmp_path / "train" / "masks", tmp_path / "train" / "labels")
    assert "has both labels and masks" in faults(tmp_path)


def test_isic_names_and_root_folders(tmp_path):
    for i in range(2):
        name = f"ISIC_{i:07d}"
        write_picture(
            tmp_path / "images" / f"{name}.jpg",
            tmp_path / "masks" / f"{name}_segmentation.png",
            seed=i,
            classes=2,
            values=(0, 255),
        )
    dataset = read_dataset(tmp_path)
    assert [case.name for case in dataset.training] == ["ISIC_0000000", "ISIC_0000001"] and dataset.codes == (0, 255)


def test_the_background_need_not_be_black(tmp_path):
    """REFUGE2 draws the cup in 0, the disc in 128 and the background in 255."""
    dataset_layouts.pictures(tmp_path, values=(255, 0, 128), labels=("cup", "disc"))
    dataset = read_dataset(tmp_path)
    assert dataset.labels == {0: "background", 1: "cup", 2: "disc"} and dataset.codes == (255, 0, 128)
    np.testing.assert_array_equal(read_case(dataset.training[0], dataset)[1], box(0, SHAPE[1:], 3)[None])


@pytest.mark.parametrize(
    "content",
    [
        {"0": "background"},
        {"0": "background", "1": "background"},
        {"0": "background", "70000": "x"},
        {"zero": "background", "1": "x"},
        [{"name": "a", "classid": 0}, {"name": "b", "classid": 1}],
        [{"name": "a", "color": [0, 0], "classid": 0}, {"name": "b", "color": [0, 0, 1], "classid": 1}],
        [{"name": "a", "color": [0, 0, 999], "classid": 0}, {"name": "b", "color": [0, 0, 1], "classid": 1}],
        [{"name": "a", "color": [0, 0, 1], "classid": 0}, {"name": "b", "color": [0, 0, 1], "classid": 1}],
        "nothing",
        None,
    ],
)
def test_labels_json_is_checked(tmp_path, content):
    dataset_layouts.pictures(tmp_path)
    write_json(tmp_path / "labels.json", content)
    assert "labels.json" in faults(tmp_path)


def test_endovis_frames_need_their_masks_and_colours(tmp_path):
    dataset_layouts.endovis(tmp_path)
    (tmp_path / "seq_1" / "labels" / "frame002.png").unlink()
    (tmp_path / "labels.json").unlink()
    message = faults(tmp_path)
    assert "seq_1 has ['frame002'] as a frame or as a mask only" in message and "labels.json is missing" in message


def test_a_colour_that_stands_for_nothing_is_named(tmp_path):
    dataset = read_dataset(dataset_layouts.endovis(tmp_path))
    path = tmp_path / "seq_1" / "labels" / "frame001.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4] = 1, 2, 3
    Image.fromarray(pixels).save(path)
    with pytest.raises(BadInputError, match=r"frame001\.png: holds \(1, 2, 3\)"):
        read_case(dataset.training[0], dataset)
    assert dataset.codes == COLOURS


def test_sources_of_a_folder(tmp_path):
    dataset_layouts.nnunet(tmp_path / "n")
    result = sources(tmp_path / "n" / "imagesTr", channels=2)
    assert (result[0].name, len(result[0].files), result[0].mask_name) == ("case_000", 2, "case_000.nii.gz")
    assert [len(s.files) for s in sources(tmp_path / "n" / "imagesTr")] == [1] * 6
    dataset_layouts.endovis(tmp_path / "e")
    assert [(s.name, len(s.files)) for s in sources(tmp_path / "e")] == [("seq_1", 5), ("seq_2", 5), ("seq_3", 5)]
    (alone,) = sources(tmp_path / "e" / "seq_2" / "left_frames")
    assert alone.name == alone.mask_name == "seq_2" and len(alone.files) == 5
    frames = sources(tmp_path / "e" / "seq_2" / "labels")
    assert [s.mask_name for s in frames] == [f"frame{i:03d}.png" for i in range(5)]
    shutil.copy(
        tmp_path / "e" / "seq_2" / "labels" / "frame000.png", tmp_path / "e" / "seq_2" / "labels" / "frame000.jpg"
    )
    with pytest.raises(BadInputError, match="would have one name"):
        sources(tmp_path / "e" / "seq_2" / "labels")
    with pytest.raises(BadInputError, match="no scan here"):
        sources(tmp_path / "nowhere")


@pytest.mark.parametrize("name", LAYOUTS)
def test_hidden_files_are_no_data(tmp_path, name):
    """macOS puts a `._` file beside every file of a disk that is not its own, Windows a Thumbs.db into a folder."""
    dataset = read_dataset(LAYOUTS[name](tmp_path / "data"))
    for path in [path for path in (tmp_path / "data").rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(80))
        for junk in (".DS_Store", "Thumbs.db", "desktop.ini"):
            path.with_name(junk).write_bytes(b"junk")
        path.with_name(".ipynb_checkpoints").mkdir(exist_ok=True)
    again = read_dataset(tmp_path / "data")
    assert again == dataset
    assert [row["fault"] for row in check_dataset(again)] == [None] * (len(again.training) + len(again.test))


@pytest.mark.parametrize("name", LAYOUTS)
def test_links_to_files_and_folders_are_followed(tmp_path, name):
    """Data is often linked into place from a store: every folder, every file, or the whole dataset."""
    dataset = read_dataset(LAYOUTS[name](tmp_path / "store"))
    folders, files = tmp_path / "folders", tmp_path / "files"
    folders.mkdir()
    for entry in (tmp_path / "store").iterdir():
        (folders / entry.name).symlink_to(entry)
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            link = files / path.relative_to(tmp_path / "store")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    (tmp_path / "whole").symlink_to(tmp_path / "store")
    for root in (folders, files, tmp_path / "whole"):
        again = read_dataset(root)
        assert [case.name for case in again.training] == [case.name for case in dataset.training]
        assert [row["fault"] for row in check_dataset(again)] == [None] * (len(again.training) + len(again.test))


def test_hidden_entries_of_a_list_are_no_cases(tmp_path):
    """A dataset.json written by a script that took every file of the folder."""
    dataset_layouts.decathlon(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"].append({"image": "./imagesTr/._case_000.nii.gz", "label": "./labelsTr/._case_000.nii.gz"})
    content["test"].append("./imagesTs/._test_000.nii.gz")
    write_json(tmp_path / "dataset.json", {**content, "numTraining": 4, "numTest": 2})
    dataset = read_dataset(tmp_path)
    assert (len(dataset.training), len(dataset.test)) == (3, 1)


@pytest.mark.parametrize("name", ["Medical Segmentation Decathlon", "nnU-Net v2 raw", "AMOS22"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_windows_editors_is_read(tmp_path, name, encoding):
    LAYOUTS[name](tmp_path)
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text, encoding=encoding)
    assert len(read_dataset(tmp_path).training) == EXPECTED[name][2]


def test_json_that_nothing_could_print_is_refused(tmp_path):
    dataset_layouts.nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(
        (tmp_path / "dataset.json").read_text().replace('"organ"', '"\\ud800"'), encoding="utf-8"
    )
    assert "not valid JSON" in faults(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"numTraining": "3"},
        {"numTraining": 3.0},
        {"numTraining": None},
        {"labels": {"background": "0", "organ": "1", "tumour": "2"}},
        {"labels": {"background": 0, "organ": 1.0, "tumour": " 2"}},
        {"labels": {"0": "background", "1": "organ", "2": "tumour"}},
        {"channel_names": {"00": "T1", "01": "FLAIR"}},
        {"file_ending": ".NII.GZ"},
    ],
)
def test_nnunet_dataset_json_as_people_write_it(tmp_path, changes):
    dataset_layouts.nnunet(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    write_json(tmp_path / "dataset.json", {**content, **changes})
    dataset = read_dataset(tmp_path)
    assert dataset.labels == {0: "background", 1: "organ", 2: "tumour"} and dataset.channels == ("T1", "FLAIR")
    assert len(dataset.training) == 3


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"numTraining": "three"}, '"numTraining" is "three"; expected a number of cases'),
        ({"numTraining": "7"}, "imagesTr has 3 case(s) where numTraining announces 7"),
        ({"labels": {"background": 0, "organ": "one"}}, '"labels" gives {"organ": "one"}; expected whole numbers'),
        ({"labels": {"background": 0, "organ": 1.5}}, "expected whole numbers"),
        ({"file_ending": ".nii"}, 'imagesTr has no file that ends with the "file_ending" .nii; it holds case_000_0000'),
    ],
)
def test_nnunet_messages_name_what_is_wrong(tmp_path, changes, part):
    dataset_layouts.nnunet(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    write_json(tmp_path / "dataset.json", {**content, **changes})
    message = faults(tmp_path)
    assert part in message and "regions" not in message


@pytest.mark.parametrize("name", ["Medical Segmentation Decathlon", "nnU-Net v2 raw", "AMOS22"])
def test_suffixes_in_capitals_are_read(tmp_path, name):
    dataset = read_dataset(LAYOUTS[name](tmp_path))
    for path in list(tmp_path.rglob("*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    again = read_dataset(tmp_path)
    assert [case.name for case in again.training] == [case.name for case in dataset.training]
    assert [bool(case.label) for case in again.test] == [bool(case.label) for case in dataset.test]
    assert [row["fault"] for row in check_dataset(again)] == [None] * (len(again.training) + len(again.test))


def test_two_files_that_differ_in_their_suffix_case_only_are_refused(tmp_path):
    dataset_layouts.nnunet(tmp_path)
    shutil.copy(tmp_path / "imagesTr" / "case_000_0000.nii.gz", tmp_path / "imagesTr" / "case_000_0000.NII.GZ")
    assert "has the name of case_000_0000" in faults(tmp_path)


def test_listed_paths_may_be_absolute_or_of_windows(tmp_path):
    root = tmp_path / "data"
    dataset = read_dataset(dataset_layouts.decathlon(root))
    content = json.loads((root / "dataset.json").read_text())
    (tmp_path / "link").symlink_to(root)
    for prefix in (f"{root}/", f"{tmp_path}/link/", f"{root}/imagesTr/../"):
        where = tmp_path / "link" if "link" in prefix else root
        absolute = [{key: value.replace("./", prefix) for key, value in case.items()} for case in content["training"]]
        write_json(root / "dataset.json", {**content, "training": absolute})
        assert [case.name for case in read_dataset(where).training] == [case.name for case in dataset.training]
    windows = [
        {key: value.replace("./", "").replace("/", "\\") for key, value in case.items()} for case in content["training"]
    ]
    write_json(root / "dataset.json", {**content, "training": windows})
    assert read_dataset(root) == dataset
    outside = [{key: value.replace("./", "/elsewhere/") for key, value in case.items()} for case in content["training"]]
    write_json(root / "dataset.json", {**content, "training": outside})
    assert "leaves the dataset's folder; write it relative" in faults(root)


def test_nnunet_v1_has_a_file_per_channel(tmp_path):
    """Its dataset.json is the Decathlon's and names X.nii.gz, where the files are X_0000.nii.gz, X_0001.nii.gz."""
    whole = read_dataset(dataset_layouts.decathlon(tmp_path / "whole", modality=("T1", "FLAIR")))
    write_nnunet(whole, tmp_path / "v1")
    shutil.copy(tmp_path / "whole" / "dataset.json", tmp_path / "v1" / "dataset.json")
    dataset = read_dataset(tmp_path / "v1")
    assert [case.name for case in dataset.training] == [case.name for case in whole.training]
    assert dataset.channels == ("T1", "FLAIR") and all(case.label for case in (*dataset.training, *dataset.test))
    for case, other in zip(dataset.training, whole.training, strict=True):
        np.testing.assert_array_equal(read_case(case, dataset)[0].array, read_case(other, whole)[0].array)
    (tmp_path / "v1" / "imagesTr" / "case_001_0001.nii.gz").unlink()
    assert "does not exist as nnU-Net v1 names it, case_001_0001.nii.gz" in faults(tmp_path / "v1")


PROMPTS = {  # layout: where its masks, and where its prompts in place of masks lie
    "Medical Segmentation Decathlon": ("labelsTr", "promptsTr"),
    "nnU-Net v2 raw": ("labelsTr", "promptsTr"),
    "AMOS22": ("labelsTr", "promptsTr"),
    "pair of folders": ("train/masks", "train/prompts"),
    "2-D pictures": ("train/masks", "train/prompts"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_training_case_may_have_prompts_in_place_of_a_mask(tmp_path, name):
    root = LAYOUTS[name](tmp_path)
    masks, folder = (root / part for part in PROMPTS[name])
    first, second, *_ = (case.name for case in read_dataset(root).training)
    prompts = {"space": "voxel", "classes": {list(read_dataset(root).labels.values())[1]: {"points": [[3, 3, 0]]}}}
    for case in (first, second):
        write_json(folder / f"{case}.json", prompts)
    next(path for path in masks.iterdir() if path.name.startswith(first)).unlink()
    if (root / "dataset.json").exists() and "training" in (listed := json.loads((root / "dataset.json").read_text())):
        del listed["training"][0]["label"]
        write_json(root / "dataset.json", listed)
    dataset = read_dataset(root)
    bare, labelled = dataset.training[:2]
    assert (bare.name, bare.label, bare.prompts) == (first, None, folder / f"{first}.json")
    assert labelled.label is not None and labelled.prompts == folder / f"{second}.json"
    assert not any(case.prompts for case in (*dataset.training[2:], *dataset.test))
    assert [row["fault"] for row in check_dataset(dataset)][:2] == [None, None]

    write_json(folder / f"{second}.json", {"classes": {"lung": {"points": [[3, 3, 0]]}}})
    assert "class 'lung' is unknown" in check_dataset(dataset)[1]["fault"]
    write_json(folder / f"{second}.json", prompts)
    write_json(folder / "stranger.json", prompts)
    assert f"{folder.name}/stranger.json has no scan of its name" in faults(root)
    (folder / "stranger.json").unlink()
    (folder / f"{first}.json").unlink()
    faults(root)  # neither mask nor prompts
