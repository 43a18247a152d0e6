"""Zip files whose bytes depend on their content only: the runtime as one file, a package as one file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_RUNTIME = (
    "LICENSE",
    "__init__.py",
    "errors.py",
    "deploy/__init__.py",
    "volumes/*.py",
    "volumes/io/**/*.py",
    "deploy/runtime/*.py",
)
_MAIN = b"""import sys

if sys.version_info < (3, 11):
    sys.exit("error: runtime.pyz needs Python 3.11 or newer")
from samkd.deploy.runtime.__main__ import main

sys.exit(main())
"""


def write_runtime(path: Path) -> None:
    """Write runtime.pyz: the rooms the device needs, as one file that Python runs."""
    sources = sorted(source for pattern in _RUNTIME for source in _ROOT.glob(pattern))
    content = {f"samkd/{source.relative_to(_ROOT).as_posix()}": source.read_bytes() for source in sources}
    with path.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
    write_zip(path, {"__main__.py": _MAIN, **content}, mode="a")


def write_zip(path: Path, content: Mapping[str, bytes | Path], *, mode: str = "w") -> None:
    """Write, or with mode "a" append, a zip of bytes or files by their names in it."""
    assert mode in ("w", "a"), mode
    with zipfile.ZipFile(path, "a" if mode == "a" else "w") as packed:
        for name, source in content.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it is written
            entry.external_attr = 0o100644 << 16
            packed.writestr(entry, source if isinstance(source, bytes) else source.read_bytes(), compresslevel=9)
