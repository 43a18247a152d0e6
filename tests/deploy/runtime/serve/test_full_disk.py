"""A spool on a disk that is really full: nothing that was acknowledged is lost, and with space it goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.served import Server, free_port, states, wait

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed: pip install 'samkd[serve]'")

import pydicom
from helpers.dicom_peers import Pacs, send, write_ct

pytestmark = pytest.mark.slow

SUCCESS, NO_SPACE = 0, 0xA700


def mount(*words: str) -> bool:
    """Whether a file system could be mounted, which needs root, and in a container its leave."""
    try:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system in memory with 400 kB, a page of which each file takes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)):
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    pacs = Pacs(free_port())
    yield pacs
    pacs.stop()


@pytest.mark.parametrize("reserve", ["0.1M", "0.000001M"])
def test_what_was_acknowledged_on_a_disk_that_fills_comes_back(built, disk, pacs, tmp_path, reserve):
    """With a reserve objects are refused before the disk is full; with one byte of it every write may be the last."""
    port = free_port()
    words = ["--dicom", f"SAMKD:{port}", "--send", f"PACS@127.0.0.1:{pacs.port}", "--spool", disk / "spool"]
    server = Server(built, *words, "--quiet", "3", "--reserve", reserve, "--threads", "1", log=tmp_path / "log.txt")
    server.start()
    try:
        acknowledged, refused = fill(port, tmp_path)
        assert acknowledged and refused and server.alive()
        server.kill()  # in the middle of it
        server.start()
        pacs.start()
        if reserve != "0.1M":
            assert mount("-o", "remount,size=4m", str(disk))  # somebody makes room
        for study, ct in acknowledged:
            wait(lambda study=study, ct=ct: masks(pacs, study, slices=len(ct)), seconds=120)
        for study, ct in refused:  # their sender tries again
            wait(lambda ct=ct: set(send(port, ct)) == {SUCCESS}, seconds=60)
            wait(lambda study=study, ct=ct: masks(pacs, study, slices=len(ct)), seconds=60)
        assert all(len(masks(pacs, study, slices=len(ct))) == 1 for study, ct in acknowledged)
        wait(lambda: set(states(disk / "spool")) <= {"sent", "failed"})
        assert not [path for path in disk.rglob("*") if ".tmp" in path.name]  # nothing half-written stays
        assert server.stop() == 143
    finally:
        server.kill()


def fill(port: int, folder: Path) -> tuple[list[tuple[str, list[Path]]], list[tuple[str, list[Path]]]]:
    """Send studies until two are refused; those that were acknowledged whole, and those that were not."""
    acknowledged, refused = [], []
    while len(refused) < 2:  # the PACS is away: nothing leaves the disk
        number = len(acknowledged) + len(refused)
        ct = write_ct(folder / f"ct-{number}", seed=number)
        statuses = set(send(port, ct))
        assert statuses <= {SUCCESS, NO_SPACE} and number < 12
        study = pydicom.dcmread(ct[0], stop_before_pixels=True).StudyInstanceUID
        (acknowledged if statuses == {SUCCESS} else refused).append((study, ct))
    return acknowledged, refused


def masks(pacs: Pacs, study: str, *, slices: int) -> set[str]:
    """The objects that are a mask on so many slices of a study."""
    return {
        seg.SOPInstanceUID
        for seg in pacs.objects
        if seg.StudyInstanceUID == study
        and len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == slices
        and seg.pixel_array.any()
    }
