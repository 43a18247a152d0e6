import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from samkd.errors import OutputError
from samkd.volumes import files
from samkd.volumes.files import atomic_folder, atomic_path, is_hidden, is_leftover, temporary_folder


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def killed(code: str, folder: Path) -> None:
    """Run `code` until it prints, then kill it, and let what it left grow old."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in folder.iterdir():
        os.utime(path, (time.time() - 60, time.time() - 60))


WRITING = """
import pathlib, sys, time
from samkd.volumes.files import atomic_folder, atomic_path
root = pathlib.Path(sys.argv[1])
with atomic_folder(root / "folder") as folder, atomic_path(root / "file") as file:
    (folder / "a.txt").write_text("half")
    file.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_and_folders_get_the_users_umask(tmp_path, umask):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("a")
    with atomic_path(tmp_path / "b") as temporary:
        save_file({"x": np.zeros(3)}, temporary)
    with atomic_folder(tmp_path / "c") as folder:
        (folder / "d").write_text("d")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b", "c/d")] == [0o640] * 3
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o750


def test_what_a_killed_process_left_is_cleared_and_never_a_result(tmp_path):
    killed(WRITING, tmp_path)
    left = list(tmp_path.iterdir())
    assert len(left) == 2 and all(is_leftover(path) and is_hidden(path) for path in left)
    assert not list(tmp_path.glob("*/a.txt"))  # no package or run among its neighbours
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "a.txt").write_text("whole")
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["a.txt"]


def test_what_a_living_process_writes_is_not_cleared(tmp_path):
    with atomic_folder(tmp_path / "folder") as folder, atomic_path(tmp_path / "file") as file:
        for path in tmp_path.iterdir():
            os.utime(path, (time.time() - 60, time.time() - 60))
        files._cleared.clear()
        with atomic_path(tmp_path / "other") as other:
            other.write_text("other")
        (folder / "a").write_text("a")
        file.write_text("b")
    assert names(tmp_path) == ["file", "folder", "other"]


def test_files_of_the_user_that_look_alike_are_not_cleared(tmp_path):
    for name in (".samkd-mine.tmp", "a.tmp-12", ".samkd-0123456789abcdef.tmp.nii"):
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    before = names(tmp_path)
    with atomic_path(tmp_path / "z") as temporary:
        temporary.write_text("z")
    assert names(tmp_path) == [*before, "z"]


def test_many_threads_write_one_file(tmp_path):
    def write(number: int) -> None:
        with atomic_path(tmp_path / "same") as temporary:
            temporary.write_text(str(number) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(10)))
    text = (tmp_path / "same").read_text()
    assert len(text) == 1000 and len(set(text)) == 1 and names(tmp_path) == ["same"]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    with atomic_path(tmp_path / ("n" * 251 + ".nii")) as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["n" * 251 + ".nii"]


def test_a_failure_leaves_nothing_and_the_old_one(tmp_path):
    (tmp_path / "a").write_text("old")
    for manager in (atomic_path(tmp_path / "a"), atomic_folder(tmp_path / "b"), atomic_folder(tmp_path / "c")):
        with pytest.raises(RuntimeError), manager as temporary:
            assert temporary.exists()
            raise RuntimeError
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with pytest.raises(OutputError, match="cannot be written"), atomic_path(tmp_path / "no" / "a"):
        pass


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "package", replace=True) as folder:
            (folder / "manifest.json").write_text(text)
    assert names(tmp_path) == ["package"] and (tmp_path / "package" / "manifest.json").read_text() == "new"
    with pytest.raises(OutputError, match="not empty"), atomic_folder(tmp_path / "package"):
        pass


UNPACKING = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from samkd.volumes.files import temporary_folder
with temporary_folder() as folder:
    (folder / "model.bin").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_temporary_folder_is_private_and_what_a_killed_process_left_there_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    files._cleared.clear()
    killed(UNPACKING, tmp_path)
    assert len(names(tmp_path)) == 1
    with temporary_folder() as folder:
        assert names(tmp_path) == [folder.name] and not names(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        os.utime(folder, (time.time() - 60, time.time() - 60))
        files._cleared.clear()
        with temporary_folder() as other:
            assert folder.exists() and other != folder
    assert names(tmp_path) == []
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match="no folder for temporary files can be made here"), temporary_folder():
        pass
