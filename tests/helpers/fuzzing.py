"""Damaged bytes for the readers of every format: they may be refused, and must neither crash nor hang."""

import random
import time

from samkd.errors import SamkdError

COUNT = 300
SECONDS = 20  # of one read; they take milliseconds, or a second where a decoder has to be started again


def mutated(data: bytes, rng: random.Random, *, least: int = 0) -> bytes:
    """Bits flipped, bytes overwritten, cut out, doubled or inserted, or the end cut off, behind `least` bytes."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not made:
            break
        at, size = rng.randrange(len(made)), rng.randrange(1, 9)
        kind = rng.randrange(6)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del made[at : at + size]
        elif kind == 3:
            made[at:at] = made[at : at + size]
        elif kind == 4:
            made[at:at] = rng.choice((bytes(size), b"\xff" * size))
        elif at:
            del made[max(at, least) :]
    return bytes(made)


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
