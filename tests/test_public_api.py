"""`import samkd` as a user of Python does: quick, and every public name where the docstring says."""

import subprocess
import sys
from pathlib import Path

import pytest

import samkd
from samkd.deploy.package.zipping import write_runtime

HEAVY = ("torch", "numpy", "nibabel", "pydantic", "yaml", "typer", "rich", "samkd.errors", "samkd.workflows")


def python(code: str, *, cwd) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_samkd_imports_nothing_heavy(tmp_path):
    code = f"import sys, samkd; print(samkd.__version__, [name for name in {HEAVY} if name in sys.modules])"
    assert python(code, cwd=tmp_path) == f"{samkd.__version__} []"


def test_reading_a_scan_needs_no_torch(tmp_path):
    code = "import sys, samkd; samkd.read_scan, samkd.Volume, samkd.Plan; print('torch' in sys.modules)"
    assert python(code, cwd=tmp_path) == "False"


@pytest.mark.parametrize("name", samkd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(samkd, name) is getattr(samkd, name) and name in dir(samkd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segmentation'"):
        _ = samkd.segmentation  # type: ignore[attr-defined]


@pytest.mark.parametrize("spelling", [str, Path])
def test_public_errors_are_the_ones_raised_and_strings_are_paths(tmp_path, spelling):
    with pytest.raises(samkd.SamkdError, match="not a run folder"):
        samkd.load_model(spelling(tmp_path))
    options = samkd.PredictOptions(
        scans=[spelling(tmp_path)], output=spelling("mask.nii.gz"), report=spelling("r.json")
    )
    with pytest.raises(samkd.SamkdError, match=f"{tmp_path}: .*no scan"):
        samkd.predict(spelling(tmp_path), options)
    assert (options.output, options.report) == (Path("mask.nii.gz"), Path("r.json"))


def test_the_device_has_the_names_that_it_can_have(tmp_path):
    write_runtime(tmp_path / "runtime.pyz")
    code = (
        "import sys; sys.path.insert(0, 'runtime.pyz')\n"
        "import samkd\n"
        "print('runtime.pyz' in samkd.__file__, samkd.__version__, issubclass(samkd.SamkdError, Exception),\n"
        "      samkd.Volume.__name__, samkd.Plan.__name__, samkd.read_scan.__name__)"
    )
    assert python(code, cwd=tmp_path) == f"True {samkd.__version__} True Volume Plan read_scan"
