"""Hostile peers of the DICOM node, which is a process of its own: refused or dropped, and it works on as before."""

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.fuzzing import mutated
from helpers.served import Server, free_port, states, wait

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed: pip install 'samkd[serve]'")

import pydicom
import pynetdicom
from helpers.dicom_peers import Pacs, associated, connect, encoded, ended, p_data, recorded, send, store, write_ct
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from samkd.deploy.runtime.serve.dicom_guard import LONGEST_PDU, told_in_a_line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc, which is Linux's"),
]
MUTATIONS = int(os.environ.get("SAMKD_MUTATIONS", "60"))  # 200 have passed
LARGEST = 8_000_000  # bytes
MOST_GROWTH = 100  # MB of memory, which all attacks together may cost


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    pacs = Pacs(free_port())
    pacs.start()
    yield pacs
    pacs.stop()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(built, place, pacs, port) -> Iterator[Server]:
    """A node that has segmented one study, so that all which it needs is in memory, and is then attacked."""
    words = ["--dicom", f"SAMKD:{port}", "--send", f"PACS@127.0.0.1:{pacs.port}", "--spool", place / "spool"]
    words += ["--allow", "SCANNER", "--allow-address", "127.0.0.1", "--quiet", "0.2", "--threads", "1"]
    words += ["--reserve", "1M", "--largest-object", f"{LARGEST / 1e6}M"]
    server = Server(built, *words, log=place / "log.txt")
    server.start()
    works(port, pacs, place, seed=1)
    yield server
    works(port, pacs, place, seed=2)
    assert server.stop() == 143


@pytest.fixture(autouse=True)
def as_before(server, port, slices) -> Iterator[None]:
    """After each attack: an object is stored, no connection and no thread is left, and memory is bounded."""
    files, threads, memory = server.open_files(), server.threads(), server.memory()
    yield
    assert server.alive(), server.log()
    wait(lambda: server.open_files() <= files and server.threads() <= threads, seconds=60)
    assert send(port, slices[:1]) == [0]
    assert server.memory() < memory + MOST_GROWTH
    assert "Traceback" not in server.log() and "Planted" not in server.log()


@pytest.fixture(scope="module")
def slices(place) -> list[Path]:
    return write_ct(place / "slices")


def works(port: int, pacs: Pacs, place: Path, *, seed: int) -> None:
    """Send a study, and wait for its mask."""
    ct = write_ct(place / f"ct-{time.monotonic_ns()}", seed=seed)
    study = pydicom.dcmread(ct[0]).StudyInstanceUID
    assert set(send(port, ct)) == {0}
    wait(lambda: [seg for seg in pacs.objects if seg.StudyInstanceUID == study])


@pytest.fixture(scope="module")
def stream(server, port, place) -> list[bytes]:
    return recorded(port, write_ct(place / "recorded")[0])


def damaged(stream: list[bytes], rng: random.Random) -> list[bytes]:
    """The PDUs with one of them damaged, repeated, left out, or with false claims about its type or its lengths."""
    pdus = list(stream)
    at, kind = rng.randrange(len(pdus)), rng.randrange(8)
    pdu = bytearray(pdus[at])
    if kind == 0:
        pdu[0] = rng.choice((0, 2, 3, 6, 7, 8, 9, 0x47, 0xFF, rng.randrange(256)))
    elif kind == 1:
        length = rng.choice((0, 1, len(pdu) - 7, len(pdu) - 5, LONGEST_PDU + 1, 1 << 31, (1 << 32) - 1))
        pdu[2:6] = struct.pack(">L", length)
    elif kind == 2 and len(pdu) > 10:  # the length of the first item in it
        pdu[6:10] = struct.pack(">L", rng.choice((0, 1, 1 << 20, (1 << 32) - 1)))
    elif kind == 3:
        del pdu[rng.randrange(len(pdu)) :]
    elif kind == 4:
        pdus.insert(rng.randrange(len(pdus)), rng.choice(pdus))
    elif kind == 5:
        rng.shuffle(pdus)
        return pdus
    else:
        pdu = bytearray(mutated(bytes(pdu), rng))
    pdus[at] = bytes(pdu)
    return pdus


def test_damaged_pdus_are_refused_or_dropped(stream, server, port):
    """Each in a connection of its own, of which never so many are left that the next is refused as one of a crowd."""
    rng, threads = random.Random(0), server.threads()
    for _ in range(MUTATIONS):
        wait(lambda: server.threads() < threads + 20)
        first, *others = damaged(stream, rng)
        with closing(connect(port)) as connection, suppress(OSError):
            connection.settimeout(0.05)
            connection.sendall(first)
            connection.recv(1 << 16)
            connection.sendall(b"".join(others))
            connection.shutdown(socket.SHUT_WR)
            ended(connection, 0.05)


def test_unknown_titles_and_addresses_are_not_let_in(server, port, place):
    entity = pynetdicom.AE(ae_title="STRANGER")
    entity.add_requested_context(Verification)
    refused = entity.associate("127.0.0.1", port, ae_title="SAMKD")
    assert refused.is_rejected and "AE title is not allowed" in server.log()
    entity.ae_title = "SCANNER"
    assert entity.associate("127.0.0.1", port, ae_title="OTHER").is_rejected
    with closing(socket.socket()) as connection:
        connection.bind(("127.0.0.2", 0))
        connection.connect(("127.0.0.1", port))
        assert ended(connection)
    assert "127.0.0.2: connection refused: its address is not allowed" in server.log()


