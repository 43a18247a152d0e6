"""Damaged bytes and strange values, by a seeded random generator."""

import copy
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**70, -(2**63), 0.5, 1e-9, 1e300, "", "1", "x", "..", "../model.xml"),
    *("/etc/passwd", "\0", "\x1b[31mred", "a" * 5000, "\ud800", "2020-13-45", [], {}, [[]], [1, 2], {"a": {}}),
)


def mutated(data: bytes, rng: random.Random, *, least: int = 0) -> bytes:
    """Bits flipped, bytes overwritten, cut out, doubled or inserted, or the end cut off, behind `least` bytes."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not damaged:
            break
        at, size, kind = rng.randrange(len(damaged)), rng.randrange(1, 9), rng.randrange(6)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del damaged[at : at + size]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + size]
        elif kind == 4:
            damaged[at:at] = rng.choice((bytes(size), b"\xff" * size))
        elif at:
            del damaged[max(at, least) :]
    return bytes(damaged)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit flipped."""
    damaged = bytearray(data)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def strange(values: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one value, at a random depth, replaced, removed or added; and which."""
    changed = copy.deepcopy(values)
    place: Any = changed
    path = []
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        path.append(str(key))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    kind = rng.randrange(8)
    if kind == 0:
        del place[key]
        return changed, f"{'.'.join(path)} removed"
    if kind == 1 and isinstance(place, dict):
        place["unknown"] = copy.deepcopy(rng.choice(STRANGE))
        return changed, f"{'.'.join(path[:-1])}.unknown added"
    place[key] = copy.deepcopy(rng.choice(STRANGE))
    return changed, f"{'.'.join(path)} = {str(place[key])[:40]!r}"
