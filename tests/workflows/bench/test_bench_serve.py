import pytest

from samkd.errors import BadInputError
from samkd.volumes.io.nifti import write_scan
from samkd.workflows.bench.serve import bench_serve


@pytest.fixture
def file(scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", scan(3))
    return tmp_path / "scan.nii.gz"


@pytest.mark.slow
def test_every_upload_is_answered_or_refused_and_none_is_lost(built, file):
    costs = bench_serve(built, file, clients=4, uploads=12, threads=1)
    assert costs.counts == {"answered": 12, "refused": 0, "lost": 0} and not costs.faults
    assert 0 < costs.p50 <= costs.p95 < costs.seconds
    assert costs.peak_memory_mb is not None and 20 < costs.peak_memory_mb < 1000
    costs = bench_serve(built, file, clients=4, uploads=12, threads=1, words=["--max-uploads", "1"])
    assert costs.counts["lost"] == 0 and costs.counts["answered"] + costs.counts["refused"] == 12


def test_a_scan_that_is_none_is_refused(built, tmp_path):
    with pytest.raises(BadInputError, match="cannot be read"):
        bench_serve(built, tmp_path / "nowhere.nii.gz", clients=1, uploads=1)
