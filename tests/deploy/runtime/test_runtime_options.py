"""--ram, --fast, --largest-component and the flags of the device's runtime."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samkd.deploy.runtime import memory
from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.memory import Budget
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.quality import flags, intensity_profile
from samkd.errors import BadInputError, UsageError
from samkd.volumes.byte_sizes import parse_bytes
from samkd.volumes.components import largest_components
from samkd.volumes.geometry import Geometry, Volume
from samkd.volumes.io.nifti import read_geometry, read_labels, write_scan

pytestmark = pytest.mark.slow


@pytest.fixture
def large(tmp_path):
    """A scan of 13 million voxels, 52 MB, smooth enough to be written quickly."""
    d, h, w = np.ogrid[:200, :256, :256]
    values = (40 + 30 * np.sin(d / 20) * np.cos(h / 25) * np.sin(w / 30)).astype(np.float32)
    write_scan(tmp_path / "large.nii", Volume(values[None], Geometry(np.diag([1.0, 1, 1, 1]), values.shape)))
    return tmp_path / "large.nii"


def predicted(package, scan, mask, *options):
    """Report of a run in a process of its own."""
    report = mask.with_suffix(".json")
    command = [sys.executable, "-m", "samkd.deploy.runtime", "predict", scan, "-o", mask, "--package", package]
    command += ["--report", report, "--threads", 1, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return done, json.loads(report.read_text()) if done.returncode == 0 else {}


def test_the_memory_that_was_allowed_is_enough_and_is_kept(built, large, tmp_path):
    done, free = predicted(built, large, tmp_path / "free.nii")
    assert done.returncode == 0, done.stderr
    limit = free["peak_memory_mb"]
    done, _ = predicted(built, large, tmp_path / "small.nii", "--ram", "150M")
    assert done.returncode in (2, 3) and not (tmp_path / "small.nii").exists()
    assert "--ram" in done.stderr and "MB" in done.stderr and done.stderr.count("error: ") == 1
    allowed = int(limit * 1.15)
    done, kept = predicted(built, large, tmp_path / "kept.nii", "--ram", f"{allowed}M", "--largest-component")
    assert done.returncode == 0, done.stderr
    assert kept["peak_memory_mb"] < allowed
    labels, _ = read_labels(tmp_path / "free.nii")
    np.testing.assert_array_equal(read_labels(tmp_path / "kept.nii")[0], largest_components(labels))


def test_a_budget_bounds_what_a_scan_takes(built, tmp_path):
    """The estimate for scans of several shapes is above what they really take, by 15 % at most."""
    program = (
        "import sys, json, numpy as np\n"
        "from samkd.deploy.runtime.memory import Budget\n"
        "from samkd.volumes.memory import peak_bytes\n"
        "from samkd.deploy.runtime.package import Package\n"
        "from samkd.volumes.geometry import Geometry, Volume\n"
        "package = Package.open(sys.argv[1], threads=1)\n"
        "shape = tuple(json.loads(sys.argv[2]))\n"
        "geometry = Geometry(np.diag([1.0, 1, 1, 1]), shape)\n"
        "need = Budget(1e12, package).needed(geometry, at_once=2)\n"
        "values = np.linspace(0, 100, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)\n"
        "package.segment(Volume(values, geometry))\n"
        "print(json.dumps([need, peak_bytes()]))\n"
    )
    for shape in [(200, 256, 256), (300, 300, 300), (4000, 40, 40)]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(built), json.dumps(shape)], capture_output=True, text=True, check=True
        )
        need, peak = json.loads(done.stdout)
        assert peak < need < 1.15 * peak, (shape, need, peak)


def test_fewer_patches_at_once_when_memory_is_short(built):
    package = Package.open(built, threads=1)
    source = Geometry(np.eye(4), (18, 18, 18))
    roomy = Budget(1e12, package)
    one, two = (roomy.needed(source, at_once=count) for count in (1, 2))
    assert one < two and roomy.at_once(source, most=2) == 2
    roomy.limit = (one + two) / 2
    assert roomy.at_once(source, most=2) == 1
    roomy.limit = one - 1
    with pytest.raises(BadInputError, match=r"18 x 18 x 18 voxels needs up to \d+ MB.*Give more"):
        roomy.at_once(source, most=2)
    with pytest.raises(UsageError, match=r"took \d+ MB already"):
        Budget(1e6, package)


def test_without_ram_what_is_free_is_the_limit(built, monkeypatch):
    package = Package.open(built, threads=1)
    source, large = Geometry(np.eye(4), (18, 18, 18)), Geometry(np.eye(4), (400, 400, 400))
    monkeypatch.setattr(memory, "available_memory", lambda: 4e9)
    budget = Budget(None, package)
    assert budget.at_once(source, most=2) == 2 and "held" not in vars(budget)  # nothing was inferred to find that out
    monkeypatch.setattr(memory, "available_memory", lambda: 5e8)
    assert budget.at_once(source, most=2) == 2
    with pytest.raises(BadInputError, match=r"400 x 400 x 400 voxels needs up to \d+ MB.*; \d+ MB are free here"):
        budget.at_once(large, most=2)


@pytest.fixture
def small_cgroup():
    """A cgroup of 300 MB, as a container or a batch job has it."""
    group = Path("/sys/fs/cgroup/memory") / f"samkd-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("300000000")
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 can be made here ({error.strerror})")
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()


def test_a_scan_too_large_for_its_cgroup_is_refused_where_the_kernel_would_kill(built, small_cgroup, tmp_path):
    scan = tmp_path / "scan.nii"
    write_scan(scan, Volume(np.zeros((1, 300, 300, 300), np.float32), Geometry(np.eye(4), (300, 300, 300))))
    program = (
        "import os, runpy, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "sys.argv[:2] = ['runtime']\n"
        "runpy.run_module('samkd.deploy.runtime', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, small_cgroup, "predict", scan, "-o", tmp_path / "mask.nii"]
    done = subprocess.run([*map(str, command), "--package", str(built)], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stderr.count("error: ") == 1, done.stderr
    assert not (tmp_path / "mask.nii").exists()


@pytest.mark.parametrize("text", ["", "2", "G", "two G", "2K", "-1G", "0G", "1e3M", "1.2.3G"])
def test_a_size_that_is_none(text):
    with pytest.raises(UsageError, match="for example 2G"):
        parse_bytes(text)


def test_sizes():
    assert parse_bytes("2G") == 2e9 and parse_bytes("1.5g") == 1.5e9 and parse_bytes("700M") == 7e8


def test_the_grid_is_read_from_the_header_alone(large):
    with large.open("r+b") as file:
        file.truncate(400)
    assert read_geometry(large).shape == (200, 256, 256)


def test_fast_infers_fewer_patches_and_says_so(built, scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", scan(5))
    reports = [predicted(built, tmp_path / "scan.nii.gz", tmp_path / f"{n}.nii", *n.split()) for n in ("", "--fast")]
    assert [report["overlap"] for _, report in reports] == [0.5, 0.25]
    calls: list[int] = []
    for package in (Package.open(built, threads=1), Package.open(built, threads=1).faster()):
        count = []
        infer = lambda patches, infer=package.infer, count=count: count.append(1) or infer(patches)  # noqa: E731
        replace(package, infer=infer).segment(scan(5))
        calls.append(len(count))
    assert calls[1] < calls[0]


def test_scans_unlike_the_training_data_are_flagged_not_refused(built, scan, tmp_path, capsys):
    usual, shifted = scan(21), scan(22)
    write_scan(tmp_path / "usual.nii.gz", usual)
    write_scan(tmp_path / "shifted.nii.gz", Volume(shifted.array + 200, shifted.geometry))
    report = tmp_path / "report.json"
    command = ["predict", str(tmp_path / "usual.nii.gz"), str(tmp_path / "shifted.nii.gz"), "-o", str(tmp_path / "m")]
    assert main([*command, "--package", str(built), "--threads", "1", "--report", str(report)]) == 0
    result = [each["flags"] for each in json.loads(report.read_text())["scans"]]
    assert result[0] == [] and len(result[1]) == 1
    assert result[1][0].startswith("channel 0: intensities unlike the training data")
    assert f"warning: {tmp_path / 'shifted.nii.gz'}: channel 0" in capsys.readouterr().err


def test_flags():
    rng = np.random.default_rng(0)
    scans = [rng.normal(0.5, 0.1, (1, 20, 20, 20)).astype(np.float32) for _ in range(3)]
    profile = intensity_profile(scans, [part[:, :8, :8, :8] for part in scans])
    assert json.loads(json.dumps(profile)) == profile and len(profile) == 1
    fine = Geometry(np.diag([2.0, 1, 1, 1]), (10, 20, 20))
    labels = np.ones(fine.shape, np.uint8)

    def result(scan, source=fine, labels=labels, spacing=(2.0, 1.0, None)):
        return flags(Volume(scan, source.resized((20, 20, 20))), source, labels, profile=profile, spacing=spacing)

    assert result(rng.normal(0.5, 0.1, (1, 20, 20, 20)).astype(np.float32)) == []
    for strange in (scans[0] + 0.2, scans[0] * 0.1, 1 - 2 * scans[0], np.zeros_like(scans[0])):
        assert ["unlike" in line for line in result(strange.astype(np.float32))] == [True]
    assert result(scans[0], spacing=(0.9, 1.0, 1.0)) == ["voxels of 2 mm along d, the network works on 0.9 mm"]
    assert result(scans[0], labels=0 * labels) == ["nothing was found: every voxel is background"]
