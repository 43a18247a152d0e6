"""Spans of time as a user writes them."""

from __future__ import annotations

import re

from ....errors import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, *, option: str) -> float:
    """Seconds of 90s, 30m, 1h or 2d. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{option} {text!r}: expected a span of time, for example 90s, 30m, 1h or 2d")
    return float(match[1]) * _SECONDS[match[2]]
