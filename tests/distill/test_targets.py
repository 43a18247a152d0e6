"""Soft targets land on the student's grid, at the right place, averaged, and are computed once."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oblique_scan import oblique_scan
from helpers.paths import ROOT
from helpers.processes import in_processes

from samkd.configs.schema import Augmentation
from samkd.distill.ensemble import Ensemble, EnsembleMember
from samkd.distill.soft_targets import cached_targets, validation_dice
from samkd.distill.target_cache import quantise
from samkd.errors import IntegrityError, UsageError
from samkd.training.patches import PatchBatches
from samkd.training.prepared import few_labels, prepare_cases
from samkd.volumes.datasets.registry import read_dataset
from samkd.volumes.geometry import Volume
from samkd.volumes.io.nifti import write_labels, write_scan
from samkd.volumes.plan import Plan, grid
from samkd.volumes.preprocess import preprocess_labels

UNIT = ({"rule": "window", "low": 0, "high": 2},)
TEACHER = Plan(orientation="SPL", size=(None, 32, 32), intensity=UNIT, patch=(5, 32, 32), overlap=0.4)
STUDENT = Plan(orientation="LAI", spacing=(2.0, 2.0, 2.0), intensity=UNIT, patch=(16, 16, 16))


class Reader(torch.nn.Module):
    """A teacher that reads the class off the intensity: 0, 1 or 2 on a [0, 2] window."""

    num_classes = 3
    prompt_kinds = frozenset()

    def __init__(self, sharpness=400.0):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(sharpness))
        self.calls = 0

    def forward(self, image, prompts=None):
        self.calls += 1
        centres = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1)
        return -self.sharpness * (image - centres).square()


def reader(network=None, *, plan=TEACHER, weights="one", weight=1.0) -> EnsembleMember:
    made = network or Reader()
    return EnsembleMember("reader", plan, weights, lambda: made, weight, frozenset())


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_targets_lie_where_the_students_labels_lie():
    volume, labels = oblique_scan()
    result = reader().probabilities(volume, grid(STUDENT, volume.geometry))
    truth = preprocess_labels(labels, volume.geometry, STUDENT)
    assert result.dtype == np.float32
    assert result.shape == (3, *truth.shape)
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)
    classes = result.argmax(0)
    # Half-way intensities at the rim of class 2 read as class 1, so position is judged on both together.
    aligned = dice(classes > 0, truth > 0)
    assert aligned > 0.95
    for axis in range(3):
        for shift in (-1, 1):
            assert dice(np.roll(classes > 0, shift, axis), truth > 0) < aligned
    assert dice(classes == 2, truth == 2) > 0.85
    assert dice(classes[:, :, ::-1] == 1, truth == 1) < 0.5


def test_several_teachers_are_averaged_by_their_weights():
    volume, _ = oblique_scan()
    onto = grid(STUDENT, volume.geometry)
    sharp, soft = reader(), reader(Reader(2.0))
    one, two = sharp.probabilities(volume, onto), soft.probabilities(volume, onto)
    even = Ensemble([sharp, soft])
    np.testing.assert_allclose(even.probabilities(volume, onto), (one + two) / 2, atol=1e-6)
    uneven = Ensemble([reader(weight=3.0), reader(Reader(2.0))])
    np.testing.assert_allclose(uneven.probabilities(volume, onto), 0.75 * one + 0.25 * two, atol=1e-6)
    assert even.key != uneven.key != Ensemble([sharp]).key
    swapped = Ensemble([reader(weights="a"), reader(weights="b")]), Ensemble([reader(weights="b"), reader(weights="a")])
    assert swapped[0].key == swapped[1].key


def write_dataset(root, names=("a", "b")):
    volume, labels = oblique_scan()
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    cases = []
    for number, name in enumerate(names, start=1):
        write_scan(root / "imagesTr" / f"{name}.nii.gz", Volume(volume.array / number, volume.geometry))
        write_labels(root / "labelsTr" / f"{name}.nii.gz", labels, volume.geometry, like=None)
        cases.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    content = {"labels": {"0": "background", "1": "one", "2": "two"}, "modality": {"0": "CT"}, "training": cases}
    (root / "dataset.json").write_text(json.dumps(content))
    return read_dataset(root)


def count_calls(root: Path, cache: Path) -> int:
    """How often this process asked the teacher for the targets of a dataset's cases."""
    dataset, network = read_dataset(root), Reader()
    prepared = prepare_cases(dataset.training, dataset, STUDENT, cache, on_case=lambda name: None)
    ensemble = Ensemble([reader(network)])
    cases = cached_targets(ensemble, dataset.training, prepared, dataset, plan=STUDENT, cache=cache, limit=1e9)
    assert all(case.soft_targets is not None for case in cases)
    return network.calls


