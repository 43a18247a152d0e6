import json
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.slow

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_PACKAGES = {"tests", "benchmarks", "build", "dist", "runs"}


def test_packages_lists_every_folder_with_code():
    folders = {"samkd"}
    for path in ROOT.rglob("__init__.py"):
        parts = path.relative_to(ROOT).parts[:-1]
        if parts and parts[0] not in NOT_PACKAGES and not parts[0].startswith("."):
            folders.add(".".join(("samkd", *parts)))
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == folders


def test_all_extra_leaves_tensorrt_out():
    extras = SETTINGS["project"]["optional-dependencies"]
    assert "tensorrt" in extras
    assert not any("tensorrt" in requirement for requirement in extras["all"])


def test_constraints_pin_every_direct_dependency_without_hosts_or_hashes():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--hash" not in text
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    extras = SETTINGS["project"]["optional-dependencies"]
    wanted = [
        *SETTINGS["project"]["dependencies"],
        *extras["openvino"],
        *extras["onnx"],
        *extras["sign"],
        *extras["dev"],
    ]
    names = {requirement.split(">")[0].split("<")[0].strip().lower() for requirement in wanted}
    assert names <= pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources so that nothing is left in the tree."""
    copy = tmp_path_factory.mktemp("source") / "samkd"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_samkd_alone_with_its_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"samkd"}
    assert "samkd/LICENSE" in names and "samkd/configs/phantom.yaml" in names
    assert "samkd/deploy/runtime/__main__.py" in names
    assert not any("/tests/" in name for name in names)


def test_wheel_holds_the_page_and_its_viewer_where_that_was_built(wheel):
    page = ROOT / "deploy" / "runtime" / "serve" / "page"
    files = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    start = "samkd/deploy/runtime/serve/page/"
    packed = {name.removeprefix(start) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(start)}
    assert {"index.html", "main.js", "page.css"} <= packed == files
    assert ("vendor/niivue.js" in packed) == ("vendor/LICENSES.txt" in packed)


def test_the_viewer_is_pinned_and_its_lock_names_no_registry():
    folder = ROOT / "deploy" / "runtime" / "serve" / "viewer"
    wanted = json.loads((folder / "package.json").read_text())
    lock = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert all(
        lock[f"node_modules/{name}"]["version"] == version
        for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items()
    )
    assert not any("resolved" in entry for entry in lock.values())
    assert all("integrity" in entry for name, entry in lock.items() if name)


def test_installed_wheel_runs(wheel, tmp_path):
    """Installed into a new environment that borrows only the dependencies of this one."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    site = next((place / "lib").glob("python3*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    here = Path(next(path for path in sys.path if path.endswith("site-packages")))
    (site / "borrowed.pth").write_text(f"{here}\n")
    python = place / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import samkd; print(samkd.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    done = subprocess.run(
        [python, "-m", "samkd", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.strip() == "0.1.0"
    configs = "from samkd.configs.load import load_config; print(load_config('phantom').student.name)"
    done = subprocess.run([python, "-c", configs], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "swinunetr-tiny"
