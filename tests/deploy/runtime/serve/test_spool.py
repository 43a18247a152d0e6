"""The spool: what is acknowledged survives a kill at every single step, and nothing is done twice."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from samkd.deploy.runtime.serve.spool import FAILED, RECEIVED, SEGMENTED, SENT, Job, Spool, job_id
from samkd.errors import UsageError

STEPS = ("fsync", "replace", "rename", "link", "mkdir", "unlink", "rmdir")  # of `os`, before each of which it may end
OBJECTS = ("a.dcm", "b.dcm")


def make_job(**changes) -> Job:
    values = {"id": job_id("x"), "door": "d", "package": "p", "name": "n", "scan": OBJECTS, "result": "mask"}
    return Job(**{**values, **changes})


def life_of_a_study(root: Path, archive: Path) -> None:
    """What the doors and the worker do with a study of two objects, from wherever the spool is.

    `archive` stands for sender and receiver: sent-NAME says that an object was acknowledged, mask-ID is the mask.
    """
    spool = Spool(root)
    for name in OBJECTS:
        if not (archive / f"sent-{name}").exists():
            spool.store("study", name, f"pixels of {name}".encode())
            (archive / f"sent-{name}").write_text("acknowledged")
    for study in spool.arriving():
        spool.take(study)
    for taken in spool.taken():
        files = sorted(taken.glob("*.dcm"))
        if files:
            spool.add(make_job(id=job_id(*(file.name for file in files)), scan=tuple(f.name for f in files)), files)
        spool.forget(taken)
    for job in list(spool.jobs()):
        if job.state == RECEIVED:
            spool.result(job).write_bytes(b"".join(file.read_bytes() for file in spool.files(job)))
            job = spool.update(replace(job, state=SEGMENTED))
        if job.state == SEGMENTED:
            with (archive / f"mask-{job.id}").open("a") as file:
                file.write(f"{spool.result(job).read_text()}\n")
            job = spool.update(replace(job, state=SENT))
        spool.clear(job)
    spool.close()


def killed_at(step: int, root: Path, archive: Path) -> bool:
    """Live the life in a process of its own that is killed before its `step`-th call; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(call):
            def called(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return called

        for name in STEPS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            life_of_a_study(root, archive)
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_before_any_step_loses_nothing_and_leaves_nothing(tmp_path):
    step = 0
    while True:
        step += 1
        root, archive = tmp_path / f"{step}", tmp_path / f"{step}-archive"
        archive.mkdir()
        killed = killed_at(step, root, archive)
        life_of_a_study(root, archive)
        masks = {path.name: set(path.read_text().splitlines()) for path in archive.glob("mask-*")}
        whole = f"mask-{job_id(*OBJECTS)}"
        assert masks == {whole: {"pixels of a.dcmpixels of b.dcm"}}, f"killed at step {step}"
        spool = Spool(root)
        assert [job.state for job in spool.jobs()] == [SENT] and not spool.arriving() and not spool.taken()
        assert [path.name for path in (root / "jobs" / job_id(*OBJECTS)).glob("[!.]*")] == ["job.json"]
        spool.close()
        if not killed:
            break
    assert step > 30  # the steps were really counted


def test_an_acknowledged_object_is_whole_on_the_disk(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.store("study", "a.dcm", b"one")
    spool.store("study", "a.dcm", b"two")  # sent again
    taken = spool.take("study")
    assert [(path.name, path.read_bytes()) for path in taken.iterdir()] == [("a.dcm", b"two")]
    spool.store("study", "b.dcm", b"late")
    assert spool.arriving() == ["study"] and spool.taken() == [taken]


def test_a_known_job_is_not_begun_again_unless_it_failed(tmp_path):
    spool = Spool(tmp_path / "spool")
    job = make_job(scan=("/somewhere/scan.nii.gz",))
    assert spool.add(job)
    for state, again in ((RECEIVED, False), (SEGMENTED, False), (SENT, False), (FAILED, True)):
        spool.update(replace(job, state=state, attempts=3))
        assert spool.add(job) == again
    assert spool.read(job.id) == job
    assert spool.files(job) == (Path("/somewhere/scan.nii.gz"),)


def test_a_damaged_job_is_named_and_left_alone(tmp_path, log_lines):
    spool = Spool(tmp_path / "spool")
    spool.add(make_job())
    spool.add(make_job(id=job_id("other")))
    broken = tmp_path / "spool" / "jobs" / job_id("x") / "job.json"
    broken.write_text(json.dumps({"id": "x"}))
    assert [job.id for job in spool.jobs()] == [job_id("other")]
    assert "does not describe a job" in "\n".join(log_lines)


def test_one_process_at_a_time(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(UsageError, match="another samkd serve"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()
