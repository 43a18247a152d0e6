"""What one server takes at most, and for how long it keeps it."""

import os
import shutil
import time
from collections import namedtuple

import pytest
from helpers.http_server import Client, Server, ServerProcess, nifti_bytes, wait
from helpers.packages import make_scan

from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.predict import predict_scan
from samkd.deploy.runtime.serve.http import door
from samkd.deploy.runtime.serve.http.options import HttpOptions, Limits
from samkd.volumes.io.nifti import write_scan
from samkd.volumes.io.scans import Source

Usage = namedtuple("Usage", "total used free")
SCAN = nifti_bytes(make_scan(3))


def limited(**limits) -> HttpOptions:
    return HttpOptions(port=0, limits=Limits(**limits))


def expire(server: Server, scan: str) -> None:
    """Let its last use be long ago."""
    long_ago = time.time() - 10 * 3600
    os.utime(server.spool / "scans" / scan / "scan.json", (long_ago, long_ago))


def test_jobs_that_wait_and_a_full_disk_are_answered_with_503(built, tmp_path, monkeypatch):
    with Server([built], tmp_path, limited(waiting=1, uploads=2)) as server:
        client = Client(server.port)
        scans = client.upload({f"{number}.nii.gz": SCAN for number in range(3)})
        monkeypatch.setattr(type(server.worker), "_next", lambda self: time.sleep(0.01))  # it takes nothing
        server.worker.call(lambda: None).result(10)
        client.begin(scans[0]["id"], server.id)
        answer = client.post("/api/jobs", {"scan": scans[1]["id"], "package": server.id})
        assert answer.status == 503 and "1 jobs wait" in answer.json["error"]
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/health").json["waiting"] == 1
        monkeypatch.undo()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 1 << 29))
        answer = client.send({"a.nii.gz": SCAN})
        assert answer.status == 503 and "nearly full" in answer.json["error"]
        assert client.get("/health").status == 503
        for number in range(5):  # each left its place to the next
            assert client.send({f"{number}.nii.gz": SCAN}).status == 503
        monkeypatch.undo()
        assert len(client.upload({"a.nii.gz": SCAN})) == 1


def test_scans_are_removed_when_nobody_uses_them_any_more(built, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "_LOOK", 0.05)
    with Server([built], tmp_path, limited(keep=3600.0)) as server:
        client = Client(server.port)
        kept, left = client.upload({"a.nii.gz": SCAN, "b.nii.gz": SCAN})
        assert kept["expires"] - time.time() == pytest.approx(3600, abs=60)
        jobs = [client.finish(scan["id"], server.id)["id"] for scan in (kept, left)]
        wait(lambda: server.worker.in_hand is None)  # what is in hand is in use
        expire(server, left["id"])
        wait(lambda: not (server.spool / "scans" / left["id"]).exists())
        assert client.get(f"/api/jobs/{jobs[1]}").status == 404
        assert client.get(f"/api/jobs/{jobs[0]}/mask").status == 200
        assert not (server.spool / "jobs" / jobs[1]).exists()
    expire(server, kept["id"])
    with Server([built], tmp_path):  # after a restart, too
        assert not list((tmp_path / "scans").iterdir()) and not list((tmp_path / "jobs").iterdir())


def test_scans_jobs_and_masks_outlast_a_restart(built, tmp_path):
    with Server([built], tmp_path) as server:
        client = Client(server.port)
        (scan,) = client.upload({"a.nii.gz": SCAN})
        job = client.finish(scan["id"], server.id)
        mask = client.get(f"/api/jobs/{job['id']}/mask").body
        (tmp_path / "scans" / ".upload-of-a-killed-server").mkdir()
    with Server([built], tmp_path) as server:
        client = Client(server.port)
        assert client.get(f"/api/jobs/{job['id']}").json == job
        assert client.get(f"/api/jobs/{job['id']}/mask").body == mask
        assert [path.name for path in (tmp_path / "scans").iterdir()] == [scan["id"]]


@pytest.mark.slow
def test_what_was_acknowledged_outlasts_a_kill(built, tmp_path):
    with ServerProcess(built, tmp_path, "--threads", "1") as server:
        client = Client(server.port)
        scans = client.upload({f"{number}.nii.gz": nifti_bytes(make_scan(number)) for number in range(6)})
        (package,) = client.get("/api/packages").json
        jobs = [client.begin(scan["id"], package["id"]) for scan in scans]
        server.kill()
    with ServerProcess(built, tmp_path, "--threads", "1") as server:
        client = Client(server.port)
        wait(lambda: all(client.get(f"/api/jobs/{job}").json["state"] == "done" for job in jobs))
        masks = [client.get(f"/api/jobs/{job}/mask").body for job in jobs]
        assert [client.begin(scan["id"], package["id"]) for scan in scans] == jobs  # none is done twice
    opened = Package.open(built, threads=1)
    for number, mask in enumerate(masks):
        write_scan(tmp_path / "scan.nii.gz", make_scan(number))
        predict_scan(opened, Source("scan", (tmp_path / "scan.nii.gz",)), tmp_path / "mask.nii.gz")
        assert mask == (tmp_path / "mask.nii.gz").read_bytes()


def test_an_upload_is_kept_whole_or_not_at_all(built, tmp_path):
    with Server([built], tmp_path) as server:
        answer = Client(server.port).send({"a.nii.gz": SCAN, "b.nii.gz": SCAN[:-9], "c.nii.gz": SCAN})
        assert answer.status == 400 and "b.nii.gz" in answer.json["error"]
        wait(lambda: not list((tmp_path / "scans").iterdir()))
