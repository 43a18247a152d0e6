"""MONAI Label's interface, called by its own client class in each way that 3D Slicer's module calls it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.dicom_series import write_series
from helpers.http_server import Client, Server, form
from helpers.monai_client import client_module
from helpers.packages import make_scan

from samkd.deploy.runtime.predict import predict_scan
from samkd.deploy.runtime.prompt import answers
from samkd.deploy.runtime.serve.http.monai_models import DEEPGROW, clicks_of, models_of
from samkd.deploy.runtime.serve.http.options import HttpOptions
from samkd.deploy.runtime.serve.http.refusals import Refusal
from samkd.volumes.io.nifti import read_labels, write_labels, write_scan
from samkd.volumes.io.scans import Source

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:'cgi' is deprecated")]

INSIDE, OUTSIDE, OTHER = [10, 12, 5], [20, 8, 9], [22, 15, 9]  # voxels i, j, k


@pytest.fixture(scope="module")
def monai():
    module, reason = client_module()
    if module is None:
        pytest.skip(reason)
    return module


@pytest.fixture(scope="module")
def server(built, built_promptable, tmp_path_factory):
    with Server([built, built_promptable], tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture
def slicer(monai, server, tmp_path):
    """The client as Slicer's module makes it."""
    (tmp_path / "slicer").mkdir()
    return monai.MONAILabelClient(f"http://127.0.0.1:{server.port}", str(tmp_path / "slicer"), "user-xyz")


@pytest.fixture
def refused(monai):
    """The client's exception, whose text holds the status and the sentence."""
    return lambda words: pytest.raises(monai.MONAILabelClientException, check=lambda error: words in error.msg)


@pytest.fixture
def scan(tmp_path) -> Path:
    """A scan on an oblique grid, whose axes are stored in another order than the patient's."""
    write_scan(tmp_path / "head.nii.gz", make_scan(3))
    return tmp_path / "head.nii.gz"


@pytest.fixture
def names(server) -> tuple[str, str, str]:
    """The models: automatic, promptable, and the promptable one without prompts."""
    models = models_of(server.packages)
    automatic, prompted, without = models
    return automatic, prompted, without


@pytest.fixture
def packages(server):
    return tuple(server.packages.values())


def predicted(package, scan: Path, mask: Path) -> bytes:
    predict_scan(package, Source("head", (scan,)), mask)
    return mask.read_bytes()


def prompted(package, scan: Path, mask: Path, prompts: object) -> bytes:
    """The mask that `runtime.pyz prompt` writes."""
    for _ in answers(package, Source("head", (scan,)), mask, [json.dumps(prompts).encode()]):
        pass
    return mask.read_bytes()


def test_the_models_are_listed(slicer, server, names):
    info = slicer.info()
    types = {name: model["type"] for name, model in info["models"].items()}
    assert types == dict(zip(names, ("segmentation", "deepedit", "segmentation"), strict=True))
    automatic, prompted, _ = (info["models"][name] for name in names)
    assert automatic["labels"] == {"liver": 1, "left kidney": 2} and automatic["dimension"] == 3
    assert prompted["labels"] == {"background": 0, "liver": 1, "left kidney": 2}
    assert set(info["labels"]) == {"background", "liver", "left kidney"}
    assert not slicer.auth_enabled() and not slicer.train_status(check_if_running=True)


def test_a_session_gives_the_mask_of_predict(slicer, refused, packages, names, scan, tmp_path):
    session = slicer.create_session(str(scan))["session_id"]
    assert slicer.get_session(session)["name"] == "head.nii.gz"
    mask, params = slicer.infer(names[0], "head", {}, session_id=session)
    assert Path(mask).name.endswith(".nii.gz")
    assert Path(mask).read_bytes() == predicted(packages[0], scan, tmp_path / "mask.nii.gz")
    labels = read_labels(mask)[0]
    assert params["label_names"] == {"liver": 1, "left kidney": 2}
    value, *middle = params["centroids"]["left kidney"]
    assert value == 2 and labels[middle[2], middle[1], middle[0]] == 2
    again, _ = slicer.infer(names[0], "head", {}, session_id=session)
    assert Path(again).read_bytes() == Path(mask).read_bytes()
    slicer.remove_session(session)
    with refused("404"):
        slicer.get_session(session)
    with refused("404"):
        slicer.infer(names[0], "head", {}, session_id=session)


