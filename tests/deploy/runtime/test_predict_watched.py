"""Whoever watches a scan being segmented is told how far it is, and can end it."""

from itertools import groupby

import pytest
from helpers.packages import make_scan

from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.predict import predict_scan
from samkd.volumes.io.nifti import write_scan
from samkd.volumes.io.scans import Source


@pytest.fixture(scope="module")
def package(built):
    return Package.open(built, threads=1)


@pytest.fixture
def scan(tmp_path):
    write_scan(tmp_path / "scan.nii.gz", make_scan(3))
    return Source("scan", (tmp_path / "scan.nii.gz",))


class EndedError(Exception):
    """What a watcher raises."""


def test_stages_come_in_their_order_and_patches_one_by_one(package, scan, tmp_path):
    told = []
    predict_scan(package, scan, tmp_path / "mask.nii.gz", watch=lambda stage, fraction: told.append((stage, fraction)))
    assert [stage for stage, _ in groupby(told, key=lambda each: each[0])] == [
        *("reading", "preparing", "network", "writing")
    ]
    fractions = [fraction for stage, fraction in told if stage == "network"]
    assert len(fractions) > 4
    assert fractions == pytest.approx([number / len(fractions) for number in range(len(fractions))])


@pytest.mark.parametrize("stage", ["reading", "preparing", "network", "writing"])
def test_a_scan_that_is_ended_leaves_nothing_and_the_package_works_on(package, scan, tmp_path, stage):
    def watch(told, fraction):
        if told == stage and (told != "network" or fraction > 0.4):
            raise EndedError

    before = sorted(tmp_path.iterdir())
    with pytest.raises(EndedError):
        predict_scan(package, scan, tmp_path / "mask.nii.gz", watch=watch)
    assert sorted(tmp_path.iterdir()) == before
    predict_scan(package, scan, tmp_path / "after.nii.gz")
    predict_scan(package, scan, tmp_path / "again.nii.gz")
    assert (tmp_path / "after.nii.gz").read_bytes() == (tmp_path / "again.nii.gz").read_bytes()
