"""What a user can say of the page: where it listens, who gets in, and its limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

PORT = 8080


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one upload, all of them together and the queue may take; sizes in bytes, times in seconds."""

    upload: int = 2 << 30  # one request
    expanded: int = 8 << 30  # its archives unpacked, and a scan in memory
    files: int = 10_000  # of one request, those in archives included
    uploads: int = 8  # requests at once
    waiting: int = 64  # jobs
    calls: int = 8  # prompts that wait for their masks
    sessions: int = 2 << 30  # scans that are clicked into shape, in memory
    reserve: int = 1 << 30  # what the disk must keep
    patience: float = 30.0  # without a byte of a request
    keep: float = 3600.0  # a scan, its jobs and its masks, after the last use


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Where the page listens and who gets in: without a `token` everybody, and without `cert` in the clear."""

    port: int = PORT  # 0: any that is free
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()  # by which browsers may call it, beside its host and those of this machine alone
    token: str | None = None
    cert: Path | None = None
    key: Path | None = None
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Whether an address is one of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