def test_an_image_of_the_datastore_gives_the_mask_of_predict(slicer, refused, packages, names, scan, server, tmp_path):
    assert slicer.upload_image(str(scan), "head") == {"image": "head"}
    assert slicer.upload_image(str(scan), "head") == {"image": "head"}  # as before each saved label
    mask, _ = slicer.infer(names[0], "head", {})
    assert Path(mask).read_bytes() == predicted(packages[0], scan, tmp_path / "mask.nii.gz")
    assert slicer.save_label("head", mask, params={"label_info": []}) == {"image": "head", "label": "head"}
    assert Path(slicer.download_label("head", "final")).read_bytes() == Path(mask).read_bytes()
    (entry,) = slicer.datastore()["objects"].values()
    assert list(entry["labels"]) == ["final"] and entry["image"]["info"]["modality"] is None
    assert slicer.info()["datastore"] == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
    client = Client(server.port)
    image = client.get("/datastore/image?image=head")
    assert image.body == scan.read_bytes() and 'filename="head.nii.gz"' in image.headers["content-disposition"]
    assert client.request("HEAD", "/datastore/image?image=head").status == 200
    assert client.get("/datastore/image/info?image=head").json["shape"] == [31, 26, 19]
    write_scan(tmp_path / "other.nii.gz", make_scan(4))
    with refused("another scan has this name"):
        slicer.upload_image(str(tmp_path / "other.nii.gz"), "head")
    small = read_labels(mask)
    grid = replace(small[1], shape=(3, 3, 3))
    write_labels(tmp_path / "small.nii.gz", np.ones((3, 3, 3), np.uint8), grid, like=None)
    with refused("has (3, 3, 3) voxels"):
        slicer.save_label("head", str(tmp_path / "small.nii.gz"))
    with refused("expected one word"):
        slicer.save_label("head", mask, tag="../../tag")
    assert client.delete("/datastore/label?id=head&tag=final").status == 200
    with refused("has none with the tag"):
        slicer.download_label("head", "final")
    assert client.delete("/datastore/?id=head").status == 200
    assert slicer.datastore()["objects"] == {}


def test_a_file_gives_the_mask_of_predict_and_does_not_stay(slicer, packages, names, scan, server, tmp_path):
    before = set((server.spool / "scans").iterdir())
    mask, _ = slicer.infer(names[0], "", {}, file=str(scan))
    assert Path(mask).read_bytes() == predicted(packages[0], scan, tmp_path / "mask.nii.gz")
    assert set((server.spool / "scans").iterdir()) == before


def test_points_of_several_labels_give_the_mask_of_prompt(slicer, packages, names, scan, tmp_path):
    session = slicer.create_session(str(scan))["session_id"]
    params = {"liver": [INSIDE], "left kidney": [OTHER], "background": [OUTSIDE], "label": "liver"}
    mask, _ = slicer.infer(names[1], "head", params, session_id=session)
    classes = {
        "liver": {"points": [[*INSIDE, 1], [*OUTSIDE, 0]]},
        "left kidney": {"points": [[*OTHER, 1], [*OUTSIDE, 0]]},
    }
    wanted = prompted(packages[1], scan, tmp_path / "mask.nii.gz", {"space": "voxel", "classes": classes})
    assert Path(mask).read_bytes() == wanted
    without, _ = slicer.infer(names[2], "head", {}, session_id=session)
    assert Path(without).read_bytes() == predicted(packages[1], scan, tmp_path / "mask.nii.gz") != wanted


def test_foreground_and_background_give_one_class_at_the_place_that_was_clicked(
    slicer, packages, names, scan, tmp_path
):
    """Slicer multiplies a point of the patient with the volume's RAS-to-IJK matrix; both must mean the same place."""
    session = slicer.create_session(str(scan))["session_id"]
    volume = make_scan(3)
    ras = [(volume.geometry.affine @ [*reversed(point), 1])[:3] for point in (OTHER, OUTSIDE)]
    to_ijk = np.linalg.inv(volume.geometry.affine[:, [2, 1, 0, 3]])
    points = [[round(number) for number in (to_ijk @ [*point, 1])[:3]] for point in ras]
    assert points == [OTHER, OUTSIDE]
    params = {"label": "left kidney", "foreground": points[:1], "background": points[1:]}
    mask, answer = slicer.infer(names[1], "head", params, session_id=session)
    classes = {"left kidney": {"points": [[*ras[0], 1], [*ras[1], 0]]}}
    prompted(packages[1], scan, tmp_path / "mask.nii.gz", {"space": "mm", "classes": classes})
    whole, geometry = read_labels(tmp_path / "mask.nii.gz")
    labels, grid = read_labels(mask)
    np.testing.assert_array_equal(labels, whole == 2)
    np.testing.assert_array_equal(grid.affine, geometry.affine)
    assert labels.any() and answer["label_names"] == {"left kidney": 1}


