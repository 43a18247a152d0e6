"""The files of the page, from the folder page/ beside the doors or from the zip that runtime.pyz is."""

from __future__ import annotations

import functools
import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

VIEWER = "vendor/niivue.js"  # not a source: `make web` builds it
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8",
}


@functools.cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """The bytes and the media type of every file of the page, by its path."""
    root = importlib.resources.files(__name__.rsplit(".", 2)[0]) / "page"
    return dict(_below(root, PurePosixPath()))


def _below(folder: Traversable, path: PurePosixPath) -> list[tuple[str, tuple[bytes, str]]]:
    files = []
    for entry in folder.iterdir():
        place = path / entry.name
        if entry.is_dir():
            files += _below(entry, place)
        elif place.suffix in _TYPES:
            files.append((str(place), (entry.read_bytes(), _TYPES[place.suffix])))
    return files
