"""What one upload may still take of the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .refusals import Refusal

_LOOK = 64 << 20  # bytes between two looks at the disk


@dataclass
class Room:
    """Bytes and files that are left to one upload; `free` says what the disk has beside its reserve."""

    bytes: int
    files: int
    free: Callable[[], int]
    _unseen: int = _LOOK
    _files: int = 0
    _taken: int = 0

    def take(self, count: int) -> None:
        """Refusal 413 for more than is allowed, 503 when the disk is full."""
        self._taken += count
        self._unseen += count
        if self._taken > self.bytes:
            raise Refusal(
                413, f"The upload unpacks to more than {self.bytes / 1e9:.1f} GB. Upload fewer scans at once."
            )
        if self._unseen >= _LOOK:
            self._unseen = 0
            if self.free() < 0:
                raise Refusal(503, "The server's disk is nearly full. Try again later, or tell who runs it.")

    def take_file(self) -> None:
        """Refusal 413 for more files than are allowed."""
        self._files += 1
        if self._files > self.files:
            raise Refusal(413, f"The upload holds more than {self.files} files. Upload fewer at once.")