def test_the_mask_as_nrrd_is_the_same_mask_on_the_same_grid(slicer, packages, names, scan, tmp_path):
    params = {"result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False}  # as OHIF asks
    path, _ = slicer.infer(names[0], "", params, file=str(scan))
    header, data = Path(path).read_bytes().split(b"\n\n", 1)
    fields = dict(line.split(": ", 1) for line in header.decode().split("\n")[1:])
    predicted(packages[0], scan, tmp_path / "mask.nii.gz")
    labels, geometry = read_labels(tmp_path / "mask.nii.gz")
    assert fields["sizes"] == "31 26 19" and fields["encoding"] == "raw" and fields["type"] == "uint16"
    np.testing.assert_array_equal(np.frombuffer(data, "<u2").reshape(19, 26, 31), labels)
    columns = [eval(vector) for vector in fields["space directions"].split()]
    lps = np.diag([-1, -1, 1]) @ geometry.affine[:3]
    np.testing.assert_allclose(np.array(columns).T, lps[:, [2, 1, 0]])
    np.testing.assert_allclose(eval(fields["space origin"]), lps[:, 3])


def test_a_dicom_series_is_found_by_its_uid_and_comes_back_as_dicom_seg(slicer, packages, names, server, tmp_path):
    """As OHIF names it; the series was uploaded through the page."""
    files = write_series(tmp_path / "ct", make_scan(3).array[0].astype(np.int16) + 1024, spacing=(2.0, 1.5, 1.4))
    client = Client(server.port)
    client.upload({file.name: file.read_bytes() for file in files})
    uid = pydicom.dcmread(files[0]).SeriesInstanceUID
    mask, _ = slicer.infer(names[0], uid, {})
    predict_scan(packages[0], Source("ct", tuple(files)), tmp_path / "mask.nii.gz")
    assert Path(mask).read_bytes() == (tmp_path / "mask.nii.gz").read_bytes()
    body, kind = form({})
    seg = client.request("POST", f"/infer/{names[0]}?image={uid}&output=dicom_seg", body, Content_Type=kind)
    assert seg.status == 200 and seg.body[128:132] == b"DICM"
    assert uid not in slicer.datastore()["objects"]  # who cannot name a scan does not find it


def test_what_is_no_inference_is_refused_by_name(slicer, refused, names, scan):
    with refused("501"):
        slicer.next_sample("random", {})
    with refused("501"):
        slicer.train_start(None, {})
    with refused("404"):
        slicer.wsi_infer(names[0], "head")
    with refused("takes scribbles"):
        slicer.infer(names[0], "", {}, label_in=str(scan), file=str(scan))
    with refused("is not served here"):
        slicer.infer("spleen", "", {}, file=str(scan))
    with refused("404"):
        slicer.infer(names[0], "nobody", {})
    for params, words in [
        ({"foreground": [[1, 2]], "label": "liver"}, "is no point"),
        ({"foreground": [INSIDE], "label": "spleen"}, "is none of liver"),
        ({"background": [OUTSIDE]}, "Add a point inside"),
        ({"liver": [[999, 0, 0]]}, "point"),
        ({"result_extension": ".seg.nrrd"}, "choose one of .nii.gz"),
    ]:
        with refused(words):
            slicer.infer(names[1], "", params, file=str(scan))


def test_a_token_is_the_password_and_then_sent_as_bearer(monai, refused, built, scan, tmp_path):
    with Server([built], tmp_path / "spool", HttpOptions(port=0, token="secret" * 6)) as server:
        client = monai.MONAILabelClient(f"http://127.0.0.1:{server.port}", str(tmp_path))
        assert client.auth_enabled() and not client.auth_valid_token()
        for call in (client.info, client.datastore, lambda: client.create_session(str(scan))):
            with refused("401"):
                call()
        with refused("Password: wrong"):
            client.auth_token("anybody", "guess")
        client.update_auth(client.auth_token("anybody", "secret" * 6))
        assert client.auth_valid_token()
        (model,) = client.info()["models"]
        session = client.create_session(str(scan))["session_id"]
        assert Path(client.infer(model, "", {}, session_id=session)[0]).stat().st_size > 0


def test_a_package_of_one_promptable_class_is_a_deepgrow_model(packages):
    one = replace(packages[1], class_names={0: "background", 1: "liver"})
    model = next(iter(models_of({"d": one}).values()))
    assert model.type == DEEPGROW and model.info()["labels"] == {"liver": 1}
    clicks = clicks_of({"foreground": [[1, 2, 3]], "background": [], "label": "whatever"}, model)
    assert clicks.prompts == {"space": "voxel", "classes": {"liver": {"points": [[1, 2, 3, 1]]}}} and clicks.only == 1
    with pytest.raises(Refusal):
        clicks_of({"foreground": "everywhere"}, model)