def test_a_pdu_that_claims_gigabytes_is_not_waited_for(stream, server, port):
    for claim in (b"\x01\x00\xff\xff\xff\xff", b"\x04\x00\xff\xff\xff\xff", struct.pack(">BBL", 1, 0, LONGEST_PDU + 1)):
        with closing(connect(port)) as connection:
            connection.sendall(claim)
            assert ended(connection)
    with closing(associated(port, stream[0])) as connection:
        connection.sendall(b"\x04\x00\xff\xff\xff\xff")
        assert ended(connection)


@pytest.mark.parametrize("of", ["a command", "an object"])
def test_parts_without_an_end_are_broken_off(stream, server, port, of):
    """Also those of an object that is really that large: the sender may say it, but not at the node's expense."""
    before = server.memory(peak=True)
    with closing(associated(port, stream[0])) as connection:
        if of == "an object":
            connection.sendall(stream[1])
        part, sent = p_data(1, bytes(16000), command=of == "a command"), 0
        with suppress(OSError):
            while sent < 20 * LARGEST:
                connection.sendall(part)
                sent += len(part)
        assert sent < 20 * LARGEST
    assert "8 MB at once" in server.log() and server.memory(peak=True) < before + MOST_GROWTH


def test_objects_that_arrive_at_once_share_the_limit(stream, server, port):
    part = p_data(1, bytes(16000))
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(associated(port, stream[0]))) for _ in range(4)]
        with suppress(OSError):
            for connection in connections:
                connection.sendall(stream[1])
            for _ in range(LARGEST // 4 // len(part) + 20):
                for connection in connections:
                    connection.sendall(part)
        wait(lambda: any(ended(connection, 0.1) for connection in connections))


def test_a_crowd_is_refused(server, port):
    """Connections that ask for nothing are kept for ten seconds: 16 of them, with more of them nobody is let in."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(closing(connect(port))) for _ in range(60)]
        wait(lambda: "connection refused: there are too many" in server.log())
        assert server.threads() < 100
        entity = pynetdicom.AE(ae_title="SCANNER")
        entity.add_requested_context(Verification)
        assert not entity.associate("127.0.0.1", port, ae_title="SAMKD").is_established
        assert all([ended(connection, 20) for connection in crowd])


def test_an_association_is_let_in_when_others_have_gone(stream, port):
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(closing(associated(port, stream[0])))
        entity = pynetdicom.AE(ae_title="SCANNER")
        entity.add_requested_context(Verification)
        assert entity.associate("127.0.0.1", port, ae_title="SAMKD").is_rejected


def test_objects_that_are_not_what_the_command_says_are_refused(port, place):
    one, other, *_ = write_ct(place / "lies")
    assert store(port, one, encoded(other)) == 0xA900
    assert store(port, one, b"\xff" * 500) in (0xC000, 0xA900)
    rng = random.Random(0)
    for _ in range(12):
        assert store(port, one, mutated(encoded(one), rng)) in (0, 0xC000, 0xA900)


def test_uids_like_paths_stay_in_the_spool(port, place):
    before = {path for path in place.rglob("*") if "spool" not in path.parts}
    for uid in ("../../../../escape", "/escape", "..", "1.2.3/../../escape", "%2e%2e%2f", "1" * 64):
        for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            file = write_ct(place / f"ct-{time.monotonic_ns()}")[0]
            before |= {file.parent, *file.parent.iterdir()}
            dataset = pydicom.dcmread(file)
            setattr(dataset, name, uid)
            dataset.save_as(file)
            assert store(port, file, encoded(file)) in (0, 0xC000, 0xA900)
    wait(lambda: not any((place / "spool" / "taken").iterdir()))
    assert {path for path in place.rglob("*") if "spool" not in path.parts} <= before
    assert not list(Path("/").glob("escape*"))


def test_pixels_that_are_claimed_and_not_sent_cost_nothing(server, port, place):
    file = write_ct(place / "claims")[0]
    content, before = encoded(file), server.memory(peak=True)
    pixels = content.rindex(b"\xe0\x7f\x10\x00OW")
    for claim in (1 << 20, 1 << 31, (1 << 32) - 2, (1 << 32) - 1):
        claimed = content[: pixels + 8] + struct.pack("<L", claim) + content[pixels + 12 :]
        assert store(port, file, claimed) in (0, 0xC000)
    dataset = pydicom.dcmread(file)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 65535, 65535, 4000
    dataset.save_as(file)
    assert store(port, file, encoded(file)) == 0
    wait(lambda: not any((place / "spool" / "taken").iterdir()))
    wait(lambda: not {"received", "segmented"} & set(states(place / "spool")))
    assert server.memory(peak=True) < before + MOST_GROWTH


def test_a_signal_ends_it_while_a_peer_is_silent_in_the_middle_of_a_pdu(built, stream, tmp_path):
    """Threads that wait for a peer must not keep the process."""
    port = free_port()
    words = ["--dicom", f"SAMKD:{port}", "--send", "PACS@127.0.0.1:9", "--spool", tmp_path / "spool"]
    server = Server(built, *words, "--reserve", "1M", "--threads", "1", log=tmp_path / "log.txt")
    server.start()
    with closing(connect(port)) as half, closing(associated(port, stream[0])) as whole:
        half.sendall(stream[0][:30])
        whole.sendall(stream[1][:30])
        time.sleep(0.3)
        assert server.stop(10) == 143


def test_what_breaks_down_in_a_thread_of_pynetdicom_is_a_line_of_the_log(log_lines):
    def run() -> None:
        raise RuntimeError("Invalid event 'Evt4' for the current state 'Sta13'")

    told_in_a_line(run, SimpleNamespace(requestor=SimpleNamespace(address="10.0.0.7")))
    assert log_lines == ["warning: 10.0.0.7: association broken off: PDUs in no order (RuntimeError)"]
