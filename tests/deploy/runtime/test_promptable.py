"""A promptable student as a package: two graphs, prompts on the device, and one encoding for any number of clicks."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.packages import make_scan
from helpers.promptable import BOX, CLICKS, TAKES, lively_student, masks_of, packed

from samkd.deploy.acceptance.candidates import ValidationCase
from samkd.deploy.runtime.integrity import digest, render
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.prompt import answers
from samkd.deploy.runtime.promptable import Promptable
from samkd.errors import GateRefusedError, IntegrityError, UsageError
from samkd.students.small_sam.model import MAX_POINTS
from samkd.volumes.io.nifti import read_labels, write_scan
from samkd.volumes.io.scans import sources
from samkd.volumes.prompts import ClassPrompts, ScanPrompts
from samkd.workflows.models import load_model

pytestmark = pytest.mark.slow

pytest.importorskip("openvino", reason="samkd[openvino] is not installed")


@pytest.fixture(scope="module")
def student():
    return lively_student()


@pytest.fixture(scope="module")
def openvino(built_promptable):
    return built_promptable


@pytest.fixture(scope="module")
def onnx(student, tmp_path_factory):
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason="samkd[onnx] is not installed")
    return packed(student, tmp_path_factory.mktemp("onnx"), target="onnx")


@pytest.fixture(params=["openvino", "onnx"])
def made(request):
    return request.getfixturevalue(request.param)


def test_masks_are_the_networks_with_prompts_and_without(made, student):
    package = Package.open(made, threads=1)
    assert package.prompt_kinds == frozenset(TAKES) and isinstance(package.engine, Promptable)
    result = {}
    for name, prompts in (("none", None), ("clicks", CLICKS), ("box", BOX)):
        for seed, expected in enumerate(masks_of(student, prompts)):
            result[name, seed] = package.segment(make_scan(seed), prompts=prompts)
            assert len(np.unique(expected)) == 3 and (result[name, seed] == expected).mean() > 0.9998
    assert (result["none", 0] != result["clicks", 0]).mean() > 0.002
    assert (result["none", 0] != result["box", 0]).mean() > 0.02


def test_manifest_says_what_was_lost_with_prompts(made):
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["prompts"]["kinds"] == ["outside point", "point"] and manifest["prompts"]["points"] == MAX_POINTS
    assert manifest["prompts"]["decoder"] in manifest["files"]
    (step,) = manifest["ladder"]
    assert step["prompted"]["kind"] == "point" and step["prompted"]["agreement"] > 0.999
    assert step["prompted"]["per_class"]["liver"]["to_torch"]["dice"] > 0.99
    assert "point" in (made / "MODEL_CARD.md").read_text()


def test_a_scan_is_encoded_once_for_any_number_of_prompts(made, monkeypatch):
    package, volume = Package.open(made, threads=1), make_scan(1)
    session = package.session(package.preprocess(volume), volume.geometry)
    first = session.labels()
    assert isinstance(package.engine, Promptable)

    def encode_again(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(package.engine, "encoder", encode_again)
    again = {id(prompts): session.labels(prompts) for prompts in (CLICKS, BOX, None)}
    monkeypatch.undo()
    for prompts in (CLICKS, BOX):
        np.testing.assert_array_equal(again[id(prompts)], package.segment(volume, prompts=prompts))
    np.testing.assert_array_equal(first, again[id(None)])


def test_another_prompt_decodes_its_class_where_it_lies(openvino, monkeypatch):
    package, volume = Package.open(openvino, threads=1), make_scan(1)
    prepared = package.preprocess(volume)
    session = package.session(prepared, volume.geometry)
    assert isinstance(package.engine, Promptable)
    decoder, calls = package.engine.decoder, []
    monkeypatch.setattr(package.engine, "decoder", lambda *inputs: calls.append(1) or decoder(*inputs))
    session.labels()
    patches = len(calls)
    session.labels(CLICKS)
    first = len(calls) - patches
    assert 0 < first < patches  # two classes, each in the few patches that hold its points
    one_more = ScanPrompts({**CLICKS.classes, 2: ClassPrompts(((22, 15, 9, 1), (20, 15, 9, 1)))}, "voxel")
    result = session.labels(one_more)
    assert 0 < len(calls) - patches - first < first
    np.testing.assert_array_equal(result, package.segment(volume, prompts=one_more))
    monkeypatch.setattr("samkd.deploy.runtime.promptable._KEPT", 0)
    calls.clear()
    bounded = package.session(prepared, volume.geometry)
    for prompts in (None, one_more):
        labels = bounded.labels(prompts)
    np.testing.assert_array_equal(labels, result)
    assert len(calls) > 2 * patches


def test_runtime_answers_line_by_line(made, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", make_scan(2))
    lines = [
        {
            "space": "voxel",
            "classes": {"liver": {"points": [[10, 12, 5], [20, 8, 9, 0]]}, "left kidney": {"points": [[22, 15, 9]]}},
        },
        {"classes": {"spleen": {"points": [[1, 2, 3]]}}},
        {"space": "voxel", "classes": {"liver": {"points": [[10, 12, 500]]}}},
        {"space": "voxel", "classes": {"liver": {"boxes": [[1, 1, 1, 9, 9, 9]]}}},
        {"space": "voxel", "classes": {"liver": {"points": [[10, 12, 5]] * 7}}},
        {"space": "voxel", "classes": {"left kidney": {"points": [[22, 15, 9]]}}},
    ]
    done = subprocess.run(
        [sys.executable, made / "runtime.pyz", "prompt", tmp_path / "scan.nii.gz", "-o", tmp_path / "mask.nii.gz"],
        input="".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 8
    assert "spleen" in told[2]["error"] and "outside the scan" in told[3]["error"]
    assert "no prompt of the kind box" in told[4]["error"] and "7 points in one patch" in told[5]["error"]
    assert all(answer["seconds"] > 0 for answer in (*told[:2], *told[6:]))
    assert told[1]["volumes_ml"] == told[7]["volumes_ml"] != told[0]["volumes_ml"]
    mask, geometry = read_labels(tmp_path / "mask.nii.gz")
    assert geometry.same_grid(make_scan(2).geometry)
    np.testing.assert_array_equal(mask, Package.open(made).segment(make_scan(2), prompts=CLICKS))


def test_prompts_on_the_command_line_and_behind_samkds_door(made, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", make_scan(2))
    runtime = [sys.executable, made / "runtime.pyz"]
    command = [*runtime, "predict", tmp_path / "scan.nii.gz", "-o", tmp_path / "mask.nii.gz", "--space", "voxel"]
    clicks = ["--class", "left kidney", "--point", "22,15,9"]
    subprocess.run([*command, *clicks], check=True)
    model, only = load_model(made), ScanPrompts({2: CLICKS.classes[2]}, "voxel")
    model.accept(only.kinds)
    mask, _ = read_labels(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask, model.segment(make_scan(2), prompts=only))
    (tmp_path / "mask.nii.gz").unlink()
    done = subprocess.run(
        [*command, "--class", "liver", "--box", "1,1,1,9,9,9"], capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 2 and "no prompt of the kind box" in done.stderr and not (tmp_path / "mask.nii.gz").exists()
    )
    told = subprocess.run([*runtime, "info"], capture_output=True, text=True, check=True).stdout
    assert "prompts: outside point, point" in told


def test_a_package_without_prompts_refuses_them(built, tmp_path):
    write_scan(tmp_path / "scan.nii.gz", make_scan(2))
    (scan,) = sources(tmp_path / "scan.nii.gz")
    with pytest.raises(UsageError, match="takes no prompts"):
        next(answers(Package.open(built), scan, tmp_path / "mask.nii.gz", io.BytesIO()))
    assert not (tmp_path / "mask.nii.gz").exists()


def test_int8_keeps_the_decoder_in_float(student, openvino, tmp_path):
    package = Package.open(packed(student, tmp_path, precision="int8", max_drop=1), threads=1)
    assert isinstance(package.engine, Promptable)
    assert package.engine.encoder.layer_precisions().get("u8", 0) > 0
    for name in ("model.decoder.xml", "model.decoder.bin"):
        assert (package.folder / name).read_bytes() == (openvino / name).read_bytes()


def test_a_conversion_that_ignores_its_prompts_is_refused(student, tmp_path, monkeypatch):
    original = Promptable.decode
    monkeypatch.setattr(Promptable, "decode", lambda self, embedding, prompts=None: original(self, embedding, None))
    clicked = masks_of(student, CLICKS)
    automatic = masks_of(student)
    validation = [
        ValidationCase(f"case_{seed}", make_scan(seed), truth, mask)
        for seed, (truth, mask) in enumerate(zip(clicked, automatic, strict=True))
    ]
    with pytest.raises(GateRefusedError, match="with a point for each class, more than"):
        packed(student, tmp_path, validation=validation)
    assert not list((tmp_path / "packages").iterdir())


def test_a_manifest_that_lies_about_its_prompts_is_refused(openvino, tmp_path):
    package = shutil.copytree(openvino, tmp_path / "student")
    whole = json.loads((package / "manifest.json").read_text())
    for change in ({"decoder": "../model.decoder.xml"}, {"decoder": "none.xml"}, {"points": "many"}, {"kinds": 7}):
        manifest = {**whole, "prompts": {**whole["prompts"], **change}}
        del manifest["digest"]
        (package / "manifest.json").write_bytes(render({**manifest, "digest": digest(manifest)}))
        with pytest.raises(IntegrityError):
            Package.open(package)
