"""`samkd predict` and `runtime.pyz predict` are one verb: the same options, files, words and exit codes."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers.dicom_series import write_series
from helpers.packages import make_scan
from typer.testing import CliRunner

from samkd.cli.app import app
from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.cli import _parser
from samkd.deploy.runtime.package import Package
from samkd.volumes import Volume
from samkd.volumes.io.nifti import read_labels, write_scan

ONLY_OF_RUNS = {"--weights"}  # where the published file of a run lies
ONLY_OF_THE_DEVICE = {"--package", "-h"}  # samkd names the model as its first argument


@dataclass(frozen=True)
class Case:
    """Arguments of `predict`, relative to a folder of scans; what both doors must end with and say.

    `stderr` is what they say beside the warning that the package is not signed, which a case that fails before it is
    opened lacks. `changes` are made to the package; `masks` are the files that are new in the folder afterwards.
    """

    arguments: str
    code: int
    stderr: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    changes: dict = field(default_factory=dict)


TWO_CHANNELS = {"in_channels": 2}
PROMPTS = {"prompt_kinds": frozenset({"point"})}
CASES = {
    "scan": Case("-i scans/a.nii.gz -o m.nii.gz", 0, (), ("m.nii.gz",)),
    "two scans": Case("-i scans/a.nii.gz -i other.nii.gz -o m", 0, (), ("m/a.nii.gz", "m/other.nii.gz")),
    "mask over its scan": Case("-i scans/a.nii.gz -o scans/a.nii.gz", 2, ("would overwrite the scan",)),
    "mask over its scan, spelled differently": Case(
        "-i scans/a.nii.gz -o scans/../scans/./A.nii.gz", 2, ("would overwrite the scan",)
    ),
    "mask over its scan, through a link": Case("-i scans/a.nii.gz -o link.nii.gz", 2, ("would overwrite the scan",)),
    "folder into itself": Case("-i scans -o scans", 2, ("would overwrite the scan",)),
    "folder into a link to it": Case("-i scans -o linked", 2, ("would overwrite the scan",)),
    "one mask over one of several scans": Case(
        "-i scans/a.nii.gz -i other.nii.gz -o scans", 2, ("would overwrite the scan scans/a.nii.gz",)
    ),
    "DICOM into its own folder": Case("-i dicom -o dicom", 2, ("would lie among the scans",)),
    "report over a scan": Case("-i scans/a.nii.gz -o m.nii --report scans/a.nii.gz", 2, ("--report",)),
    "two scans of one name": Case("-i scans/a.nii.gz -i bad/a.nii.gz -o m", 2, ("would have one mask",)),
    "one bad scan of three": Case(
        "-i bad -o m",
        3,
        ("error: bad/b.nii.gz", "error: 1 of 3 scans have no mask: b.nii.gz"),
        ("m/a.nii.gz", "m/c.nii.gz"),
    ),
    "only a bad scan": Case("-i bad/b.nii.gz -o m.nii.gz", 3, ("error: bad/b.nii.gz",)),
    "wrong units": Case(
        "-i shifted.nii.gz -o m.nii", 0, ("warning: shifted.nii.gz: channel 0: intensities unlike",), ("m.nii",)
    ),
    "missing file": Case("-i nowhere.nii.gz -o m.nii.gz", 3, ("nowhere.nii.gz: no scan here",)),
    "folder and file": Case("-i bad -o m.nii.gz", 2, ("need a folder",)),
    "DICOM, another modality": Case(
        "-i dicom -o m.nii.gz", 0, ("the scan says modality MR, the model was trained on CT",), ("m.nii.gz",)
    ),
    "DICOM-SEG of a NIfTI scan": Case("-i scans/a.nii.gz -o m.dcm", 2, ("is no DICOM",)),
    "DICOM-SEG of another type": Case("-i dicom -o m.dcm --seg-type other", 2, ("choose binary or labelmap",)),
    "prompts without a network for them": Case(
        "-i scans/a.nii.gz -o m.nii --point 1,2,3 --class liver", 2, ("takes no prompts",)
    ),
    "prompts with several scans": Case(
        "-i bad -o m --point 1,2,3 --class liver", 2, ("prompts belong to one",), (), PROMPTS
    ),
    "prompt of an unknown class": Case(
        "-i scans/a.nii.gz -o m.nii --point 1,2,3 --class lung", 2, ("'lung' is unknown",), (), PROMPTS
    ),
    "prompts outside the scan": Case(
        "-i scans/a.nii.gz -o m.nii --point 999,2,3 --class liver", 3, ("lies outside the scan",), (), PROMPTS
    ),
    "two channels": Case("-i channels -o m", 0, (), ("m/p.nii.gz", "m/q.nii.gz"), TWO_CHANNELS),
    "two channels as files": Case(
        "-i channels/p_0000.nii.gz -i channels/p_0001.nii.gz -o m.nii", 0, (), ("m.nii",), TWO_CHANNELS
    ),
    "one channel of two": Case(
        "-i channels/p_0000.nii.gz -o m.nii", 3, ("expected 2, one a channel",), (), TWO_CHANNELS
    ),
    "too little memory": Case("-i scans/a.nii.gz -o m.nii --ram 1M", 2, ("--ram 1M",)),
    "no size": Case("-i scans/a.nii.gz -o m.nii --ram much", 2, ("for example 2G",)),
    "cache where others write": Case("-i scans/a.nii.gz -o m.nii --cache shared", 2, ("others could write there",)),
    "fast, largest component": Case("-i scans/a.nii.gz -o m.nii --fast --largest-component", 0, (), ("m.nii",)),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("scans", "bad", "channels", "shared"):
        (folder / name).mkdir()
    (folder / "shared").chmod(0o777)
    volume = make_scan(3)
    for name in ("scans/a", "bad/a", "bad/c", "other", *(f"channels/{n}_000{i}" for n in "pq" for i in (0, 1))):
        write_scan(folder / f"{name}.nii.gz", volume)
    write_scan(folder / "shifted.nii.gz", Volume(volume.array + 200, volume.geometry))
    (folder / "bad" / "b.nii.gz").write_bytes(b"no scan")
    for place in ("scans", "bad"):
        (folder / place / "._a.nii.gz").write_bytes(b"\0\5\x16\7")  # what macOS leaves in archives
    write_series(folder / "dicom", volume.array[0].astype(np.int16), spacing=(2.0, 1.5, 1.4), modality="MR")
    return folder


@pytest.fixture(scope="module")
def opened(built):
    return Package.open(built, threads=1)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_samkd(package, arguments, capsys):
    done = CliRunner().invoke(app, ["predict", str(package), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def by_runtime(package, arguments, capsys):
    code = main(["predict", *arguments, "--package", str(package)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize("name", CASES)
def test_both_doors_do_and_say_the_same(built, opened, inputs, tmp_path, monkeypatch, capsys, name):
    case = CASES[name]
    package = replace(opened, **case.changes)
    if "in_channels" in case.changes:
        package = replace(package, infer=lambda patches: opened.infer(patches[:, :1]))
    monkeypatch.setattr(Package, "open", lambda *_, **__: package)
    results = []
    for door in (by_samkd, by_runtime):
        folder = shutil.copytree(inputs, tmp_path / door.__name__)
        (folder / "link.nii.gz").symlink_to("scans/a.nii.gz")
        (folder / "linked").symlink_to("scans")
        monkeypatch.chdir(folder)
        before = content(folder)
        code, out, err = door(built, case.arguments.split(), capsys)
        after = content(folder)
        assert {path: after[path] for path in before} == before
        masks = {path: read_labels(folder / path)[0] for path in sorted(after.keys() - before.keys())}
        assert code == case.code, err
        warning = f"warning: {built} is not signed: anyone could have changed it\n"
        assert err.count(warning) == 1 or (err.count(warning) == 0 and case.code), err
        others = err.replace(warning, "")
        assert all(text in others for text in case.stderr) and (case.stderr or not others), err
        assert tuple(masks) == case.masks and out.split() == list(case.masks)
        results.append((code, out, err, [(path, mask.tobytes()) for path, mask in masks.items()]))
    assert results[0] == results[1]


def test_both_doors_have_the_same_options():
    samkd = {
        option
        for parameter in typer.main.get_command(app).commands["predict"].params  # pyright: ignore[reportAttributeAccessIssue]
        if parameter.param_type_name == "option"
        for option in parameter.opts
    }
    (verbs,) = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    runtime = {option for action in verbs.choices["predict"]._actions for option in action.option_strings}  # pyright: ignore
    assert samkd - ONLY_OF_RUNS - {"--help"} == runtime - ONLY_OF_THE_DEVICE - {"--help"}


def test_the_packed_runtime_is_that_door(built, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(inputs, tmp_path / "in"))
    arguments = ["shifted.nii.gz", "bad", "-o"]
    command = [sys.executable, str(built / "runtime.pyz"), "predict", *arguments, "device"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    code, out, err = by_samkd(built, ["-i", "shifted.nii.gz", "-i", "bad", "-o", "here"], capsys)
    assert (done.returncode, done.stdout.replace("device/", "here/"), done.stderr) == (code, out, err) and code == 3
    for path in sorted(Path("device").iterdir()):
        np.testing.assert_array_equal(read_labels(path)[0], read_labels(Path("here") / path.name)[0])
