"""The worker's queue: in the order of arrival, also after a restart; and what it forgets."""

import json
import os
import time
from dataclasses import replace

import pytest

from samkd.deploy.runtime.serve import worker as worker_module
from samkd.deploy.runtime.serve.spool import FAILED, RECEIVED, SENT, Job, Spool, job_id
from samkd.deploy.runtime.serve.worker import KEPT_RECORDS, Worker


class Door:
    """One that keeps nothing, or does not forget."""

    name, place, destinations, keeps = "d", "d", (), False

    def __init__(self, forgets: bool = True):
        self.forgets = forgets

    def may_forget(self, job: Job) -> bool:
        return self.forgets

    def start(self, worker): ...

    def stop(self): ...

    def deliver(self, job, mask, destination): ...

    def failed(self, job): ...


def job(name: str, **changes) -> Job:
    return Job(id=job_id(name), door="d", package="p", name=name, scan=("x",), result="mask", **changes)


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path)
    yield spool
    spool.close()


def test_after_a_restart_jobs_go_in_the_order_of_their_arrival(spool):
    names = [f"{number}" for number in range(20)]
    assert sorted(names, key=job_id) != names
    for name in names:
        spool.add(job(name))
    worker = Worker(spool, {}, {})
    worker._thread.start = lambda: None  # type: ignore[method-assign]
    worker.start()
    assert [each.name for each in worker.waiting()] == names


def test_a_job_of_a_release_that_noted_no_time_of_arrival_goes_first(spool, tmp_path):
    spool.add(job("new"))
    spool.add(job("old"))
    record = tmp_path / "jobs" / job_id("old") / "job.json"
    values = json.loads(record.read_text())
    del values["arrived"]
    record.write_text(json.dumps(values))
    assert spool.read(job_id("old")).arrived == 0.0


@pytest.mark.parametrize(
    ("state", "age", "forgets", "known"),
    [
        (SENT, KEPT_RECORDS + 60, True, False),
        (SENT, KEPT_RECORDS - 60, True, True),
        (SENT, KEPT_RECORDS + 60, False, True),
        (FAILED, KEPT_RECORDS + 60, True, True),
        (RECEIVED, KEPT_RECORDS + 60, True, True),
    ],
)
def test_records_of_jobs_that_were_sent_long_ago_are_forgotten(spool, tmp_path, state, age, forgets, known):
    spool.add(job("a"))
    spool.update(replace(spool.read(job_id("a")), state=state))
    then = time.time() - age
    os.utime(tmp_path / "jobs" / job_id("a") / "job.json", (then, then))
    Worker(spool, {}, {"d": Door(forgets)})._tidy()
    assert [each.name for each in spool.jobs()] == (["a"] if known else [])


def test_tasks_run_in_the_thread_of_the_worker_and_their_faults_come_back(spool):
    worker = Worker(spool, {}, {})
    worker.start()
    assert worker.call(lambda: 1 + 1).result(10) == 2
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(10)
    assert worker.is_alive
    worker.stop()
    assert not worker.is_alive and worker_module.LONGEST_REST > 0
