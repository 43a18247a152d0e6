"""Zip files whose bytes depend on their content only: the runtime as one file, a package as one file."""

import ast
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_ENTRY = "deploy/runtime/__main__.py"
_PAGE = "deploy/runtime/serve/page"
_MAIN = b"""import sys

if sys.version_info < (3, 11):
    sys.exit("error: runtime.pyz needs Python 3.11 or newer")
from samkd.deploy.runtime.__main__ import main

sys.exit(main())
"""


def write_runtime(path: Path) -> None:
    """Write runtime.pyz: the modules the device needs, as one file that Python runs."""
    names = sorted({"LICENSE", *runtime_modules(), *_page_files()})
    content = {f"samkd/{name}": (_ROOT / name).read_bytes() for name in names}
    with path.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
    write_zip(path, {"__main__.py": _MAIN, **content}, mode="a")


def _page_files() -> set[str]:
    """The files of the page that `serve` shows, by their paths in samkd."""
    files = (path for path in (_ROOT / _PAGE).rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(_ROOT).as_posix() for path in files}


def runtime_modules() -> set[str]:
    """The files, by their paths in samkd, that the runtime's entry point imports: at its start, later or indirectly."""
    modules: set[str] = set()
    waiting = [_ENTRY]
    while waiting:
        name = waiting.pop()
        if name not in modules:
            modules.add(name)
            waiting += [*_packages_of(name), *_imports_of(name)]
    return modules


def _packages_of(name: str) -> Iterator[str]:
    """The __init__.py of every folder that a module lies in: Python runs them before the module."""
    for folder in Path(name).parents:
        yield (folder / "__init__.py").as_posix()


def _imports_of(name: str) -> Iterator[str]:
    """The modules of samkd that a module imports anywhere in it, but for the type checker alone.

    samkd imports its own modules relatively.
    """
    for node in _executed(ast.parse((_ROOT / name).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = Path(name).parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for place in (folder, *(folder / alias.name for alias in node.names)):
            for file in (place.with_name(f"{place.name}.py") if place.name else place, place / "__init__.py"):
                if (_ROOT / file).is_file():
                    yield file.as_posix()


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a syntax tree without the bodies of `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _executed(node)


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
