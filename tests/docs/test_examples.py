"""The examples of docs/extend run: their files are loaded as modules of samkd, registered, and used as shown."""

import ast
import importlib
import inspect
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


@pytest.mark.parametrize("title", ["one scan", "a folder", "a plan"])
def test_the_python_api_has_what_its_page_calls(title: str):
    """Every name of an example can be imported, and takes the arguments with which it is called there."""
    tree = ast.parse(titled_blocks(ROOT / "docs" / "python-api.md")[title])
    names = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    checked = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]
    assert checked
    for call in checked:
        assert isinstance(call.func, ast.Name)
        keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(names[call.func.id]).bind(*call.args, **keywords)
