"""DICOM through the verbs, as a user meets it; and no word of a header in anything they write or print."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pytest
from helpers.command_line import Outcome, run_cli
from helpers.dicom_series import IDENTITY, edit, plant, write_series

from samkd.volumes.io.dicom.series import read_series
from samkd.volumes.io.nifti import read_labels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """Two series of two bodies each (values 60 and 100 on 0), with twenty identity strings in every header."""
    folder = tmp_path_factory.mktemp("clinic")
    d, h, w = np.mgrid[:16, :24, :22]
    for seed, name in enumerate(("alpha", "beta")):
        one = (d - 7) ** 2 + (h - 8 - seed) ** 2 + (w - 8) ** 2 < 30
        two = (d - 8) ** 2 + (h - 17) ** 2 + (w - 15) ** 2 < 20
        write_series(
            folder / "in" / name,
            np.maximum(60 * one, 100 * two).astype(np.int16),
            spacing=(2.0, 1.5, 1.4),
            modality="MR",
            change=lambda dataset, index: plant(dataset),
        )
    return folder


@pytest.fixture(autouse=True)
def every_warning_is_shown(monkeypatch):
    """Warnings of the readers may quote a header; what they quote is searched too."""
    monkeypatch.setenv("PYTHONWARNINGS", "always")


def assert_no_identity(folder: Path, *done: Outcome | subprocess.CompletedProcess[str]) -> None:
    texts = [text.encode() for each in done for text in (each.stdout, each.stderr)]
    for path in folder.rglob("*"):
        texts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            raw = path.read_bytes()
            texts += [raw, gzip.GzipFile(fileobj=io.BytesIO(raw)).read() if path.suffix == ".gz" else b""]
    assert len(IDENTITY) == 20 and len(texts) > 2
    for name, value in IDENTITY.items():
        for written in (value, value.upper(), value.replace("^", " ")):
            assert not any(written.encode() in text for text in texts), name


def test_check_predict_and_the_runtime_write_nothing_of_the_patient(built, clinic, tmp_path):
    checked = run_cli("check", clinic / "in", cwd=tmp_path, in_process=True)
    assert checked.exit_code == 0 and "2 cases, no fault" in checked.stdout, checked.stderr
    for text in ("alpha", "beta", "16 x 24 x 22", "2 x 1.5 x 1.4", "SPL"):
        assert text in checked.stdout
    one = run_cli("predict", built, "-i", clinic / "in" / "alpha", "-o", "one.nii.gz", cwd=tmp_path, in_process=True)
    assert one.exit_code == 0, one.stderr
    labels, geometry = read_labels(tmp_path / "one.nii.gz")
    scan = read_series(clinic / "in" / "alpha")
    assert geometry.same_grid(scan.geometry, tolerance_mm=1e-4)
    assert np.mean(labels == np.select([scan.array[0] > 80, scan.array[0] > 30], [2, 1])) > 0.97
    several = run_cli("predict", built, "-i", clinic / "in", "-o", "masks", cwd=tmp_path, in_process=True)
    assert several.exit_code == 0, several.stderr
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["alpha.nii.gz", "beta.nii.gz"]
    command = [sys.executable, built / "runtime.pyz", "predict", clinic / "in"]
    device = subprocess.run(
        [*map(str, command), "-o", "device", "--report", "report.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert device.returncode == 0, device.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [Path(row["scan"]).name for row in report["scans"]] == ["alpha", "beta"]
    np.testing.assert_array_equal(read_labels(tmp_path / "device" / "alpha.nii.gz")[0], labels)
    assert_no_identity(tmp_path, checked, one, several, device)


def test_errors_repeat_nothing_of_a_header(built, clinic, tmp_path):
    folder = tmp_path / "broken" / "series"
    folder.mkdir(parents=True)
    for path in sorted((clinic / "in" / "alpha").iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    damaged = sorted(folder.iterdir())
    damaged[4].write_bytes(damaged[4].read_bytes()[:-100])
    (tmp_path / "out").mkdir()
    done = [
        run_cli("check", folder.parent, cwd=tmp_path / "out", in_process=True),
        run_cli("predict", built, "-i", folder, "-o", "mask.nii.gz", cwd=tmp_path / "out"),
    ]
    assert [each.exit_code for each in done] == [3, 3]
    assert all(damaged[4].name in each.stdout + each.stderr for each in done)
    assert list((tmp_path / "out").iterdir()) == []
    assert_no_identity(tmp_path / "out", *done)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_requested_dicom_seg_belongs_to_its_patient(built, clinic, tmp_path, kind):
    folder = clinic / "in" / "beta"
    done = run_cli("predict", built, "-i", folder, "-o", "mask.dcm", "--seg-type", kind, cwd=tmp_path, in_process=True)
    assert done.exit_code == 0 and done.stdout.strip() == "mask.dcm", done.stderr
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    assert seg.PatientID == IDENTITY["PatientID"] and seg.SegmentationType == kind.upper()
    assert [segment.SegmentLabel for segment in seg.SegmentSequence][-2:] == ["liver", "left kidney"]
    assert_no_identity(tmp_path / "nothing", done, done)


def test_what_cannot_be_meant_is_refused_before_any_work(built, clinic, tmp_path):
    done = run_cli("predict", built, "-i", clinic / "in", "-o", "mask.nii.gz", cwd=tmp_path, in_process=True)
    assert done.exit_code == 3 and "several scans (2: alpha, beta)" in done.stderr
    alpha = clinic / "in" / "alpha"
    done = run_cli(
        "predict", built, "-i", alpha, "-o", "mask.dcm", "--seg-type", "other", cwd=tmp_path, in_process=True
    )
    assert done.exit_code == 2 and "choose binary or labelmap" in done.stderr
    done = run_cli(
        "predict", built, "-i", built / "sample/scan.nii.gz", "-o", "mask.dcm", cwd=tmp_path, in_process=True
    )
    assert done.exit_code == 2 and "is no DICOM" in done.stderr
    blank = tmp_path / "blank"
    blank.mkdir()
    for path in alpha.iterdir():
        (blank / path.name).write_bytes(path.read_bytes())
        edit(blank / path.name, SeriesInstanceUID="", SOPInstanceUID="")
    done = run_cli("predict", built, "-i", blank, "-o", "mask.dcm", cwd=tmp_path, in_process=True)
    assert done.exit_code == 3 and "SOPInstanceUID, SeriesInstanceUID are blank" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["blank"]
