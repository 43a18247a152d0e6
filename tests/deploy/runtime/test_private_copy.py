"""What is used of a package are the bytes that were checked; what else lies in its folder is left alone."""

import json
import os
import subprocess
import sys
import zipfile
from hashlib import sha256

import numpy as np
import pytest
from helpers.command_line import run_cli
from helpers.packages import Levels, deploy, make_scan, reseal

from samkd.deploy.runtime.integrity import digest, render
from samkd.deploy.runtime.package import Package
from samkd.errors import BadInputError, IntegrityError
from samkd.volumes.io.nifti import read_labels, write_scan

PLANTED = ("numpy.py", "nibabel.py", "openvino.py", "samkd.py", "typer.py", "sitecustomize.py", "json.py")
LEFT_BY_SYSTEMS = (".DS_Store", "._model.xml", "Thumbs.db", "desktop.ini", "sample/.DS_Store", "__MACOSX/._x")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A package of another network: it calls the second body background."""
    network = Levels()
    network.head.bias.data[2] = -1000.0  # type: ignore[index]
    return deploy(network, tmp_path_factory.mktemp("other"), max_drop=1)


def swapped(package, other):
    """Put the other package's model into the place of the package's, as rename does."""
    for name in ("model.xml", "model.bin"):
        (package / "new").write_bytes((other / name).read_bytes())
        (package / "new").replace(package / name)


@pytest.mark.parametrize("moment", ["check_sample", "open_engine", "check_graphs"])
def test_a_model_that_is_swapped_after_its_check_is_not_used(package, other, monkeypatch, moment):
    import samkd.deploy.runtime.package as module

    real, scan = getattr(module, moment), make_scan(3)
    right = Package.open(package, threads=1).segment(scan)
    assert (Package.open(other, threads=1).segment(scan) != right).any()

    def hooked(*arguments, **options):
        swapped(package, other)
        return real(*arguments, **options)

    monkeypatch.setattr(module, moment, hooked)
    np.testing.assert_array_equal(Package.open(package, threads=1).segment(scan), right)
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match=r"model\.(xml|bin): is not the file that was packed"):
        Package.open(package)


def test_a_model_that_is_swapped_during_its_check_is_refused(package, other, monkeypatch):
    import samkd.deploy.runtime.private_copy as module

    real = module._copy

    def hooked(stream, target, *, most):
        if target.name == "model.bin":
            (package / "model.xml").write_bytes((other / "model.xml").read_bytes())
            stream.seek(0, os.SEEK_END)
        return real(stream, target, most=most)

    monkeypatch.setattr(module, "_copy", hooked)
    with pytest.raises(IntegrityError, match=r"model\.bin: is not the file"):
        Package.open(package)


@pytest.mark.parametrize("zipped", [False, True])
def test_the_copy_is_private_and_goes_with_the_package(package, tmp_path, monkeypatch, zipped):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    opened = Package.open(package.with_name("student.zip") if zipped else package, threads=1)
    assert opened.folder.stat().st_mode & 0o777 == 0o700 and (opened.folder / "model.xml").is_file()
    del opened
    assert not list((tmp_path / "scratch").iterdir())


def test_what_a_killed_process_left_is_cleared_by_the_next(package, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = "import os, sys; from samkd.deploy.runtime.package import Package\n"
    program += "opened = Package.open(sys.argv[1], threads=1); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", program, str(package)]
    subprocess.run(command, env={**os.environ, "TMPDIR": str(scratch)}, check=False)
    (left,) = scratch.iterdir()
    os.utime(left, (0, 0))
    program = program.replace("os.kill(os.getpid(), 9)", "del opened; print(os.listdir(os.environ['TMPDIR']))")
    done = subprocess.run(
        [*command[:2], program, str(package)],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_no_room_for_the_copy_is_said(package, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(BadInputError, match=r"needs \d+ bytes in .*, which has 100. Make room there, or name another"):
        Package.open(package)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(BadInputError, match="TMPDIR"):
        Package.open(package)


def bomb(package, path, size, name):
    """A zip of the package with one file more, `size` zeros that its manifest names."""
    values = json.loads((package / "manifest.json").read_text())
    chunk, checksum = bytes(1 << 20), sha256()
    for _ in range(size >> 20):
        checksum.update(chunk)
    values["files"][name] = {"bytes": size, "sha256": checksum.hexdigest()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("manifest.json", render({**values, "digest": digest(values)}))
        for each in values["files"].keys() - {name}:
            packed.write(package / each, each)
        with packed.open(name, "w", force_zip64=True) as stream:
            for _ in range(size >> 20):
                stream.write(chunk)


def peak_of(*arguments):
    """(exit code, what was said, peak memory in MB) of the runtime in a process of its own."""
    program = (
        "import sys\nfrom samkd.deploy.runtime.__main__ import main\n"
        "from samkd.volumes.memory import peak_bytes\n"
        "code = main(sys.argv[1:]); print('PEAK', peak_bytes() / 1e6); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, float(done.stdout.split("PEAK")[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding.bin", "model.bin"])
def test_what_a_zip_claims_takes_no_memory(package, tmp_path, name):
    _, _, base = peak_of("verify", "--package", package, "--threads", "1")
    bomb(package, tmp_path / "bomb.zip", 400 << 20, name)
    assert (tmp_path / "bomb.zip").stat().st_size < 3 << 20
    code, said, peak = peak_of("verify", "--package", tmp_path / "bomb.zip", "--threads", "1")
    assert code == (0 if name == "padding.bin" else 4), said
    assert peak < base + 150, (base, peak)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_take_memory_at_will_are_refused(package, tmp_path, method):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", method) as packed:
        for path in package.rglob("*"):
            if path.is_file():
                packed.write(path, path.relative_to(package).as_posix())
    with pytest.raises(IntegrityError, match="another method than deflate"):
        Package.open(tmp_path / "odd.zip")


@pytest.mark.parametrize("kind", ["many entries", "zip64", "a long list claimed", "cut"])
def test_the_list_of_a_zip_is_judged_before_it_is_read(package, tmp_path, kind, monkeypatch):
    """zipfile would hold half a kilobyte in memory for each of the entries."""
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number in range(70_000 if kind == "zip64" else 30_000 if kind == "many entries" else 1):
            packed.writestr(f"{number}", b"")
    raw = archive.read_bytes()
    if kind == "cut":
        archive.write_bytes(raw[:-3])
    elif kind == "a long list claimed":
        archive.write_bytes(raw[:-10] + (1 << 30).to_bytes(4, "little") + raw[-6:])
    reading = []
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda *_args, **_options: reading.append(1))
    match = "is no package" if kind == "cut" else "longer than that of any package"
    with pytest.raises(BadInputError if kind == "cut" else IntegrityError, match=match):
        Package.open(archive)
    assert not reading


def test_more_than_a_package_may_hold(package):
    values = json.loads((package / "manifest.json").read_text())
    values["files"]["padding.bin"] = {"bytes": 2 << 30, "sha256": "0" * 64}
    (package / "manifest.json").write_bytes(render({**values, "digest": digest(values)}))
    with pytest.raises(IntegrityError, match="a package holds at most 64 files and 2147483648 bytes"):
        Package.open(package)


def in_folder(package, *arguments, door):
    """Run a door as a process in the package's folder, as the README does."""
    programs = {
        "runtime": [sys.executable, "runtime.pyz"],
        "module": [sys.executable, "-m", "samkd"],
        "script": [sys.executable, "-P", "-c", "from samkd.cli.app import main; main()"],
    }
    command = [*programs[door], *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=package, env=environment, check=False)


