"""DICOM nodes by the names that a user gives them."""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import UsageError

_LONGEST = 16  # letters of an AE title


@dataclass(frozen=True)
class Peer:
    """A DICOM node: its AE title and where it listens."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, option: str) -> Peer:
        """AET@HOST:PORT. Raises UsageError."""
        title, _, place = text.partition("@")
        host, _, port = place.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"{option} {text!r}: expected AET@HOST:PORT, for example PACS@192.168.1.10:104")
        return cls(ae_title(title, option=option), host, int(port))


def ae_title(text: str, *, option: str) -> str:
    """An AE title: 1 to 16 printable letters of ASCII. Raises UsageError."""
    title = text.strip()
    if not 0 < len(title) <= _LONGEST or "\\" in title or not (title.isascii() and title.isprintable()):
        raise UsageError(f"{option} {text!r}: an AE title has 1 to 16 letters of ASCII")
    return title
