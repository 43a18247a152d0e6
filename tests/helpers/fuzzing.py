"""Damaged bytes for the readers of every format: they may be refused, and must neither crash nor hang."""

import time

from samkd.benchmarks.attacks.damage import mutated
from samkd.errors import SamkdError

__all__ = ["COUNT", "mutated", "read_or_refuse"]

COUNT = 300
SECONDS = 20  # of one read; they take milliseconds, or a second where a decoder has to be started again


def read_or_refuse(read):
    """What `read` gives, None when it refuses; every other error and a hang fail the test."""
    started = time.perf_counter()
    try:
        return read()
    except SamkdError as error:
        assert len(str(error)) > 20
        return None
    finally:
        assert time.perf_counter() - started < SECONDS
