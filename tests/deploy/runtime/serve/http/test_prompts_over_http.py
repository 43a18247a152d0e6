"""Clicking a scan into shape through the HTTP interface, beside what the same prompts give on the command line."""

import io
import json
import time

import numpy as np
import pytest
from helpers.dicom_series import write_series
from helpers.http_server import Client, Server, nifti_bytes, wait
from helpers.packages import make_scan

from samkd.deploy.runtime.prompt import answers
from samkd.volumes.io.nifti import read_labels, write_scan
from samkd.volumes.io.scans import Source

pytestmark = pytest.mark.slow

CLICK = {"space": "voxel", "classes": {"liver": {"points": [[10, 12, 5, 1], [20, 8, 9, 0]]}}}
TWO = {"space": "voxel", "classes": {**CLICK["classes"], "left kidney": {"points": [[22, 15, 9, 1]]}}}


@pytest.fixture(scope="module")
def server(built_promptable, tmp_path_factory):
    with Server([built_promptable], tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server.port)


def test_masks_are_those_of_the_command_line_and_undo_brings_the_one_before_back(client, server, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", make_scan(3))
    (scan,) = client.upload({"scan.nii.gz": (tmp_path / "scan.nii.gz").read_bytes()})
    place = f"/api/scans/{scan['id']}"
    assert client.get(f"{place}/session?package={server.id}").json == {"state": "none", "fraction": 0.0}
    (package,) = server.packages.values()
    steps = [None, CLICK, TWO, CLICK]
    lines = [json.dumps(step).encode() for step in steps[1:]]
    written = answers(package, Source("scan", (tmp_path / "scan.nii.gz",)), tmp_path / "mask.nii.gz", lines)
    bodies = []
    for step, row in zip(steps, written, strict=True):
        answer = client.post(f"{place}/prompts", {"package": server.id, "prompts": step})
        assert answer.status == 200, answer.body
        assert answer.body == (tmp_path / "mask.nii.gz").read_bytes()
        assert json.loads(answer.headers["x-volumes-ml"]) == row["volumes_ml"]
        bodies.append(answer.body)
    assert bodies[1] == bodies[3] and len(set(bodies)) == 3
    assert client.get(f"{place}/session?package={server.id}").json == {"state": "ready", "fraction": 1.0}
    (tmp_path / "none.nii.gz").write_bytes(bodies[0])
    assert read_labels(tmp_path / "none.nii.gz")[0].shape == make_scan(3).array.shape[1:]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"classes": {"spleen": {"points": [[1, 2, 3]]}}}, "spleen"),
        ({"classes": {"liver": {"points": [[1, 2]]}}}, "expected x,y,z"),
        ({"space": "voxel", "classes": {"liver": {"points": [[999, 0, 0]]}}}, "point"),
        ({"space": "voxel", "classes": {"liver": {"boxes": [[0, 0, 0, 5, 5, 5]]}}}, "takes no prompt of the kind box"),
        ("<script>", "expected an object"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(client, server, prompts, words):
    (scan,) = client.upload({"scan.nii.gz": nifti_bytes(make_scan(3))})
    answer = client.post(f"/api/scans/{scan['id']}/prompts", {"package": server.id, "prompts": prompts})
    assert answer.status == 400 and words in answer.json["error"]


def test_the_same_prompts_give_a_dicom_seg_of_the_same_uids(client, server, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    (scan,) = client.upload({"scan.nii.gz": nifti_bytes(make_scan(3))})
    answer = client.post(f"/api/scans/{scan['id']}/prompts?as=seg", {"package": server.id, "prompts": CLICK})
    assert answer.status == 409 and "is no DICOM" in answer.json["error"]
    files = write_series(tmp_path / "ct", make_scan(3).array[0].astype(np.int16), spacing=(2.0, 1.5, 1.4))
    (scan,) = client.upload({file.name: file.read_bytes() for file in files})
    place, values = f"/api/scans/{scan['id']}/prompts", {"package": server.id, "prompts": CLICK}
    one, other = (pydicom.dcmread(io.BytesIO(client.post(f"{place}?as=seg", values).body)) for _ in range(2))
    assert one.SOPInstanceUID == other.SOPInstanceUID
    (tmp_path / "mask.nii.gz").write_bytes(client.post(place, values).body)
    assert int((one.pixel_array > 0).sum()) == int((read_labels(tmp_path / "mask.nii.gz")[0] > 0).sum())


def test_a_click_does_not_wait_for_the_scan_in_hand(client, server):
    """It is answered between two patches; the job goes on after it, and its mask is what it would have been."""
    clicked, queued = client.upload({"a.nii.gz": nifti_bytes(make_scan(3)), "b.nii.gz": nifti_bytes(make_scan(4))})
    (package,) = server.packages.values()
    alone = client.finish(queued["id"], server.id)
    mask = client.get(f"/api/jobs/{alone['id']}/mask").body
    assert client.delete(f"/api/jobs/{alone['id']}").status == 204
    inner = package.infer

    def slow(*inputs):
        time.sleep(0.2)
        return inner(*inputs)

    object.__setattr__(package, "infer", slow)
    try:
        job = client.begin(queued["id"], server.id)
        wait(lambda: client.get(f"/api/jobs/{job}").json["stage"] == "network")
        answer = client.post(f"/api/scans/{clicked['id']}/prompts", {"package": server.id, "prompts": CLICK})
        assert answer.status == 200
        assert client.get(f"/api/jobs/{job}").json["state"] == "running"
        wait(lambda: client.get(f"/api/jobs/{job}").json["state"] == "done")
    finally:
        object.__setattr__(package, "infer", inner)
    assert client.get(f"/api/jobs/{job}/mask").body == mask


def test_sessions_go_when_there_is_no_more_room(client, server):
    sessions = server.door._api.sessions
    scans = client.upload({f"{number}.nii.gz": nifti_bytes(make_scan(number)) for number in range(3)})
    for scan in scans:
        client.post(f"/api/scans/{scan['id']}/prompts", {"package": server.id, "prompts": CLICK})
    sizes = [session.nbytes for session, _ in sessions._sessions.values()]
    assert min(sizes) > np.prod(make_scan(0).array.shape)
    sessions._most_bytes = max(sizes)
    client.post(f"/api/scans/{scans[0]['id']}/prompts", {"package": server.id, "prompts": CLICK})
    assert [key[0] for key in sessions._sessions] == [scans[0]["id"]]
    client.delete(f"/api/scans/{scans[0]['id']}")
    assert not sessions._sessions
