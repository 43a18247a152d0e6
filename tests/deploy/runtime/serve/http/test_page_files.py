"""What the server does for the page alone: its files, when a scan expires, and where the viewer is missing."""

import time

import pytest
from helpers.http_server import Client, Server, nifti_bytes
from helpers.packages import make_scan
from helpers.paths import ROOT

from samkd.deploy.runtime.serve.http import door

pytestmark = pytest.mark.slow


@pytest.fixture
def server(built, tmp_path, monkeypatch, log_lines):
    """One whose page has no viewer."""
    files = {name: file for name, file in door.page_files().items() if name != door.VIEWER}
    monkeypatch.setattr(door, "page_files", lambda: files)
    with Server([built], tmp_path / "spool") as running:
        yield running


def test_every_file_of_the_page_is_served_as_what_it_is_and_the_missing_viewer_is_told(server, log_lines):
    client = Client(server.port)
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
    page = ROOT / "deploy" / "runtime" / "serve" / "page"
    files = [path for path in page.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        answer = client.get(f"/page/{path.relative_to(page).as_posix()}")
        assert answer.status == 200 and answer.body == path.read_bytes()
        assert answer.headers["content-type"] == f"{kinds[path.suffix]}; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy and "unsafe" not in policy and "default-src 'none'" in policy
    assert client.get("/page/none.js").status == client.get("/page/..%2fserver.py").status == 404
    (warning,) = (line for line in log_lines if line.startswith("warning"))
    assert "the page has no viewer" in warning and "make web" in warning


def test_asking_when_a_scan_expires_is_no_use_of_it_and_a_seg_is_for_dicom_alone(server):
    client = Client(server.port)
    (scan,) = client.upload({"scan.nii.gz": nifti_bytes(make_scan(1))})
    time.sleep(0.05)
    assert client.get(f"/api/scans/{scan['id']}").json == scan
    assert client.get(f"/api/scans/{scan['id']}/image").status == 200
    assert client.get(f"/api/scans/{scan['id']}").json["expires"] > scan["expires"]
    assert client.post(f"/api/scans/{scan['id']}/prompts?as=seg", {"package": server.id}).status == 409
    assert client.post(f"/api/scans/{scan['id']}/prompts?as=x", {"package": server.id}).status == 400
    assert client.delete(f"/api/scans/{scan['id']}").status == 204
    assert client.get(f"/api/scans/{scan['id']}").status == 404
