"""Sizes in bytes as a user writes them on a command line."""

from ..errors import UsageError

_UNITS = {"M": 1e6, "G": 1e9, "T": 1e12}


def parse_bytes(text: str, *, option: str = "--ram") -> float:
    """The bytes that "2G" or "700M" mean. Raises UsageError, which names the option, for anything else."""
    number, unit = text[:-1], text[-1:].upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit() or float(number) == 0:
        raise UsageError(f"{option} {text!r}: expected a number and M, G or T, for example 2G")
    return float(number) * _UNITS[unit]
