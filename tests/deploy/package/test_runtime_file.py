"""runtime.pyz holds what its entry point can reach, and nothing else."""

import subprocess
import sys
import zipfile
from modulefinder import ModuleFinder
from pathlib import Path

import samkd
from samkd.deploy.package.zipping import _page_files, runtime_modules, write_runtime

ROOT = Path(samkd.__file__).parent
PAGE = _page_files()


def names_in(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as runtime:
        return {name.removeprefix("samkd/") for name in runtime.namelist() if name.startswith("samkd/")}


def test_every_module_that_is_shipped_is_reachable_and_every_reachable_one_is_shipped(tmp_path):
    """The standard library's ModuleFinder follows the byte code of the shipped file, this project the syntax tree."""
    write_runtime(tmp_path / "runtime.pyz")
    with zipfile.ZipFile(tmp_path / "runtime.pyz") as runtime:
        runtime.extractall(tmp_path / "unpacked")
    finder = ModuleFinder([str(tmp_path / "unpacked")])
    finder.run_script(str(tmp_path / "unpacked" / "__main__.py"))
    files = {name: getattr(module, "__file__", None) for name, module in finder.modules.items()}
    package = tmp_path / "unpacked" / "samkd"
    reached = {
        Path(file).relative_to(package).as_posix()
        for name, file in files.items()
        if name.split(".")[0] == "samkd" and file
    }
    assert names_in(tmp_path / "runtime.pyz") - PAGE == {"LICENSE", *reached} == {"LICENSE", *runtime_modules()}
    # samkd/__init__.py names the workflows for type checkers only, which ModuleFinder cannot tell from an import.
    missing = {name for name, callers in finder.badmodules.items() if set(callers) != {"samkd"} and _is_module(name)}
    assert not {name for name in missing if name.startswith("samkd.")}


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_datasets_and_the_phantom_stay_at_home():
    modules = runtime_modules()
    assert {"volumes/io/dicom/series.py", "deploy/runtime/engine_tensorrt.py", "deploy/runtime/verify.py"} <= modules
    assert not [name for name in modules if name.startswith(("volumes/datasets/", "training/", "workflows/"))]
    assert "deploy/package/zipping.py" not in modules


def test_each_shipped_module_can_be_imported_from_the_file_alone(tmp_path):
    write_runtime(tmp_path / "runtime.pyz")
    modules = sorted(
        "samkd." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in runtime_modules() - {"__init__.py"}
    )
    program = f"import sys, importlib; sys.path.insert(0, sys.argv[1]); [importlib.import_module(m) for m in {modules}]"
    program += "; import samkd; assert samkd.__file__.startswith(sys.argv[1]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", program, str(tmp_path / "runtime.pyz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
