"""What a monitor asks: whether the server works, and how much it does (Prometheus' text format)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from .....volumes.memory import peak_bytes, process_status
from ..worker import Worker


def exposition(worker: Worker, *, answers: Counter[int], scans: int, free: int) -> str:
    """The metrics, a name, its help and its values each."""
    lines: list[str] = []
    for name, kind, text, values in _metrics(worker, answers=answers, scans=scans, free=free):
        lines += [f"# HELP samkd_{name} {text}", f"# TYPE samkd_{name} {kind}"]
        lines += [f"samkd_{name}{labels} {value:g}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


def _metrics(
    worker: Worker, *, answers: Counter[int], scans: int, free: int
) -> Iterator[tuple[str, str, str, Mapping[str, float]]]:
    ended = {f'{{door="{door}",state="{state}"}}': count for (door, state), count in worker.ended.items()}
    yield "jobs_total", "counter", "Jobs that came to an end since the start.", ended
    yield "jobs_waiting", "gauge", "Jobs in the queue.", {"": len(worker.waiting())}
    yield "jobs_running", "gauge", "Whether a scan is segmented now.", {"": worker.in_hand is not None}
    yield "segmentation_seconds_total", "counter", "Seconds spent on masks since the start.", {"": worker.seconds}
    yield (
        "http_answers_total",
        "counter",
        "Answers of the page by status.",
        {f'{{status="{status}"}}': count for status, count in answers.items()},
    )
    yield "scans", "gauge", "Uploaded scans that are kept.", {"": scans}
    yield "disk_free_bytes", "gauge", "Free bytes on the disk of the spool.", {"": free}
    resident, peak = process_status("VmRSS"), peak_bytes()
    if resident is not None:
        yield "resident_memory_bytes", "gauge", "Memory of the process.", {"": resident}
    if peak is not None:
        yield "peak_memory_bytes", "gauge", "The most memory of the process so far.", {"": peak}
