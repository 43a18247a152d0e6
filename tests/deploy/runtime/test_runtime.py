import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from helpers.http_server import Client, ServerProcess

from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.report import volumes_ml
from samkd.deploy.runtime.verify import SAMPLE_DICE
from samkd.volumes.geometry import Geometry
from samkd.volumes.io.nifti import read_labels, read_scan, write_labels, write_scan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device(built, tmp_path_factory):
    """The interpreter of a new environment that holds what requirements.txt of the package names, and nothing else."""
    place = tmp_path_factory.mktemp("device") / "venv"
    wanted = built / "requirements.txt"
    python = place / "bin" / "python"
    if shutil.which("uv"):
        steps = [
            ["uv", "venv", "--quiet", "--python", sys.executable, str(place)],
            ["uv", "pip", "install", "--quiet", "--python", str(python), "-r", str(wanted)],
        ]
    else:
        venv.create(place, with_pip=True)
        steps = [[str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot install {wanted.read_text().split()} here: {done.stderr.strip()[-300:]}")
    return python


@pytest.fixture
def scans(tmp_path, scan):
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in (11, 12):
        write_scan(folder / f"p{seed}.nii.gz", scan(seed))
    return folder


def run(python, package, *arguments, cwd, home=None):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["HOME"] = str(home or cwd)
    command = [str(python), str(package / "runtime.pyz"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def unsigned(package):
    return f"warning: {package} is not signed: anyone could have changed it"


def test_device_needs_no_torch_and_gives_the_same_masks(device, built, scans, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("torch", "monai", "scipy", "pydantic", "nncf", "samkd"):
        result = subprocess.run([device, "-c", f"import {name}"], capture_output=True, check=False, cwd=home)
        assert result.returncode == 1, name
    scan, mask = scans / "p11.nii.gz", tmp_path / "mask.nii.gz"
    done = run(device, built, "predict", scan, "-o", mask, "--threads", "1", cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(mask) and done.stderr == f"{unsigned(built)}\n"
    labels, geometry = read_labels(mask)
    volume = read_scan(scan)
    assert geometry.same_grid(volume.geometry, tolerance_mm=1e-6)
    assert np.array_equal(labels, Package.open(built, threads=1).segment(volume)) and set(np.unique(labels)) == {
        0,
        1,
        2,
    }
    assert list(home.iterdir()) == []  # OpenVINO's telemetry leaves its identity in the home folder


def test_device_segments_a_folder_with_a_report(device, built, scans, tmp_path):
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    out, report = tmp_path / "masks", tmp_path / "report.json"
    done = run(device, built, "predict", scans, "-o", out, "--report", report, "--threads", 1, cwd=tmp_path)
    assert done.returncode == 3
    warning, *errors = done.stderr.splitlines()
    assert warning == unsigned(built)
    assert errors[0].startswith("error: ") and done.stderr.count("broken.nii.gz") == 2
    assert sorted(path.name for path in out.iterdir()) == ["p11.nii.gz", "p12.nii.gz"]
    content = json.loads(report.read_text())
    assert [Path(scan["scan"]).name for scan in content["scans"]] == ["p11.nii.gz", "p12.nii.gz"]
    assert Path(content["failed"][0]["scan"]).name == "broken.nii.gz"
    assert (content["precision"], content["inference_precision"], content["threads"]) == ("fp32", "f32", 1)
    assert content["layer_precisions"]["f32"] > 0 and content["engine"].startswith("openvino 20")
    assert (
        20 < content["peak_memory_mb"] < 1000 and 0 < content["seconds_per_scan"] < 60 and content["seconds_load"] > 0
    )
    assert content["signed_by"] is None and content["trusted"] is False
    first = content["scans"][0]
    assert set(first["seconds"]) == {"read", "preprocess", "network", "postprocess", "save"}
    assert all(value > 0 for value in first["seconds"].values())
    labels, geometry = read_labels(out / "p11.nii.gz")
    assert first["volumes_ml"] == volumes_ml(labels, geometry, {0: "background", 1: "liver", 2: "left kidney"})
    assert first["volumes_ml"]["liver"] == pytest.approx((labels == 1).sum() * 2.0 * 1.5 * 1.4 / 1000, rel=0.1)


def test_start_loads_nothing_that_is_never_used(built, scans, tmp_path):
    """nibabel would load pydicom, openvino its converter: three quarters of a second, on any machine that has them."""
    runtime = (sys.executable, "-X", "importtime", built / "runtime.pyz")
    command = [*runtime, "predict", scans / "p11.nii.gz", "-o", "mask.nii.gz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert {"nibabel.nifti1", "openvino"} <= loaded
    assert not {"pydicom.dataset", "openvino.tools.ovc.convert", "openvino_telemetry.main"} & loaded


def test_device_verifies_and_describes(device, built, tmp_path):
    done = run(device, built, "verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "files: all 9 are what was packed\nsample: identical to the mask that was packed\n"
    zipped = run(device, built, "info", "--package", built.with_name("student.zip"), cwd=tmp_path)
    assert zipped.returncode == 0, zipped.stderr
    assert "classes: liver, left kidney" in zipped.stdout and "computes in f32" in zipped.stdout
    assert "on 3 validation scans (torch: 1.0000)" in zipped.stdout


def test_runtime_alone_explains_what_is_missing(built, tmp_path):
    """An interpreter with nothing installed."""
    venv.create(tmp_path / "bare", with_pip=False)
    done = run(tmp_path / "bare/bin/python", built, "verify", cwd=tmp_path)
    assert done.returncode == 5
    assert done.stderr.startswith("error: numpy is not installed; run: python -m pip install -r requirements.txt")


def test_missing_engine_is_exit_5(package, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["verify", "--package", str(package)]) == 5
    assert "python -m pip install openvino" in capsys.readouterr().err


def test_tampered_package_is_exit_4_and_writes_no_mask(package, scans, tmp_path, capsys):
    raw = bytearray((package / "model.bin").read_bytes())
    raw[10] ^= 1
    (package / "model.bin").write_bytes(raw)
    mask = tmp_path / "mask.nii.gz"
    assert main(["predict", str(scans / "p11.nii.gz"), "-o", str(mask), "--package", str(package)]) == 4
    assert capsys.readouterr().err.startswith("error: ") and not mask.exists()


def reseal_expected(package, change):
    from samkd.deploy.runtime.integrity import digest, render
    from samkd.volumes.files import file_digest

    path = package / "sample/expected.nii.gz"
    labels, geometry = read_labels(path)
    write_labels(path, change(labels), geometry, like=package / "sample/scan.nii.gz")
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"]["sample/expected.nii.gz"] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (package / "manifest.json").write_bytes(render({**manifest, "digest": digest(manifest)}))


def without(count):
    def change(labels):
        labels = labels.copy()
        labels[tuple(index[:count] for index in np.nonzero(labels == 1))] = 0
        return labels

    return change


def test_verify_tells_a_rounding_difference_from_a_wrong_mask(package, capsys):
    reseal_expected(package, without(1))
    assert main(["verify", "--package", str(package), "--threads", "1"]) == 0
    assert "not identical, but Dice 0.999" in capsys.readouterr().out
    reseal_expected(package, without(40))
    assert main(["verify", "--package", str(package), "--threads", "1"]) == 4
    assert f"expected {SAMPLE_DICE}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{scans}", "-o", "{tmp}/mask.nii.gz"], "need a folder"),
        (["predict", "{scans}/p11.nii.gz", "{scans}/p12.nii.gz", "-o", "{tmp}/mask.nii"], "need a folder"),
        (["predict", "{scans}", "-o", "{scans}"], "would overwrite the scan"),
        (["predict", "{scans}/p11.nii.gz", "-o", "{scans}/p11.nii.gz"], "would overwrite the scan"),
        (["predict", "{scans}", "{scans}/p11.nii.gz", "-o", "{tmp}/masks"], "would have one mask"),
    ],
)
def test_places_that_cannot_be_meant_are_exit_2(package, scans, tmp_path, capsys, arguments, message):
    before = {path: path.read_bytes() for path in scans.iterdir()}
    filled = [argument.format(scans=scans, tmp=tmp_path) for argument in arguments]
    assert main([*filled, "--package", str(package)]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in scans.iterdir()} == before


def test_no_scan_no_package_and_wrong_options(package, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "-o", str(tmp_path / "m"), "--package", str(package)]) == 3
    assert main(["predict", str(tmp_path / "x.nii"), "-o", str(tmp_path / "m.nii"), "--package", str(package)]) == 3
    assert "x.nii" in capsys.readouterr().err and not (tmp_path / "m.nii").exists()
    assert main(["verify"]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["predict", "a.nii", "-o", "b.nii", "--threads", "0"])
    assert ended.value.code == 2


def test_volumes_are_in_millilitres():
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0] = 2
    geometry = Geometry(np.diag([10.0, 5.0, 2.0, 1.0]), labels.shape)
    assert volumes_ml(labels, geometry, {0: "background", 1: "a", 2: "b"}) == {"a": 0.0, "b": 3.0}


def test_device_serves_the_page_with_what_its_extra_names_alone(device, built, scans, tmp_path):
    extras = ["starlette", "uvicorn", "python-multipart"]
    command = [str(device), "-m", "pip", "install", "--quiet", *extras]
    if shutil.which("uv"):
        command = ["uv", "pip", "install", "--quiet", "--python", str(device), *extras]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot install {extras} here: {done.stderr.strip()[-300:]}")
    assert run(device, built, "predict", scans / "p11.nii.gz", "-o", "mask.nii.gz", cwd=tmp_path).returncode == 0
    with ServerProcess(built, tmp_path, python=device) as server:
        client = Client(server.port)
        (package,) = client.get("/api/packages").json
        (scan,) = client.upload({"p11.nii.gz": (scans / "p11.nii.gz").read_bytes()})
        job = client.finish(scan["id"], package["id"])
        assert client.get(f"/api/jobs/{job['id']}/mask").body == (tmp_path / "mask.nii.gz").read_bytes()
        assert b"<!doctype html>" in client.get("/").body.lower()
        (tmp_path / "IM1").write_bytes(bytes(128) + b"DICM")
        answer = client.send({"IM1": (tmp_path / "IM1").read_bytes()})
        assert answer.status == 501 and "pip install pydicom" in answer.json["error"]
