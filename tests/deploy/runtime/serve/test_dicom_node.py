"""The DICOM node among peers: pynetdicom's in the test, and where they are installed DCMTK and Orthanc."""

import json
import shutil
import subprocess
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom_series import IDENTITY, edit, write_series
from helpers.packages import make_scan
from helpers.served import ORTHANC, Orthanc, free_port, states, wait

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed: pip install 'samkd[serve]'")

import pydicom
import pynetdicom
from helpers.dicom_peers import Pacs, associated, connect, ended, recorded, send, write_ct
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.predict import predict_scan
from samkd.deploy.runtime.serve import dicom_guard, dicom_node, worker
from samkd.deploy.runtime.serve.dicom_node import DicomDoor, NodeOptions
from samkd.deploy.runtime.serve.dicom_peer import Peer
from samkd.deploy.runtime.serve.spool import FAILED, SENT, Spool
from samkd.deploy.runtime.serve.worker import Worker
from samkd.errors import UsageError
from samkd.volumes.io.scans import Source

pytestmark = pytest.mark.slow

Usage = namedtuple("Usage", "total used free")


def needs(*programs: str):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (Debian: dcmtk)")


@pytest.fixture(scope="module")
def opened(built):
    return Package.open(built, threads=1)


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    pacs = Pacs(free_port())
    pacs.start()
    yield pacs
    pacs.stop()


@pytest.fixture
def node(opened, pacs, tmp_path, monkeypatch):
    """Start the node, as often as is wanted; the one before ends first."""
    monkeypatch.setattr(dicom_node, "AFTER_RELEASE", 0.2)
    monkeypatch.setattr(worker, "LONGEST_WAIT", 0.2)
    running = []

    def start(**changes) -> DicomDoor:
        stop()
        packages = {opened.manifest.digest: opened}
        spool = Spool(tmp_path / "spool")
        peers = (Peer("PACS", "127.0.0.1", pacs.port),)
        options = NodeOptions(**{"title": "SAMKD", "port": 0, "peers": peers, "quiet": 0.5, "reserve": 1, **changes})
        door = DicomDoor(options, spool=spool, packages=packages)
        one = Worker(spool, packages, {door.name: door})
        one.start()
        door.start(one)
        running.extend([door.stop, one.stop, spool.close])
        return door

    def stop() -> None:
        while running:
            running.pop(0)()

    yield start
    stop()


@pytest.fixture
def ct(tmp_path) -> list[Path]:
    """A CT of two bodies, whose header names a patient."""
    return write_ct(tmp_path / "ct")


def test_a_study_comes_back_as_the_mask_of_predict(node, pacs, ct, opened, tmp_path, log_lines):
    assert send(node().port, ct) == [0] * len(ct)
    wait(lambda: states(tmp_path / "spool") == [SENT])
    predict_scan(opened, Source("ct", tuple(ct)), tmp_path / "mask.dcm")
    mask = pydicom.dcmread(tmp_path / "mask.dcm")
    (seg,) = pacs.objects
    assert seg.pixel_array.tobytes() == mask.pixel_array.tobytes() and seg.pixel_array.any()
    source = pydicom.dcmread(ct[0])
    assert seg.StudyInstanceUID == source.StudyInstanceUID and seg.PatientName == source.PatientName
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {pydicom.dcmread(file).SOPInstanceUID for file in ct}
    assert f"series {source.SeriesInstanceUID}: mask delivered to PACS@" in "\n".join(log_lines)
    assert not [value for value in IDENTITY.values() if value in "\n".join(log_lines)]
    assert not list((tmp_path / "spool").rglob("*.dcm"))  # nothing of the patient stays


