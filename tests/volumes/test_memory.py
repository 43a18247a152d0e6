import numpy as np
import pytest

from samkd.errors import BadInputError
from samkd.volumes import Geometry, Plan, Volume, memory
from samkd.volumes.memory import available_memory
from samkd.volumes.preprocess import preprocess

PLAN = Plan(spacing=(4.0, 4.0, 4.0), intensity=(), patch=(4, 4, 4))


def scan(voxel: float, shape=(30, 40, 50)) -> Volume:
    return Volume(np.zeros((1, *shape), np.float32), Geometry(np.diag([voxel, voxel, voxel, 1]), shape))


def test_micrometres_taken_for_millimetres_are_refused_before_anything_is_allocated():
    with pytest.raises(BadInputError, match=r"voxels of 4175 x 4175 x 4175 mm, a grid of 52188 x 41750 .* micrometres"):
        preprocess(scan(4175), PLAN)


def test_metres_taken_for_millimetres_are_refused():
    with pytest.raises(BadInputError, match=r"voxels of 0\.004 .* is its header in metres"):
        preprocess(scan(0.004), PLAN)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (1, 40, 50)])
def test_small_scans_of_patients_are_not(shape):
    assert preprocess(scan(1.0, shape), PLAN).array.size


def test_a_large_grid_of_a_sound_scan_is_no_matter_of_units(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1e5)
    with pytest.raises(BadInputError, match=r"memory are free\. Cut the scan"):
        preprocess(scan(5.0), PLAN)
    preprocess(scan(1.0), PLAN)


@pytest.mark.parametrize(
    ("limit", "details", "left"),
    [
        ("1000000\n", "anon 5\ninactive_file 1000\n", 401000),
        ("1000000\n", "nothing\n", 400000),
        ("max\n", "", None),
        ("9223372036854771712\n", "", None),
        ("500\n", "", 0),
    ],
)
@pytest.mark.parametrize("folder", [".", "memory", "memory/job/step", "memory/job", "unit.slice", "unit.slice/job"])
def test_the_limits_of_a_container_and_of_a_job_count(tmp_path, monkeypatch, limit, details, left, folder):
    group = tmp_path / folder
    group.mkdir(parents=True, exist_ok=True)
    files = memory._FILES_V1 if "memory" in folder.split("/") else memory._FILES_V2
    for name, text in zip(files, (limit, "600000\n", details), strict=True):
        (group / name).write_text(text)
    (tmp_path / "membership").write_text("12:cpu,cpuacct:/elsewhere\n5:memory:/job/step\n0::/unit.slice/job\n")
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "_free_memory", lambda: 2e9)
    assert available_memory() == (2e9 if left is None else left)
