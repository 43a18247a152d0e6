"""The ground room runs on the device: numpy and nibabel must be enough for all of it."""

import subprocess
import sys
from pathlib import Path

import samkd.volumes

ROOM = Path(samkd.volumes.__path__[0])
MODULES = sorted(".".join(p.relative_to(ROOM).with_suffix("").parts) for p in ROOM.rglob("*.py"))


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_the_heavy_libraries():
    assert "pipeline" in MODULES and "datasets.registry" in MODULES
    run(
        "import sys, importlib\n"
        "for name in ('torch', 'scipy', 'pydantic', 'monai', 'yaml', 'PIL'): sys.modules[name] = None\n"
        f"for name in {MODULES}: importlib.import_module('samkd.volumes.' + name)\n"
    )


def test_the_room_itself_does_not_load_nibabel():
    assert run("import sys, samkd.volumes; print('nibabel' in sys.modules)").strip() == "False"
