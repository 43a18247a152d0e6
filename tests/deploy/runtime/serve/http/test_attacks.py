"""What nobody in a ward would send: refused with one sentence, the process alive, its memory bounded, nothing kept."""

import gzip
import io
import socket
import stat
import struct
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
from helpers.dicom_series import edit, write_series
from helpers.http_server import Client, ServerProcess, form, nifti_bytes, wait
from helpers.packages import make_scan

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-tests-0123456789"
ROUTES = ("/", "/page/index.html", "/metrics", "/api/packages", "/api/scans/x/image", "/api/jobs/x", "/api/jobs/x/mask")
MOST = 90 << 20  # bytes of memory that all of the attacks may take together: an upload of 40 MB, and what holds it


@pytest.fixture(scope="module")
def server(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(f"{TOKEN}\n")
    words = ["--token-file", "token", "--names", "ward.example", "--max-upload", "40M", "--max-expanded", "60M"]
    words += ["--max-files", "1000", "--max-uploads", "2", "--patience", "1s", "--threads", "1"]
    with ServerProcess(built, folder, *words) as running:
        client = Client(running.port, Authorization=f"Bearer {TOKEN}")
        (scan,) = client.upload({"Muster.nii.gz": nifti_bytes(make_scan(3))})
        (package,) = client.get("/api/packages").json
        assert client.finish(scan["id"], package["id"])["state"] == "done"  # all that it does is loaded
        assert client.delete(f"/api/scans/{scan['id']}").status == 204
        before = running.peak_bytes()
        yield running
        assert running.is_alive
        assert running.peak_bytes() - before < MOST
        log = running.log()
        assert TOKEN not in log and "Muster" not in log and "Traceback" not in log


@pytest.fixture
def client(server):
    yield Client(server.port, Authorization=f"Bearer {TOKEN}")
    assert server.is_alive and Client(server.port).get("/health").status == 200
    wait(lambda: server.files() == [])


def refused(answer, status: int, *words: str) -> None:
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"] == "application/json" and len(answer.json["error"]) < 500
    for word in words:
        assert word in answer.json["error"]


def exchange(server, *parts: bytes, pause: float = 0.0, seconds: float = 10) -> bytes:
    """All that a server answers on a socket of its own until it hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while piece := connection.recv(1 << 16):
                answer += piece
        except ConnectionError:  # it hung up while we sent
            pass
        return answer


def head(*lines: str, path: str = "/api/scans") -> bytes:
    first = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer"])
def test_without_the_token_nothing_is_told(server, route, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    refused(Client(server.port, **headers).get(route), 401, "Token")
    refused(Client(server.port, Cookie="samkd=wrong").get(f"{route}?token={TOKEN[:-1]}"), 401)


def test_the_token_in_the_address_becomes_a_cookie(server):
    answer = Client(server.port).get(f"/?token={TOKEN}")
    assert answer.status == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert Client(server.port, Cookie=cookie.split(";")[0]).get("/api/packages").status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::", "ward.example@evil"])
def test_another_host_is_refused(client, host):
    refused(client.get("/api/packages", Host=host), 421)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8080", "WARD.example", "ward.example.:443"])
def test_our_own_names_are_not(client, host):
    assert client.get("/api/packages", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": "http://127.0.0.1:1"},
    ],
)
def test_a_cross_site_post_is_refused(client, server, headers):
    body, kind = form({"a.nii.gz": nifti_bytes(make_scan(3))})
    refused(client.request("POST", "/api/scans", body, Content_Type=kind, **headers), 403, "Origin")
    refused(client.delete("/api/scans/x", **headers), 403)
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec_Fetch_Site": "same-origin"}
    refused(client.post("/api/jobs", {"scan": "x"}, **own), 404)


@pytest.mark.parametrize(
    "name", ["../evil.nii.gz", "a/../../evil.nii.gz", "/etc/evil.nii.gz", "C:/evil.nii.gz", "..\\evil.nii.gz", "..", ""]
)
def test_names_that_lead_out_are_refused(client, server, name):
    refused(client.send({name: nifti_bytes(make_scan(3))}), 400, "..")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr(name or "..", nifti_bytes(make_scan(3)))
    refused(client.send({"scans.zip": content.getvalue()}), 400, "..")
    assert not list(server.folder.rglob("*evil*")) and not list(server.folder.parent.glob("*evil*"))


@pytest.mark.parametrize("path", ["/page/../door.py", "/page/%2e%2e/door.py", "/api/scans/..%2f..%2fjobs/image", "/x"])
def test_paths_that_lead_out_are_not_there(client, path):
    refused(client.get(path), 404)


def test_links_and_passwords_in_archives_are_refused(client):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        link = zipfile.ZipInfo("a.nii.gz")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    refused(client.send({"scans.zip": content.getvalue()}), 400, "is a link")
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as packed:
        packed.writestr("a.nii.gz", b"x")
    raw = bytearray(plain.getvalue())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    refused(client.send({"scans.zip": bytes(raw)}), 400, "encrypted")


def test_a_zip_bomb_is_refused_when_it_has_unpacked_too_much(client):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("a.nii", "w") as entry:
        for _ in range(80):
            entry.write(bytes(1 << 20))
    assert len(content.getvalue()) < 1 << 20
    refused(client.send({"bomb.zip": content.getvalue()}), 413, "unpacks to more than 0.1 GB")


def test_a_scan_whose_header_announces_too_much_is_refused_before_it_is_read(client):
    header = bytearray(gzip.decompress(nifti_bytes(make_scan(3)))[:352])
    struct.pack_into("<4h", header, 40, 3, 1000, 1000, 1000)
    refused(client.send({"bomb.nii.gz": gzip.compress(bytes(header) + bytes(8 << 20))}), 413, "8.0 GB")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(client):
    pillow = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    pillow.new("L", (4000, 4000)).save(content, "PNG")
    assert len(content.getvalue()) < 1 << 20
    refused(client.send({"bomb.png": content.getvalue()}), 413, "takes 0.1 GB")


@pytest.fixture(scope="module")
def many():
    """A zip of 100,000 empty files."""
    names = [f"{number:05}".encode() for number in range(100_000)]
    local = b"".join(b"PK\3\4" + struct.pack("<5H3I2H", 20, 0, 0, 0, 33, 0, 0, 0, 5, 0) + name for name in names)
    entries = (
        b"PK\1\2" + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 33, 0, 0, 0, 5, 0, 0, 0, 0, 0, 35 * at) + name
        for at, name in enumerate(names)
    )
    listed = b"".join(entries)
    assert len(local) == 35 * len(names) and len(listed) == 51 * len(names)
    return local + listed + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, len(listed), len(local), 0)


def test_a_hundred_thousand_files_are_refused(client, many):
    refused(client.send({"many.zip": many}), 413, "more than 1000 files")
    lying = bytearray(many)
    end = lying.rindex(b"PK\5\6")
    struct.pack_into("<HH", lying, end + 8, 1, 1)  # one file, it says
    refused(client.send({"many.zip": bytes(lying)}), 413, "more than 1000 files")
    boundary = "x" * 20
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n\r\n'.encode()
    body, kind = part * 100_000 + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
    refused(client.request("POST", "/api/scans", body, Content_Type=kind), 413, "more than 1000 files")


def test_a_claim_of_four_gigabytes_is_refused_at_once(server, client):
    started = time.monotonic()
    answer = exchange(server, head(f"Content-Length: {4 << 30}", "Content-Type: multipart/form-data; boundary=x"))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than" in answer and time.monotonic() - started < 1


def test_a_claim_with_a_short_body_ends_when_nothing_more_comes(server, client):
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\nabc'
    answer = exchange(server, head("Content-Length: 30000000", "Content-Type: multipart/form-data; boundary=x"), start)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"Nothing of the body came" in answer


def test_a_body_without_a_length_ends_at_the_limit(server, client):
    lines = ("Transfer-Encoding: chunked", "Content-Type: multipart/form-data; boundary=x")
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n'
    pieces = [b"100000\r\n" + bytes(1 << 20) + b"\r\n"] * 90
    answer = exchange(server, head(*lines), b"%x\r\n" % len(start) + start + b"\r\n", *pieces)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # empty: it hung up while we still sent


def test_a_client_that_is_slow_with_its_headers_or_its_body_is_left(server, client):
    started = time.monotonic()
    assert exchange(server) == b""
    assert exchange(server, b"GET / HTTP/1.1\r\n", b"Host: 127", b".0.0", b".1\r\n", pause=0.4) == b""
    lines = head("Content-Length: 1000", "Content-Type: multipart/form-data; boundary=x")
    answer = exchange(server, lines, *[b"-"] * 20, pause=0.3)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")  # empty: it hung up while we still sent
    assert time.monotonic() - started < 10


def test_requests_with_bytes_changed_and_lost_end_nothing(server, client):
    rng = np.random.default_rng(16)
    body, kind = form({"a.nii.gz": nifti_bytes(make_scan(3))})
    whole = head(f"Content-Length: {len(body)}", f"Content-Type: {kind}") + body
    statuses = Counter()
    for number in range(300):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole) if number % 2 else 400, rng.integers(1, 8)):
            changed[at] = rng.integers(256)
        cut = int(rng.integers(1, len(changed))) if number % 3 == 0 else len(changed)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(changed[:cut])
            connection.shutdown(socket.SHUT_WR)
            try:
                statuses[connection.recv(1 << 16)[9:12].decode()] += 1
            except ConnectionError:
                statuses[""] += 1
    assert not any(status.startswith("50") for status in statuses), statuses
    for scan in server.files():  # what was still sound was taken
        if not scan.startswith("."):
            client.delete(f"/api/scans/{scan}")


def test_uploads_at_once_are_bounded(server, client):
    lines = head("Content-Length: 1000", "Content-Type: multipart/form-data; boundary=x")
    with (
        socket.create_connection(("127.0.0.1", server.port)) as one,
        socket.create_connection(one.getpeername()) as two,
    ):
        one.sendall(lines)
        two.sendall(lines)
        time.sleep(0.2)
        answer = client.send({"a.nii.gz": nifti_bytes(make_scan(3))})
        refused(answer, 503, "2 uploads are under way")
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", "multipart/form-data; boundary=x", "ends before its last boundary"),
        (b"--x\r\n", "multipart/form-data", "no form of files"),
        (b"{}", "application/json", "no form of files"),
        (b"garbage", "multipart/form-data; boundary=x", "damaged"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", ""),
    ],
)
def test_bodies_that_are_no_form_are_refused(client, content, kind, words):
    refused(client.request("POST", "/api/scans", content, Content_Type=kind), 400, words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("Muster.nii.gz", b"no scan", "Muster.nii.gz"),
        ("Muster.nii", nifti_bytes(make_scan(3))[:100], "Muster.nii"),
        ("Muster.png", b"\x89PNG\r\n\x1a\nxx", "Muster.png"),
        ("Muster.txt", b"Dear colleague", "no scan here"),
        ("Muster.zip", b"PK", "no zip archive"),
    ],
)
def test_what_the_strict_readers_refuse_is_told_in_the_users_words(client, server, name, content, words):
    answer = client.send({name: content})
    refused(answer, 400, words)
    assert str(server.folder) not in answer.json["error"] and ".upload-" not in answer.json["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"scan": {"$ne": 1}}', b"\xff"])
def test_json_that_is_none_is_refused(client, body):
    answer = client.request("POST", "/api/jobs", body, Content_Type="application/json")
    refused(answer, 404 if b"ne" in body else 400)


def test_html_in_a_header_or_a_name_is_never_more_than_data(client, server, tmp_path):
    files = write_series(tmp_path / "ct", (make_scan(3).array[0] + 1024).astype(np.int16))
    evil = "<script>alert(1)</script>"
    for file in files:
        edit(file, SeriesDescription=evil, PatientName="Muster^Hans", StudyDescription=evil)
    answer = client.send({f"<img src=x onerror=alert(1)>{file.name}": file.read_bytes() for file in files})
    (scan,) = answer.json["scans"]
    assert answer.headers["content-type"] == "application/json"
    assert b"script" not in answer.body and b"Hans" not in answer.body
    for path in ("/", "/api/packages", "/api/jobs/x", f"/api/scans/{scan['id']}/image"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if path == "/" else "no-store") and "server" not in headers
    assert client.delete(f"/api/scans/{scan['id']}").status == 204
