"""Opening a package runs nothing that came with it, by any verb, and nothing of it is read before it is checked."""

import json
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import typer
from helpers.command_line import run_cli
from helpers.packages import reseal
from helpers.runs import run_verb

from samkd.cli.app import app
from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.cli import _parser
from samkd.deploy.runtime.integrity import render
from samkd.training.run import Run

PUBLIC_KEY = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAO2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=
-----END PUBLIC KEY-----
"""
TRAINING = [
    *("phantom.training=3", "phantom.test=1", "teacher.plan.size=[null,32,32]", "teacher.plan.patch=[5,32,32]"),
    *("teacher.training.steps=1", "student.plan.spacing=[12,12,12]", "student.plan.patch=[32,32,64]"),
    *("student.plan.overlap=0", "student.training.steps=1", "student.training.batch=1", "deployment.precision=fp32"),
    "deployment.max_drop=1",
]
# Every verb that opens a package, and what stands behind it; PKG is a package.
SAMKD = {
    "predict": "PKG -i scan.nii.gz -o mask.nii.gz --threads 1",
    "verify": "PKG",
    "evaluate": "PKG --data data",
    "report": "PKG --runs runs -o report.html",
    "bench packages": "PKG --shape 20x24x28 --threads 1",
    "bench serve": "PKG scan.nii.gz --clients 1 --uploads 1 --threads 1",
    "serve": "PKG --folder in --out out --quiet 0.1 --threads 1",  # until a signal ends it
}
RUNTIME = {
    "predict": "scan.nii.gz -o mask2.nii.gz --threads 1",
    "prompt": "scan.nii.gz -o mask3.nii.gz --threads 1",
    "verify": "--threads 1",
    "info": "--threads 1",
    "serve": "--folder in --out out --quiet 0.1 --threads 1",
}
CODES = {"serve": 128 + signal.SIGTERM, "prompt": 2}  # this student takes no prompts


def test_these_are_all_the_verbs_that_open_a_package():
    verbs = {}
    for name, command in typer.main.get_command(app).commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        for inner, each in (getattr(command, "commands", None) or {None: command}).items():
            verbs[name if inner is None else f"{name} {inner}"] = each
    arguments = [(name, p) for name, each in verbs.items() for p in each.params if p.param_type_name == "argument"]
    assert {name for name, p in arguments if "ackage" in p.help} == set(SAMKD)
    assert all("--trust" in {option for p in verbs[name].params for option in p.opts} for name in SAMKD)
    (parser,) = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    assert set(parser.choices) == set(RUNTIME)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a student's run, its package under runs/packages/student, a scan, and a dataset of that phantom."""
    folder = tmp_path_factory.mktemp("place")
    runs = folder / "runs"
    for verb in (["teach"], ["distill", "--no-control"], ["deploy", "--out", runs / "packages" / "student"]):
        done = run_verb(*verb, runs=runs, sets=TRAINING)
        assert done.exit_code == 0, done.text
    (run,) = runs.glob("distill-*")
    data = Path(Run.read(run).config.data)
    shutil.copytree(data, folder / "data")
    scan = next((runs / "packages/student/sample").glob("scan.nii.gz"))
    shutil.copy(scan, folder / "scan.nii.gz")
    (folder / "in").mkdir()
    shutil.copy(scan, folder / "in")
    return folder


@contextmanager
def ended_once_there_is(mask: Path):
    """SIGTERM for this process as soon as a server that runs in it has written a mask."""

    def end() -> None:
        deadline = time.monotonic() + 120
        while not mask.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    yield
    thread.join()


@pytest.fixture
def planted(place, tmp_path):
    """The same, with a runtime.pyz in the package that leaves a file, and its sums made right."""
    folder = shutil.copytree(place, tmp_path / "place")
    package, marker = folder / "runs/packages/student", tmp_path / "ran"
    (package / "runtime.pyz").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).write_text('ran')")
    reseal(package)
    return folder, marker


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("verb", SAMKD)
def test_samkd_never_runs_what_a_package_holds(planted, verb, zipped):
    folder, marker = planted
    package = folder / "runs/packages" / ("student.zip" if zipped else "student")
    words = [str(package) if word == "PKG" else word for word in SAMKD[verb].split()]
    with ended_once_there_is(folder / "out/scan.nii.gz") if verb == "serve" else nullcontext():
        done = run_cli(*verb.split(), *words, cwd=folder, in_process=True)
    assert done.exit_code == CODES.get(verb, 0), done.text
    assert not marker.exists()
    assert done.stderr.splitlines().count(f"warning: {package} is not signed: anyone could have changed it") == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", RUNTIME)
def test_the_runtime_never_runs_what_a_package_holds(planted, verb, monkeypatch, capsys):
    folder, marker = planted
    monkeypatch.chdir(folder)
    package = ["runs/packages/student"] if verb == "serve" else ["--package", "runs/packages/student"]
    with ended_once_there_is(folder / "out/scan.nii.gz") if verb == "serve" else nullcontext():
        code = main([verb, *RUNTIME[verb].split(), *package])
    err = capsys.readouterr().err
    assert code == CODES.get(verb, 0), err
    assert not marker.exists()
    warning = "warning: runs/packages/student is not signed: anyone could have changed it"
    assert err.splitlines().count(warning) == (0 if verb == "info" else 1)


@pytest.mark.parametrize("verb", ["report", "bench packages"])
@pytest.mark.parametrize("fault", ["manifest", "a file", "signature"])
def test_nothing_of_a_package_is_followed_before_it_is_checked(package, tmp_path, monkeypatch, verb, fault):
    """The manifest names a run outside of the runs; without a sum or a signature that holds it is never opened."""
    values = json.loads((package / "manifest.json").read_text())
    values["provenance"]["run"] = "../evil"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/config.yaml").write_text("{}")
    if fault == "manifest":
        (package / "manifest.json").write_bytes(render(values))
    else:
        reseal(package, provenance=values["provenance"])
    if fault == "a file":
        (package / "MODEL_CARD.md").write_text("another")
    (tmp_path / "key.pub").write_bytes(PUBLIC_KEY)
    trust = ["--trust", tmp_path / "key.pub"] if fault == "signature" else []
    for module in ("report.packages", "bench.packages"):
        monkeypatch.setattr(f"samkd.workflows.{module}.on_device", None)
    monkeypatch.setattr(Run, "read", None)
    done = run_cli(*verb.split(), package, *trust, cwd=tmp_path, in_process=True)
    assert done.exit_code == 4 and done.stderr.count("\n") == 1, done.text
