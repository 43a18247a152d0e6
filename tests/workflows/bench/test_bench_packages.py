import json
import shutil

import pytest

from samkd.errors import BadInputError
from samkd.volumes.io.nifti import read_labels, write_scan
from samkd.workflows.bench.packages import STAGES, bench_packages
from samkd.workflows.device import on_device

pytestmark = pytest.mark.slow


def test_a_folder_and_its_zip_are_measured_in_processes_of_their_own(built):
    packages = [built, built.with_name("student.zip")]
    rows = bench_packages(packages, shape=(20, 24, 28), threads=1, torch=None)
    assert [row["model"] for row in rows] == ["student", "student.zip"]  # the run it came from is not here
    for row in rows:
        assert tuple(row["seconds"]) == STAGES and all(value > 0 for value in row["seconds"].values())
        assert sum(row["seconds"].values()) < row["process"] and 20 < row["peak_memory_mb"] < 1000
        assert (row["precision"], row["threads"]) == ("fp32", 1)
    assert json.loads(json.dumps(rows)) == rows


def test_the_runtime_of_a_zip_segments(built, scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", scan(3))
    masks = []
    for package in (built, built.with_name("student.zip")):
        out = tmp_path / package.name
        out.mkdir()
        masks.append(read_labels(on_device(package, [tmp_path / "scan.nii.gz"], out).masks["scan.nii.gz"])[0])
    assert (masks[0] == masks[1]).all() and masks[0].any()


def test_what_is_no_package_is_refused_before_anything_runs(package, tmp_path):
    with pytest.raises(BadInputError, match="is no package"):
        bench_packages([tmp_path / "nowhere"], shape=(20, 24, 28), threads=1, torch=None)
    (tmp_path / "runs").mkdir()
    shutil.copyfile(package.with_name("student.zip"), tmp_path / "runs" / "student.zip")
    with pytest.raises(BadInputError, match="not a run folder"):
        bench_packages([tmp_path / "runs/student.zip"], shape=(20, 24, 28), threads=1, torch=tmp_path / "runs")