@pytest.mark.slow
def test_each_of_two_processes_writes_its_share_of_the_targets(tmp_path):
    write_dataset(tmp_path / "data", names=("a", "b", "c"))
    calls = count_calls(tmp_path / "data", tmp_path / "one")
    assert in_processes(count_calls, tmp_path / "data", tmp_path / "two") == [calls * 2 // 3, calls // 3]
    written = [sorted((tmp_path / name / "targets").rglob("*.targets")) for name in ("one", "two")]
    assert len(written[0]) == 3
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data")


def fill(dataset, cache, *, ensemble=None, plan=STUDENT, limit=1e9):
    prepared = prepare_cases(dataset.training, dataset, plan, cache, on_case=lambda name: None)
    return cached_targets(
        ensemble or Ensemble([reader()]), dataset.training, prepared, dataset, plan=plan, cache=cache, limit=limit
    )


def test_the_cache_is_keyed_by_weights_plans_and_scans(dataset, tmp_path):
    def run(**changes):
        network = Reader()
        teacher = reader(network, **{key: changes[key] for key in ("weights",) if key in changes})
        made = fill(dataset, tmp_path / "cache", ensemble=Ensemble([teacher]), plan=changes.get("plan", STUDENT))
        return network.calls, [np.asarray(case.soft_targets) for case in made]

    calls, first = run()
    assert calls > 0
    volume, _ = oblique_scan()
    float_targets = reader().probabilities(volume, grid(STUDENT, volume.geometry))
    np.testing.assert_array_equal(first[0], quantise(float_targets))
    calls, again = run()
    assert calls == 0
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], first[1])
    other = Plan(orientation="LAI", spacing=(3.0, 3.0, 3.0), intensity=UNIT, patch=(16, 16, 16))
    assert run(plan=other)[0] > 0
    assert run(weights="two")[0] > 0
    network = Reader()
    fill(few_labels(write_dataset(tmp_path / "other", ("a", "b", "c")), 2, seed=0), tmp_path / "cache")
    fill(few_labels(dataset, 2, seed=0), tmp_path / "cache", ensemble=Ensemble([reader(network)]))
    assert network.calls == 0  # the scans are the same, with and without their masks


def test_a_case_without_a_mask_gets_its_patches_where_the_teacher_sees_organs(tmp_path):
    dataset = few_labels(write_dataset(tmp_path / "data", ("a", "b", "c")), 2, seed=0)
    made = fill(dataset, tmp_path / "cache")
    case = next(case for case in made if case.labels is None)
    result = np.asarray(case.soft_targets).argmax(0)
    assert set(case.class_locations) == set(np.unique(result)) - {0}
    for value, voxels in case.class_locations.items():
        assert (result[tuple(voxels.T)] == value).all()


def test_a_cache_beyond_its_limit_is_refused_before_anything_is_written(dataset, tmp_path):
    with pytest.raises(UsageError, match=r"of 2 cases would take about .* --cache-limit"):
        fill(dataset, tmp_path / "cache", limit=5000)
    assert not list((tmp_path / "cache").rglob("*.targets*"))
    made = fill(dataset, tmp_path / "cache", limit=1e6)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.targets"))
    assert 5000 < size < sum(np.asarray(case.soft_targets).nbytes for case in made) / 3


