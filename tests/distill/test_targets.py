"""Teacher targets land on the student's grid, at the right place, and are computed once."""

import json

import numpy as np
import pytest
import torch

from samkd.distill.targets import cached_targets, teacher_probabilities
from samkd.volumes.dataset import read_dataset
from samkd.volumes.geometry import Geometry, Volume
from samkd.volumes.nifti import write_labels, write_scan
from samkd.volumes.plan import Plan, grid, prepare_labels

UNIT = ({"rule": "window", "low": 0, "high": 2},)
TEACHER = Plan(orientation="SPL", size=(None, 32, 32), intensity=UNIT, patch=(5, 32, 32), overlap=0.4)
STUDENT = Plan(orientation="LAI", spacing=(2.0, 2.0, 2.0), intensity=UNIT, patch=(16, 16, 16))


class Reader(torch.nn.Module):
    """A teacher that reads the class off the intensity: 0, 1 or 2 on a [0, 2] window."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(400.0))
        self.calls = 0

    def forward(self, image, prompts=None):
        self.calls += 1
        centres = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1)
        return -self.sharpness * (image - centres).square()


def scan() -> tuple[Volume, np.ndarray]:
    """Oblique, anisotropic, with two blocks that no symmetry maps onto each other."""
    labels = np.zeros((14, 40, 36), np.uint8)
    labels[3:8, 5:22, 4:16] = 1
    labels[8:13, 24:38, 18:34] = 2
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -1.1], [0, 1.3, 0], [4.0, 0, 0]])
    affine[:3, 3] = (10, -20, 30)
    geometry = Geometry(affine, labels.shape)
    return Volume(labels[None].astype(np.float32), geometry), labels


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_targets_lie_where_the_students_labels_lie():
    volume, labels = scan()
    onto = grid(STUDENT, volume.geometry)
    targets = teacher_probabilities(Reader(), volume, plan=TEACHER, student_grid=onto)
    truth = prepare_labels(labels, volume.geometry, STUDENT)
    assert targets.dtype == np.uint8
    assert targets.shape == (3, *truth.shape)
    found = targets.argmax(0)
    # Half-way intensities at the rim of class 2 read as class 1, so position is judged on both together.
    aligned = dice(found > 0, truth > 0)
    assert aligned > 0.95
    for axis in range(3):
        for shift in (-1, 1):
            assert dice(np.roll(found > 0, shift, axis), truth > 0) < aligned
    assert dice(found == 2, truth == 2) > 0.85
    mirrored = found[:, :, ::-1]
    assert dice(mirrored == 1, truth == 1) < 0.5
    assert np.abs(targets.sum(0).astype(int) - 255).max() <= 2


@pytest.fixture
def dataset(tmp_path):
    volume, labels = scan()
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    cases = []
    for name in ("a", "b"):
        shifted = Volume(volume.array * (1 if name == "a" else 0.5), volume.geometry)
        write_scan(tmp_path / "imagesTr" / f"{name}.nii.gz", shifted)
        write_labels(tmp_path / "labelsTr" / f"{name}.nii.gz", labels, volume.geometry, like=None)
        cases.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    content = {"labels": {"0": "background", "1": "one", "2": "two"}, "modality": {"0": "CT"}, "training": cases}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return read_dataset(tmp_path)


def test_the_cache_is_keyed_by_weights_plans_and_content(dataset, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")

    def run(teacher_plan=TEACHER, student_plan=STUDENT) -> tuple[int, list[np.ndarray]]:
        reader = Reader()
        made = cached_targets(
            reader,
            dataset.training,
            dataset,
            weights=weights,
            teacher_plan=teacher_plan,
            student_plan=student_plan,
            cache=tmp_path / "cache",
        )
        return reader.calls, made

    calls, first = run()
    assert calls > 0
    calls, again = run()
    assert calls == 0
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], first[1])
    other = Plan(orientation="LAI", spacing=(3.0, 3.0, 3.0), intensity=UNIT, patch=(16, 16, 16))
    assert run(student_plan=other)[0] > 0
    weights.write_bytes(b"two")
    assert run()[0] > 0
