"""The examples of docs/extend run: their files are loaded as modules of samkd, registered, and used as shown."""

import importlib
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTEND = ROOT / "docs" / "extend"
# The module and variable in which a page registers its example; a format has no registry.
REGISTRIES = {
    "teacher": ("samkd.teachers", "TEACHERS"),
    "student": ("samkd.students", "STUDENTS"),
    "target": ("samkd.deploy.export.registry", "TARGETS"),
    "layout": ("samkd.volumes.datasets.registry", "LAYOUTS"),
    "format": None,
}


def titled_blocks(page: Path) -> dict[str, str]:
    """The Python blocks of a page by title."""
    blocks = re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', page.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == len(dict(blocks)), f"{page.name}: two blocks have one title"
    return dict(blocks)


def load_as_module(path: str, code: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The code as the module of samkd that the file `path` would be; its folder becomes a package if it is new."""
    *folders, name = path.removesuffix(".py").split("/")
    package = ".".join(("samkd", *folders))
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        empty = types.ModuleType(package)
        empty.__path__ = []
        monkeypatch.setitem(sys.modules, package, empty)
    module = types.ModuleType(f"{package}.{name}")
    module.__package__ = package
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, path, "exec"), module.__dict__)
    return module


def test_every_page_has_its_example():
    assert {page.stem for page in EXTEND.glob("*.md")} == set(REGISTRIES)
    for page in EXTEND.glob("*.md"):
        assert "use" in titled_blocks(page)


@pytest.mark.parametrize("name", REGISTRIES)
def test_the_example_runs(name: str, monkeypatch: pytest.MonkeyPatch):
    blocks = titled_blocks(EXTEND / f"{name}.md")
    use, register = blocks.pop("use"), blocks.pop("registry", None)
    place = REGISTRIES[name]
    assert (register is None) == (place is None)
    if place is not None:
        module, variable = importlib.import_module(place[0]), place[1]
        entries = getattr(module, variable)
        if name != "layout" and not isinstance(entries, dict):
            pytest.skip(f"{variable} is not a dictionary yet")
        monkeypatch.setattr(module, variable, entries.copy() if isinstance(entries, dict) else entries)
    scope: dict[str, object] = {}
    for path, code in blocks.items():
        loaded = load_as_module(path, code, monkeypatch)
        scope[loaded.__name__.rpartition(".")[2]] = loaded
    if place is not None and register is not None:
        scope[variable] = getattr(module, variable)
        exec(register, scope)
        monkeypatch.setattr(module, variable, scope[variable])
    exec(compile(use, f"{name}.md", "exec"), {})