def test_a_flipped_byte_ends_the_reading(dataset, tmp_path):
    fill(dataset, tmp_path / "cache")
    path = sorted((tmp_path / "cache").rglob("*.targets"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        for case in fill(dataset, tmp_path / "cache"):
            np.asarray(case.soft_targets)


@pytest.mark.slow
def test_killed_while_writing_and_started_again_it_is_identical(tmp_path):
    """kill -9 once two of six files are there; the restart computes the others only, and all bytes are equal."""
    names = tuple("abcdef")
    dataset = write_dataset(tmp_path / "data", names)
    fill(dataset, tmp_path / "whole")
    program = f"""
        import importlib.util, pathlib, time
        spec = importlib.util.spec_from_file_location("targets_test", {__file__!r})
        module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
        class Slow(module.Reader):
            def forward(self, image, prompts=None):
                time.sleep(0.05)
                return super().forward(image)
        dataset = module.read_dataset(pathlib.Path({str(tmp_path / "data")!r}))
        ensemble = module.Ensemble([module.reader(Slow())])
        module.fill(dataset, pathlib.Path({str(tmp_path / "torn")!r}), ensemble=ensemble)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=environment)

    def files(name):
        return {path.name: path for path in (tmp_path / name / "targets").glob("*/*.targets")}

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(files("torn")) < 2:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 2 <= len(files("torn")) < 6
    before = {name: path.stat().st_mtime_ns for name, path in files("torn").items()}
    fill(dataset, tmp_path / "torn")
    torn, whole = files("torn"), files("whole")
    assert torn.keys() == whole.keys() and len(torn) == 6
    assert all(torn[name].read_bytes() == whole[name].read_bytes() for name in whole)
    assert all(torn[name].stat().st_mtime_ns == time_ for name, time_ in before.items())


def test_each_teacher_is_measured_on_the_students_validation_cases(dataset, tmp_path):
    blind = Reader(0.0)  # equal probabilities: everything is background
    ensemble = Ensemble([reader(), reader(blind, weights="blind")])
    scores = validation_dice(ensemble, dataset.training[:1], dataset, plan=STUDENT, cache=tmp_path / "cache")
    assert list(scores) == ["1 reader", "2 reader", "all together"]
    assert scores["1 reader"]["mean"] > 0.7
    assert scores["2 reader"]["mean"] == 0
    assert scores["all together"] == scores["1 reader"]
    calls = blind.calls
    again = validation_dice(ensemble, dataset.training[:1], dataset, plan=STUDENT, cache=tmp_path / "cache")
    assert again == scores and blind.calls == calls


def test_online_equals_cached_for_equal_plans(dataset, tmp_path):
    """On the student's flipped patches the teacher gives what the cache holds there, within the quantisation."""
    plan = Plan(orientation="SPL", intensity=UNIT, patch=(8, 16, 12))
    ensemble = Ensemble([reader(Reader(9.0), plan=plan), reader(Reader(2.0), plan=plan, weights="two")])
    ensemble.check_online(plan)
    batches = PatchBatches(
        fill(dataset, tmp_path / "cache", ensemble=ensemble, plan=plan),
        patch=plan.patch,
        batch=2,
        steps=8,
        foreground=0.5,
        augmentation=Augmentation(flip=("d", "h", "w")),
        seed=0,
    )
    for step in range(8):
        batch = batches[step]
        online = ensemble.on_patches(batch["image"])
        assert not online.requires_grad
        assert float((online - batch["soft_targets"]).abs().max()) <= 2 / 255
        assert torch.equal(online.argmax(1), batch["soft_targets"].argmax(1))


def test_a_teacher_that_needs_prompts_teaches_online_where_every_step_has_some():
    needy = replace(reader(), prompts_required=True)
    with pytest.raises(UsageError, match=r"finds nothing without prompts; .*student\.prompts\.kind=box"):
        Ensemble([needy]).check_online(needy.plan)
    Ensemble([needy]).check_online(needy.plan, prompted=True)


def test_online_is_refused_when_the_plans_differ():
    with pytest.raises(UsageError, match=r"--online: .*orientation SPL against LAI, spacing None"):
        Ensemble([reader()]).check_online(STUDENT)