@pytest.mark.slow
def test_the_commands_of_the_readme_work_in_the_package_again_and_again(package):
    write_scan(package / "scan.nii.gz", make_scan(3))
    for name in LEFT_BY_SYSTEMS:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_bytes(b"\0\0\0\1Bud1")
    masks = []
    for _ in range(2):
        done = in_folder(package, "verify", door="runtime")
        assert done.returncode == 0, done.stderr
        assert "not part of the package, and not used: .DS_Store, ._model.xml, Thumbs.db" in done.stdout
        done = in_folder(package, "predict", "scan.nii.gz", "-o", "mask.nii.gz", door="runtime")
        assert done.returncode == 0, done.stderr
        masks.append((package / "mask.nii.gz").read_bytes())
    assert masks[0] == masks[1] and read_labels(package / "mask.nii.gz")[0].any()
    done = run_cli("verify", package, in_process=True)
    assert done.exit_code == 0 and "and 3 more" in done.stdout, done.text


@pytest.mark.slow
@pytest.mark.parametrize("door", ["runtime", "module", "script"])
def test_no_file_beside_the_package_is_imported(package, tmp_path, door):
    marker = tmp_path / "ran"
    for name in PLANTED:
        (package / name).write_text(f"open({str(marker)!r}, 'a').write({name!r})")
    write_scan(tmp_path / "scan.nii.gz", make_scan(3))
    if door == "module":
        (package / "samkd.py").unlink()  # python -m samkd would be that file, before samkd can do anything about it
    arguments = {"runtime": [["verify"], ["info"]]}.get(door, [["verify", "."]])
    scan = ["-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "mask.nii"]
    arguments.append(["predict", *([] if door == "runtime" else ["."]), *scan])
    for words in arguments:
        done = in_folder(package, *words, door=door)
        assert done.returncode == 0, done.stderr
    assert not marker.exists(), marker.read_text()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "linked parent"])
@pytest.mark.parametrize("name", ["model.bin", "sample/scan.nii.gz", "manifest.json", "manifest.sig"])
def test_only_plain_files_stand_under_the_names_of_the_package(package, tmp_path, kind, name):
    path = package / name
    if kind == "linked parent":
        path = package / "sample"
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink(missing_ok=True)
        if kind == "link":
            path.symlink_to(package / "model.xml")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
    with pytest.raises(IntegrityError, match="no plain file"):
        Package.open(package)


def test_resealed_packages_of_the_tests_open(package):
    reseal(package)
    for path in (package, package.with_name("student.zip")):
        assert Package.open(path, threads=1).manifest.name == "student"