def test_what_fits_no_package_is_left_alone_and_named_by_its_uid(node, pacs, ct, tmp_path, log_lines):
    scout = write_ct(tmp_path / "scout")[:1]
    edit(scout[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    mr = write_series(tmp_path / "mr", make_scan(4).array[0].astype(np.int16), modality="MR")
    study = pydicom.dcmread(ct[0]).StudyInstanceUID
    for file in (*scout, *mr):
        edit(file, StudyInstanceUID=study)
    assert set(send(node().port, [*ct, *scout, *mr])) == {0}
    wait(lambda: len(pacs.objects) == 1 and states(tmp_path / "spool") == [SENT])
    for file, why in ((scout[0], "a localizer"), (mr[0], "MR")):
        assert f"series {pydicom.dcmread(file).SeriesInstanceUID}: left alone ({why})" in "\n".join(log_lines)
    assert not [value for value in IDENTITY.values() if value in "\n".join(log_lines)]


def test_a_study_that_is_sent_again_is_answered_once(node, pacs, ct, tmp_path):
    door = node()
    assert set(send(door.port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == [SENT])
    assert set(send(door.port, list(reversed(ct)))) == {0}
    wait(lambda: not any((tmp_path / "spool" / "incoming").iterdir()))
    wait(lambda: not any((tmp_path / "spool" / "taken").iterdir()))
    assert set(send(node().port, ct)) == {0}  # of the next process
    wait(lambda: not any((tmp_path / "spool" / "taken").iterdir()))
    time.sleep(0.5)
    assert states(tmp_path / "spool") == [SENT] and len(pacs.objects) == 1


def test_a_transfer_that_broke_waits_for_the_rest(node, pacs, ct, tmp_path):
    door = node(quiet=1.0)
    assert set(send(door.port, ct[:9], break_off=True)) == {0}
    time.sleep(0.4)
    assert set(send(door.port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == [SENT])
    (seg,) = pacs.objects
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(ct)


def test_masks_wait_for_a_pacs_that_is_away_or_full(node, pacs, ct, tmp_path):
    pacs.stop()
    assert set(send(node().port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == ["segmented"])
    pacs.statuses = [0xA700, 0xC001]
    pacs.start()
    wait(lambda: states(tmp_path / "spool") == [SENT])
    assert len(pacs.objects) == 3 and len({seg.SOPInstanceUID for seg in pacs.objects}) == 1


def test_a_mask_whose_arrival_was_not_noted_is_sent_as_the_same_object(node, pacs, ct, tmp_path):
    node_one = node()
    pacs.statuses = [0xC001]  # it keeps the object, but says otherwise
    assert set(send(node_one.port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == [SENT])
    pacs.statuses = []
    first, second = pacs.objects
    assert first.SOPInstanceUID == second.SOPInstanceUID and first.SeriesInstanceUID == second.SeriesInstanceUID


def test_a_series_that_cannot_be_used_is_kept_and_tried_when_it_comes_again(node, pacs, ct, tmp_path):
    door = node()
    assert set(send(door.port, [*ct[:4], *ct[6:]])) == {0}  # a gap
    wait(lambda: states(tmp_path / "spool") == [FAILED])
    assert len(list((tmp_path / "spool" / "jobs").rglob("*.dcm"))) == len(ct) - 2
    assert set(send(door.port, ct)) == {0}
    wait(lambda: sorted(states(tmp_path / "spool")) == [FAILED, SENT])
    assert len(pacs.objects) == 1


def test_unknown_callers_and_addresses_are_not_let_in(node, ct):
    door = node(callers=("SCANNER", "CT2"))
    assert send(door.port, ct[:1]) == [0] and send(door.port, ct[:1], title="STRANGER") == []
    assert send(node(addresses=("192.0.2.7",)).port, ct[:1]) == []
    assert send(node(addresses=("192.0.2.7", "127.0.0.1")).port, ct[:1]) == [0]
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(Verification)
    assert not entity.associate("127.0.0.1", door.port, ae_title="OTHER").is_established


def test_objects_are_refused_when_the_disk_is_nearly_full(node, pacs, ct, tmp_path, monkeypatch):
    door = node(reserve=1 << 30)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: Usage(2 << 30, 1 << 30, (1 << 30) + 100))
        assert send(door.port, ct[:2]) == [0xA700, 0xA700]
    assert not list((tmp_path / "spool").rglob("*.dcm"))
    assert set(send(door.port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == [SENT])


def test_an_object_that_cannot_be_kept_is_refused(node, ct, tmp_path, monkeypatch):
    door = node()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Spool, "store", full)
        assert send(door.port, ct[:2]) == [0xA700, 0xA700]
    assert send(door.port, ct[:2]) == [0, 0]


def test_a_study_that_cannot_be_told_apart_is_kept_with_the_reason(node, pacs, ct, tmp_path):
    for number, file in enumerate(ct):
        edit(file, SeriesInstanceUID=f"1.2.3.{number}")  # as some anonymisers do
    assert set(send(node().port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == [FAILED])
    (job,) = (tmp_path / "spool" / "jobs").iterdir()
    assert "are slices in a row" in json.loads((job / "job.json").read_text())["error"]
    assert len(list((job / "scan").iterdir())) == len(ct) and not pacs.objects


def test_a_taken_study_waits_for_a_disk_that_can_be_written(node, pacs, ct, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_node, "_PAUSE", 0.1)
    door, add, failures = node(), Spool.add, []

    def failing(*arguments):
        if len(failures) < 3:
            failures.append(1)
            raise OSError(28, "No space left on device")
        return add(*arguments)

    monkeypatch.setattr(Spool, "add", failing)
    assert set(send(door.port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == [SENT])
    assert len(failures) == 3 and len(pacs.objects) == 1


def test_objects_that_a_mask_could_not_refer_to_are_refused(node, ct, tmp_path):
    edit(ct[0], StudyInstanceUID="")
    assert send(node().port, ct[:2]) == [0xA900, 0]


def test_uids_cannot_lead_out_of_the_spool(node, ct, tmp_path):
    door = node(quiet=30.0)
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", door.port, ae_title="SAMKD")
    dataset = pydicom.dcmread(ct[0])
    dataset.StudyInstanceUID = "../../../up"
    status = association.send_c_store(dataset).get("Status")
    association.abort()
    inside = [path for path in tmp_path.rglob("*.dcm") if path.is_relative_to(tmp_path / "spool")]
    outside = [path for path in tmp_path.rglob("*.dcm") if path.parent not in (tmp_path / "ct",)]
    assert inside == outside and len(inside) == (status == 0)


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "PACS@host:", "PACS@host:0", "PACS@host:99999", "@host:104", f"{'A' * 17}@host:104"]
)
def test_a_destination_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--send"):
        Peer.parse(text, option="--send")


def test_requests_that_do_not_wait_for_their_answers_are_broken_off(node, pacs, ct, monkeypatch, log_lines):
    """Their objects would gather in memory, however slow the disk is."""
    door, store = node(largest=40_000), Spool.store
    request, command, data, _ = recorded(door.port, ct[0])

    def slowly(*arguments):
        time.sleep(0.2)
        return store(*arguments)

    monkeypatch.setattr(Spool, "store", slowly)
    with closing(associated(door.port, request)) as connection, suppress(OSError):
        for _ in range(40):
            connection.sendall(command + data)
        assert ended(connection)
    assert "0 MB at once" in "\n".join(log_lines)
    assert set(send(door.port, ct)) == {0}


def test_half_a_pdu_is_not_waited_for(node, ct, monkeypatch):
    monkeypatch.setattr(dicom_guard, "PDU_SECONDS", 0.3)
    monkeypatch.setattr(dicom_guard, "OBJECT_SECONDS", 0.3)
    door = node()
    request, command, data, _ = recorded(door.port, ct[0])
    with closing(connect(door.port)) as silent, closing(connect(door.port)) as slow:
        silent.sendall(request[:20])
        assert ended(silent)
        with pytest.raises(OSError):
            for byte in request:
                slow.sendall(bytes([byte]))
                time.sleep(0.02)
    with closing(associated(door.port, request)) as endless:
        endless.sendall(command)
        part = data[:6] + data[6:11] + b"\0" + data[12:]  # not the last one
        endless.sendall(part)
        time.sleep(0.4)
        endless.sendall(part)
        assert ended(endless)


# Real peers.


@needs("echoscu", "storescu")
def test_dcmtk_sends(node, pacs, ct, tmp_path):
    place = ["127.0.0.1", str(node(callers=("SCANNER",)).port)]
    assert subprocess.run(["echoscu", "-aet", "SCANNER", "-aec", "SAMKD", *place], check=False).returncode == 0
    assert subprocess.run(["echoscu", "-aet", "STRANGER", "-aec", "SAMKD", *place], check=False).returncode != 0
    words = ["storescu", "-aet", "SCANNER", "-aec", "SAMKD", "+sd", *place, str(ct[0].parent)]
    assert subprocess.run(words, check=False).returncode == 0
    wait(lambda: states(tmp_path / "spool") == [SENT])
    assert len(pacs.objects) == 1


@needs("storescp", "storescu")
def test_dcmtk_receives(node, ct, pacs, tmp_path):
    port, archive = free_port(), tmp_path / "archive"
    archive.mkdir()
    words = ["storescp", "-aet", "ARCHIVE", "-od", str(archive), str(port)]
    with subprocess.Popen(words) as receiver:
        try:
            assert set(send(node(peers=(Peer("ARCHIVE", "127.0.0.1", port),)).port, ct)) == {0}
            wait(lambda: states(tmp_path / "spool") == [SENT])
        finally:
            receiver.terminate()
    (seg,) = archive.iterdir()
    assert pydicom.dcmread(seg, force=True).Modality == "SEG"


@pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed (Debian: orthanc)")
def test_orthanc_keeps_one_mask_of_a_study_on_its_slices(node, ct, tmp_path):
    orthanc = Orthanc(tmp_path / "orthanc")
    name = f"ORTHANC@127.0.0.1:{orthanc.dicom}"
    door = node(peers=(Peer.parse(name, option="--send"),))
    assert set(send(door.port, ct)) == {0}
    wait(lambda: states(tmp_path / "spool") == ["segmented"])
    orthanc.start()
    try:
        wait(lambda: states(tmp_path / "spool") == [SENT])
        job = next((tmp_path / "spool" / "jobs").glob("*/job.json"))
        assert set(send(door.port, ct)) == {0}
        (tags,) = orthanc.objects()
    finally:
        orthanc.stop()
    assert tags["Modality"] == "SEG" and json.loads(job.read_text())["delivered"] == [name]
    references = tags["ReferencedSeriesSequence"][0]["ReferencedInstanceSequence"]
    assert {item["ReferencedSOPInstanceUID"] for item in references} == {
        pydicom.dcmread(file).SOPInstanceUID for file in ct
    }
