"""The watched folder, end to end with a package."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom_series import write_series
from helpers.packages import make_scan
from helpers.served import wait

from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.predict import predict_scan
from samkd.deploy.runtime.serve import worker as worker_module
from samkd.deploy.runtime.serve.folder import FolderDoor
from samkd.deploy.runtime.serve.spool import Spool
from samkd.deploy.runtime.serve.worker import Worker
from samkd.errors import UsageError
from samkd.volumes.io.nifti import read_labels, write_scan
from samkd.volumes.io.scans import Source


@pytest.fixture(scope="module")
def opened(built):
    return Package.open(built, threads=1)


@pytest.fixture
def served(opened, tmp_path, monkeypatch):
    """Start a server of a folder, as often as is wanted; each ends when the next starts, and all at the end."""
    monkeypatch.setattr("samkd.deploy.runtime.serve.folder._LOOK", 0.02)
    (tmp_path / "in").mkdir()
    running = []

    def start(*packages_served: Package) -> None:
        stop()
        packages = {package.manifest.digest: package for package in packages_served or (opened,)}
        spool = Spool(tmp_path / "spool")
        door = FolderDoor(tmp_path / "in", tmp_path / "out", spool=spool, packages=packages, quiet=0.1)
        worker = Worker(spool, packages, {door.name: door})
        worker.start()
        door.start(worker)
        running.extend([door.stop, worker.stop, spool.close])

    def stop() -> None:
        while running:
            running.pop(0)()

    yield start
    stop()


@pytest.fixture
def segmentations(monkeypatch):
    """The scans that are segmented, in their order."""
    scans = []

    def counted(package, scan, mask, **options):
        scans.append(scan.files[0].name)
        return predict_scan(package, scan, mask, **options)

    monkeypatch.setattr(worker_module, "predict_scan", counted)
    return scans


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_masks_of_files_and_series_are_those_of_predict(served, opened, tmp_path):
    served()
    write_scan(tmp_path / "in" / "a.nii.gz", make_scan(3))
    values = make_scan(3).array[0].astype(np.int16) + 1024
    files = write_series(tmp_path / "in" / "ct", values, spacing=(2.0, 1.5, 1.4))
    out = tmp_path / "out"
    wait(lambda: names(out) == ["a.nii.gz", "ct.nii.gz"])
    for name, source in {
        "a.nii.gz": Source("a", (tmp_path / "in" / "a.nii.gz",)),
        "ct.nii.gz": Source("ct", tuple(files)),
    }.items():
        predict_scan(opened, source, tmp_path / name)
        labels = read_labels(out / name)[0]
        np.testing.assert_array_equal(labels, read_labels(tmp_path / name)[0])
        assert set(np.unique(labels)) == {0, 1, 2}


def test_a_scan_is_taken_when_it_is_quiet_and_never_again(served, segmentations, tmp_path):
    served()
    scan, out = tmp_path / "in" / "a.nii.gz", tmp_path / "out"
    write_scan(tmp_path / "a.nii.gz", make_scan(3))
    content = (tmp_path / "a.nii.gz").read_bytes()
    with scan.open("wb") as file:  # copied slowly
        for part in range(0, len(content), len(content) // 8):
            file.write(content[part : part + len(content) // 8])
            file.flush()
            time.sleep(0.05)
            assert names(out) == []
    wait(lambda: names(out) == ["a.nii.gz"])
    served()
    write_scan(tmp_path / "in" / "b.nii.gz", make_scan(4))
    wait(lambda: names(out) == ["a.nii.gz", "b.nii.gz"])
    assert segmentations == ["a.nii.gz", "b.nii.gz"]
    write_scan(scan, make_scan(5))  # another scan of that name
    wait(lambda: len(segmentations) == 3)
    before = (out / "a.nii.gz").read_bytes()
    wait(lambda: (out / "a.nii.gz").read_bytes() != before)


def test_a_bad_scan_has_a_text_and_no_mask_until_it_is_replaced(served, tmp_path):
    served()
    inbox, out = tmp_path / "in", tmp_path / "out"
    (inbox / "bad.nii.gz").write_bytes(b"no scan")
    (inbox / "letter.txt").write_text("Dear colleague")
    write_series(inbox / "mr", make_scan(3).array[0].astype(np.int16), modality="MR")
    loose = write_series(tmp_path / "ct", make_scan(3).array[0].astype(np.int16))[0]
    shutil.copy(loose, inbox / "slice.dcm")
    expected = {"bad": "bad.nii.gz", "letter": "letter.txt", "mr": "modality", "slice": "is one slice"}
    wait(lambda: names(out) == sorted(f"{name}.error.txt" for name in expected))
    for name, words in expected.items():
        assert words in (out / f"{name}.error.txt").read_text()
    write_scan(inbox / "bad.nii.gz", make_scan(3))
    wait(lambda: "bad.nii.gz" in names(out) and "bad.error.txt" not in names(out))


def test_nothing_in_out_is_written_over(served, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"mine")
    served()
    write_scan(tmp_path / "in" / "a.nii.gz", make_scan(3))
    wait(lambda: names(tmp_path / "out") == ["a.error.txt", "a.nii.gz"])
    assert "would overwrite" in (tmp_path / "out" / "a.error.txt").read_text()
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == b"mine"


def test_a_mask_waits_for_a_folder_that_cannot_be_written(served, segmentations, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "LONGEST_WAIT", 0.05)
    served()
    out = tmp_path / "out"
    out.rmdir()
    out.write_text("in the way")
    write_scan(tmp_path / "in" / "a.nii.gz", make_scan(3))
    wait(lambda: segmentations)
    time.sleep(0.3)
    out.unlink()
    wait(lambda: out.is_dir() and names(out) == ["a.nii.gz"])
    assert segmentations == ["a.nii.gz"]


def test_masks_among_the_scans_are_refused(opened, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="among the scans"):
        FolderDoor(tmp_path / "in", tmp_path / "in" / "out", spool=Spool(tmp_path / "s"), packages={}, quiet=1)


def test_each_of_several_packages_has_a_folder_in_out(served, opened, tmp_path):
    other = replace(opened, manifest=replace(opened.manifest, name="../other", digest="x"))
    served(opened, other)
    write_scan(tmp_path / "in" / "a.nii.gz", make_scan(3))
    wait(lambda: len([path for path in (tmp_path / "out").rglob("*.nii.gz") if ".tmp" not in str(path)]) == 2)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("a.nii.gz")} == {
        "---other/a.nii.gz",
        "student/a.nii.gz",
    }
    with pytest.raises(UsageError, match="two packages of one name"):
        served(opened, replace(other, manifest=replace(other.manifest, name=opened.manifest.name)))


def test_a_scan_that_was_begun_and_not_ended_lets_others_go_first(served, segmentations, opened, tmp_path):
    """The process may have ended because of it: it must not keep the others from their masks after every start."""
    for number in range(4):
        write_scan(tmp_path / "in" / f"{number}.nii.gz", make_scan(3))
    packages = {opened.manifest.digest: opened}
    spool = Spool(tmp_path / "spool")
    door = FolderDoor(tmp_path / "in", tmp_path / "out", spool=spool, packages=packages, quiet=0)
    door._worker = Worker(spool, packages, {})  # takes jobs, and never begins
    door.look()
    door.look()
    first, *others = list(spool.jobs())
    spool.update(replace(first, attempts=1))
    spool.close()
    served()
    wait(lambda: len(segmentations) == 4)
    assert segmentations[-1] == Path(first.scan[0]).name and len(others) == 3
