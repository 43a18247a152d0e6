"""Who may import whom: the house rule of the design, read from the source, not from memory."""

import ast
import re
from pathlib import Path

from helpers.paths import ROOT

GROUND = {"errors"}
ROOMS = {
    "configs",
    "volumes",
    "volumes.datasets",
    "evaluation",
    "sam",
    "training",
    "teachers",
    "students",
    "distill",
    "deploy",
    "deploy.runtime",
}
DATA = {"volumes", "volumes.datasets"}
ALLOWED = {
    "errors": set(),
    "configs": GROUND,
    "volumes": GROUND,
    "volumes.datasets": GROUND | {"volumes"},
    "evaluation": GROUND | DATA,
    "sam": GROUND | DATA,
    "training": GROUND | DATA | {"configs", "evaluation", "sam"},
    "teachers": GROUND | DATA | {"configs", "sam", "training"},
    "students": GROUND | DATA | {"configs", "sam", "training"},
    "distill": GROUND | DATA | {"configs", "sam", "teachers", "students", "training", "evaluation"},
    "deploy": GROUND | DATA | {"deploy.runtime", "students", "training", "evaluation"},
    "deploy.runtime": GROUND | {"volumes"},
    "workflows": GROUND | ROOMS,
    "cli": GROUND | ROOMS | {"workflows"},
    "__init__": GROUND | ROOMS | {"workflows"},
    "__main__": {"cli"},
}
FENCES = {
    "segment_anything": {"sam/"},
    "nibabel": {"volumes/"},
    "pydicom": {"volumes/"},
    "highdicom": {"volumes/"},
    "pynetdicom": {"deploy/runtime/serve/dicom_node.py"},
    "starlette": {"deploy/runtime/serve/http/"},
    "uvicorn": {"deploy/runtime/serve/http/"},
    "python_multipart": {"deploy/runtime/serve/http/"},
    "openvino": {"deploy/export/openvino.py", "deploy/runtime/engine_openvino.py"},
    "nncf": {"deploy/export/quantize_openvino.py"},
    "onnx": {"deploy/export/onnx.py", "deploy/export/quantize_onnx.py"},
    "onnxscript": {"deploy/export/onnx.py"},
    "onnxruntime": {"deploy/export/quantize_onnx.py", "deploy/runtime/engine_onnx.py"},
    "torch_tensorrt": {"deploy/export/tensorrt_engine.py"},
    "tensorrt": {"deploy/runtime/engine_tensorrt_native.py"},
    "cuda": {"deploy/runtime/engine_tensorrt_native.py"},
    "cryptography": {"deploy/package/signing.py", "deploy/runtime/signature.py"},
    "PIL": {"volumes/io/pictures.py", "evaluation/"},
    "typer": {"cli/"},
    "rich": {"cli/", "training/progress.py"},
    "pydantic": {
        "configs/plan_schema.py",
        "configs/evaluation_schema.py",
        "configs/paper_tables.py",
        "configs/teacher_options.py",
        "configs/schema.py",
        "configs/validate.py",
    },
}
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", "benchmarks", "docs"} & set(path.relative_to(ROOT).parts)
)


def room(parts: tuple[str, ...]) -> str:
    """The room of a module; the device's part of a room is one of its own, and so is what the device does without."""
    inner = ".".join(parts[:2])
    return inner if inner in ("deploy.runtime", "volumes.datasets") else parts[0].removesuffix(".py")


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


def test_imports_go_down_only():
    violations = []
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        mine = room(relative.parts)
        for module, _ in imports(path):
            if module and module != ("__version__",) and room(module) not in ALLOWED[mine] | {mine}:
                violations.append(f"{relative} imports {'.'.join(module)}")
    assert violations == []


def test_third_party_fences():
    violations = []
    for path in SOURCES:
        relative = path.relative_to(ROOT).as_posix()
        for _, package in imports(path):
            if package == "samkd":
                violations.append(f"{relative} imports samkd by name; rooms import each other relatively")
            elif package in FENCES and not relative.startswith(tuple(FENCES[package])):
                violations.append(f"{relative} imports {package}")
    assert violations == []


def test_one_openvino_core_for_a_process():
    """A second core, freed, leaves a signal stack that is gone: the next Ctrl-C would be a segmentation fault."""
    files = [path for room in ("deploy", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    made = [path.name for path in files if re.search(r"\.Core\(|\b(ov|openvino)\.compile_model\(", path.read_text())]
    assert made == ["engine_openvino.py"]


def test_the_folders_of_the_tests_mirror_the_rooms():
    """Each names a room or a part of one, in its place; two hold what belongs to no room."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(str(path) for path in folders if not (ROOT / path / "__init__.py").exists()) == ["docs", "e2e"]
