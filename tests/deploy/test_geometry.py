"""A package whose patches and overlap the gate chose, end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.packages import Levels, deploy, make_scan, reseal, validation_cases

from samkd.deploy.acceptance.geometries import InferenceGeometry
from samkd.deploy.runtime.__main__ import main as runtime
from samkd.deploy.runtime.memory import Budget
from samkd.deploy.runtime.package import Package
from samkd.errors import IntegrityError, UsageError
from samkd.evaluation.scores import score_case
from samkd.volumes import Volume
from samkd.volumes.io.nifti import write_scan
from samkd.volumes.plan import Plan

pytestmark = pytest.mark.slow


def resized(patch):
    """The network for another patch, and a few calibration patches: pieces of padded scans."""
    pieces = []
    for seed in range(4):
        scan = np.clip(make_scan(seed).array / 100, 0, 1).astype(np.float32)
        widths = [(0, max(0, width - size)) for size, width in zip(scan.shape[1:], patch, strict=True)]
        padded = np.pad(scan, [(0, 0), *widths])
        pieces.append(padded[(slice(None), *(slice(0, width) for width in patch))])
    return Levels(), pieces


def test_a_faster_geometry_is_packed_and_reproduces_its_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("samkd.deploy.acceptance.geometries._slower", lambda *_results: [])  # nothing timed is tested
    folder = deploy(Levels(), tmp_path, geometry="fastest", resized=resized, precision="int8", max_drop=0.01)
    package = Package.open(folder)
    first, *_, last = package.manifest.geometries
    assert (first.patch, first.overlap, first.refusal) == ((16, 16, 16), 0.5, None)
    assert (package.plan.patch, package.plan.overlap) == (last.patch, last.overlap) != (first.patch, first.overlap)
    assert last.refusal is None and last.work < first.work
    assert package.manifest.to_json()["plan_digest"] == package.plan.digest()
    assert package.manifest.precision == "int8"
    for case in validation_cases():
        scores = score_case(
            package.segment(case.volume), case.truth, spacing=case.volume.geometry.spacing, labels=package.class_names
        )
        assert all(row.dice is not None and row.dice > 0.985 for row in scores)
    assert runtime(["verify", "--package", str(folder), "--threads", "1"]) == 0
    assert "identical to the mask that was packed" in capsys.readouterr().out
    card = (folder / "MODEL_CARD.md").read_text()
    assert (
        "| 16 x 16 x 16 | 0.5 | " in card and f"| {' x '.join(map(str, last.patch))} | {last.overlap_text} | " in card
    )


def test_the_small_graph_is_for_small_scans_and_where_memory_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("samkd.deploy.acceptance.geometries._slower", lambda *_results: [])
    larger = [InferenceGeometry((32, 32, 32), 0.5)]
    monkeypatch.setattr("samkd.deploy.pipeline.cheaper_geometries", lambda *_arguments, **_options: larger)
    folder = deploy(Levels(), tmp_path, geometry="fastest", resized=resized, max_drop=0.01)
    package = Package.open(folder)
    graph, small = package.manifest.small, package.small
    assert graph is not None and small is not None
    assert (graph.model, graph.patch, graph.overlap) == ("model.small.xml", (16, 16, 16), 0.5)
    assert package.small is small and small.plan.patch == (16, 16, 16) and small.small is None
    assert package.fitting((19, 26, 31)) is package and package.fitting((10, 16, 12)) is small
    faster = package.faster().small
    assert faster is not None and faster.plan.overlap == 0.25

    volume = make_scan(3)
    piece = volume.array[:, 4:16, 4:16, 4:16]
    tiny = Volume(piece, replace(volume.geometry, shape=piece.shape[1:]))
    np.testing.assert_array_equal(package.segment(tiny), small.segment(tiny))

    budget = Budget(None, package)
    assert budget.choose(volume.geometry)[0] is package and budget.choose(tiny.geometry)[0] is small
    limited = Budget(1e12, package)
    assert limited.choose(volume.geometry)[0] is package
    vars(limited)["held"], limited._loaded, limited.limit = 400e6, 300e6, 450e6  # a patch takes 100 MB, the larger more
    assert limited.choose(volume.geometry)[0] is small

    write_scan(tmp_path / "tiny.nii.gz", tiny)
    places = ["--package", str(folder), "-o", str(tmp_path / "mask.nii.gz"), "--report", str(tmp_path / "report.json")]
    assert runtime(["predict", str(tmp_path / "tiny.nii.gz"), *places]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["scans"][0]["patch"] == [16, 16, 16]
    capsys.readouterr()

    values = json.loads((folder / "manifest.json").read_text())
    reseal(folder, small={**values["small"], "patch": [16, 16, 32]})
    broken = Package.open(folder)
    with pytest.raises(IntegrityError, match=r"plan\.patch 16 x 16 x 32, but model\.small\.xml takes"):
        broken.fitting((10, 16, 12))
    reseal(folder, small={**values["small"], "model": "model.xml"})
    with pytest.raises(IntegrityError, match=r"small\.model"):
        Package.open(folder)


def test_without_another_size_the_overlap_alone_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("samkd.deploy.acceptance.geometries._slower", lambda *_results: [])
    package = Package.open(deploy(Levels(), tmp_path, geometry="fastest", max_drop=0.05))
    assert {each.patch for each in package.manifest.geometries} == {(16, 16, 16)}
    assert package.plan.overlap < 0.5


def test_a_student_with_prompts_keeps_the_geometry_of_its_training(tmp_path):
    with pytest.raises(UsageError, match="lie in the patches it was trained with"):
        deploy(Levels(), tmp_path, geometry="fastest", prompt_kinds=("point",))
    assert Plan.from_dict(Package.open(deploy(Levels(), tmp_path)).plan.to_dict()).overlap == 0.5
