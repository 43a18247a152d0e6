"""Who may import whom: the house rule of the design, read from the source, not from memory."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"errors"}
ALLOWED = {
    "errors": set(),
    "config": GROUND,
    "volumes": GROUND,
    "evaluation": GROUND | {"volumes"},
    "sam": GROUND | {"volumes"},
    "training": GROUND | {"config", "volumes", "evaluation"},
    "teachers": GROUND | {"config", "sam", "training", "volumes"},
    "students": GROUND | {"config", "sam", "training", "volumes"},
    "distill": GROUND | {"config", "teachers", "students", "training", "evaluation", "volumes"},
    "deploy": GROUND | {"deploy.runtime", "students", "training", "evaluation", "volumes"},
    "deploy.runtime": GROUND | {"volumes"},
    "doctor": GROUND | {"deploy"},
}
FENCES = {
    "segment_anything": {"sam/"},
    "nibabel": {"volumes/"},
    "pydicom": {"volumes/"},
    "highdicom": {"volumes/"},
    "openvino": {"deploy/openvino_target.py", "deploy/runtime/engine_openvino.py"},
    "nncf": {"deploy/openvino_int8.py"},
    "onnx": {"deploy/onnx_target.py", "deploy/onnx_int8.py"},
    "onnxscript": {"deploy/onnx_target.py"},
    "onnxruntime": {"deploy/onnx_int8.py", "deploy/runtime/engine_onnx.py"},
    "cryptography": {"deploy/signing.py", "deploy/runtime/signature.py"},
    "PIL": {"volumes/pictures.py", "evaluation/"},
    "typer": {"cli.py"},
    "rich": {"cli.py", "screen.py", "training/progress.py"},
    "pydantic": {"config.py"},
}
TOP = {
    "cli.py",
    "datasets.py",
    "recipes.py",
    "session.py",
    "comparison.py",
    "inventory.py",
    "bench.py",
    "screen.py",
    "models.py",
    "__init__.py",
}
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", "benchmarks"} & set(path.relative_to(ROOT).parts)
)


def room(parts: tuple[str, ...]) -> str:
    return "deploy.runtime" if parts[:2] == ("deploy", "runtime") else parts[0].removesuffix(".py")


def imports(path: Path):
    """(module parts from the root of the package, third-party name or None) of every import in a file."""
    here = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            module = base + tuple((node.module or "").split(".") if node.module else ())
            if len(module) == 0:
                yield from (((alias.name,), None) for alias in node.names)
            else:
                yield module, None
        elif isinstance(node, ast.ImportFrom):
            yield (), (node.module or "").split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (((), alias.name.split(".")[0]) for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    relative = path.relative_to(ROOT)
    if str(relative) in TOP:
        return
    mine = room(relative.parts)
    for module, _ in imports(path):
        if module and room(module) != mine and module != ("__version__",):
            assert room(module) in ALLOWED[mine], f"{relative} imports {'.'.join(module)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_third_party_fences(path):
    relative = path.relative_to(ROOT).as_posix()
    for _, package in imports(path):
        places = FENCES.get(package or "")
        assert places is None or any(relative.startswith(place) for place in places), f"{relative}: {package}"
        assert package != "samkd", f"{relative}: rooms import each other relatively"


def test_one_openvino_core_for_a_process():
    """A second core, freed, leaves a signal stack that is gone: the next Ctrl-C would be a segmentation fault."""
    files = [path for room in ("deploy", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    made = [path.name for path in files if re.search(r"\.Core\(|\b(ov|openvino)\.compile_model\(", path.read_text())]
    assert made == ["engine_openvino.py"]
