"""From an upload to its mask through the HTTP interface, beside what `runtime.pyz predict` writes."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from helpers.dicom_series import write_series
from helpers.http_server import Client, Server, nifti_bytes, wait
from helpers.packages import make_scan

from samkd.deploy.runtime.predict import predict_scan
from samkd.volumes.geometry import Volume
from samkd.volumes.io.nifti import read_labels, write_scan
from samkd.volumes.io.scans import Source


@pytest.fixture(scope="module")
def server(built, tmp_path_factory):
    with Server([built], tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server.port)


def test_the_page_and_the_packages_are_listed(client, server):
    assert b"<!doctype html>" in client.get("/").body
    (package,) = client.get("/api/packages").json
    (digest,) = server.packages
    assert package["id"] == digest[:16] and package["channels"] == ["CT"] and package["prompt_kinds"] == []
    assert [each["name"] for each in package["classes"]] == ["liver", "left kidney"]
    assert all(len(each["color"]) == 3 for each in package["classes"])


def test_a_mask_is_that_of_predict_bit_for_bit(client, server, tmp_path):
    write_scan(tmp_path / "Muster Hans.nii.gz", make_scan(3))
    content = (tmp_path / "Muster Hans.nii.gz").read_bytes()
    (scan,) = client.upload({"Muster Hans.nii.gz": content})
    assert scan["name"] == "Muster Hans.nii.gz" and scan["shape"] == [31, 26, 19] and scan["fits"] == [server.id]
    job = client.finish(scan["id"], server.id)
    assert job["state"] == "done" and job["fraction"] == 1
    (package,) = server.packages.values()
    row = predict_scan(package, Source("x", (tmp_path / "Muster Hans.nii.gz",)), tmp_path / "mask.nii.gz")
    assert client.get(f"/api/jobs/{job['id']}/mask").body == (tmp_path / "mask.nii.gz").read_bytes()
    assert job["report"]["volumes_ml"] == row["volumes_ml"]
    report = client.get(f"/api/jobs/{job['id']}/report").json
    assert report["scan"] == "Muster Hans.nii.gz" and report["package"] == package.manifest.name
    assert str(tmp_path) not in json.dumps(report)
    assert client.get(f"/api/scans/{scan['id']}/image").body == content
    assert client.get(f"/api/jobs/{job['id']}/seg").status == 409


def test_the_files_of_a_dicom_folder_are_one_scan_with_a_dicom_seg(client, server, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    values = make_scan(3).array[0].astype(np.int16) + 1024
    files = write_series(tmp_path / "ct", values, spacing=(2.0, 1.5, 1.4))
    (scan,) = client.upload({f"study/{file.name}": file.read_bytes() for file in files})
    assert scan["modality"] == "CT" and scan["dicom"] and scan["files"] == len(files)
    job = client.finish(scan["id"], server.id)
    (package,) = server.packages.values()
    predict_scan(package, Source("ct", tuple(files)), tmp_path / "mask.nii.gz")
    assert client.get(f"/api/jobs/{job['id']}/mask").body == (tmp_path / "mask.nii.gz").read_bytes()
    answer = client.get(f"/api/jobs/{job['id']}/seg").body
    segmentation = pydicom.dcmread(io.BytesIO(answer))
    assert segmentation.SOPClassUID.name == "Segmentation Storage"
    labels = read_labels(tmp_path / "mask.nii.gz")[0]
    assert int((segmentation.pixel_array > 0).sum()) == int((labels > 0).sum())
    (tmp_path / "image.nii.gz").write_bytes(client.get(f"/api/scans/{scan['id']}/image").body)
    packed = gzip.decompress((tmp_path / "image.nii.gz").read_bytes())
    assert len(packed) == 352 + 2 * values.size


def test_an_archive_holds_several_scans(client, server):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("a/one.nii.gz", nifti_bytes(make_scan(1)))
        packed.writestr("b/two.nii.gz", nifti_bytes(make_scan(2)))
        packed.writestr("__MACOSX/._one.nii.gz", b"")
    scans = client.upload({"both.zip": content.getvalue()})
    assert sorted(scan["name"] for scan in scans) == ["a/one.nii.gz", "b/two.nii.gz"]
    assert [client.finish(scan["id"], server.id)["state"] for scan in scans] == ["done", "done"]


def test_a_picture_has_its_mask_as_nifti(client, server, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(make_scan(3).array[0, 9].clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    (scan,) = client.upload({"a.PNG": (tmp_path / "a.png").read_bytes()})
    assert scan["shape"] == [31, 26, 1] and scan["channels"] == 1
    job = client.finish(scan["id"], server.id)
    (package,) = server.packages.values()
    predict_scan(package, Source("a", (tmp_path / "a.png",)), tmp_path / "mask.nii.gz")
    assert client.get(f"/api/jobs/{job['id']}/mask").body == (tmp_path / "mask.nii.gz").read_bytes()
    (tmp_path / "image.nii.gz").write_bytes(client.get(f"/api/scans/{scan['id']}/image").body)
    assert read_labels(tmp_path / "image.nii.gz")[0].max() > 90
    assert client.get(f"/api/scans/{scan['id']}/image?channel=1").status == 400


def test_a_scan_of_other_channels_is_told_not_to_fit(client, server):
    two = Volume(np.concatenate([make_scan(3).array] * 2), make_scan(3).geometry)
    (scan,) = client.upload({"a.nii.gz": nifti_bytes(two)})
    assert scan["channels"] == 2 and scan["fits"] == []
    answer = client.post("/api/jobs", {"scan": scan["id"], "package": server.id})
    assert answer.status == 409 and "has 2 channel(s)" in answer.json["error"]


def test_a_scan_that_is_deleted_is_gone_with_its_jobs(client, server):
    (scan,) = client.upload({"a.nii.gz": nifti_bytes(make_scan(4))})
    job = client.finish(scan["id"], server.id)
    assert client.delete(f"/api/scans/{scan['id']}").status == 204
    assert client.get(f"/api/jobs/{job['id']}").status == client.get(f"/api/scans/{scan['id']}/image").status == 404
    assert not any(scan["id"] in str(path) or job["id"] in str(path) for path in server.spool.rglob("*"))


def test_a_job_is_cancelled_between_two_patches(client, server, monkeypatch):
    import threading

    (package,) = server.packages.values()
    begun, go = threading.Event(), threading.Event()
    inner = package.engine.begin

    def slow(patches):
        begun.set()
        go.wait(20)
        return inner(patches)

    object.__setattr__(package, "infer", slow)
    try:
        first, second = client.upload({"a.nii.gz": nifti_bytes(make_scan(5)), "b.nii.gz": nifti_bytes(make_scan(6))})
        running, waiting = (client.begin(scan["id"], server.id) for scan in (first, second))
        assert begun.wait(10)
        shown = client.get(f"/api/jobs/{running}").json
        assert shown["state"] == "running" and shown["stage"] == "network"
        assert client.get(f"/api/jobs/{waiting}").json["ahead"] == 1
        assert client.delete(f"/api/jobs/{waiting}").status == 204
        assert client.get(f"/api/jobs/{waiting}").json["state"] == "cancelled"
        threading.Timer(0.2, go.set).start()
        assert client.delete(f"/api/jobs/{running}").status == 204
    finally:
        go.set()
        object.__setattr__(package, "infer", inner)
    assert client.get(f"/api/jobs/{running}").json["state"] == "cancelled"
    assert client.get(f"/api/jobs/{running}/mask").status == 409
    assert client.finish(second["id"], server.id)["state"] == "done"  # begun again


def test_health_and_metrics(client, server):
    assert client.get("/health").json == {"status": "ok", "waiting": 0}
    wait(lambda: b'samkd_jobs_total{door="http",state="sent"}' in client.get("/metrics").body)
    lines = client.get("/metrics").body.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["samkd_resident_memory_bytes"]) > 1e7 and float(values["samkd_segmentation_seconds_total"]) > 0
