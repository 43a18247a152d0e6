import copy
import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from samkd.deploy.acceptance.candidates import ValidationCase
from samkd.deploy.export import openvino as openvino_target
from samkd.deploy.export import quantize_openvino as openvino_int8
from samkd.deploy.export.graphs import whole
from samkd.deploy.runtime.package import Package
from samkd.errors import BadInputError, GateRefusedError, OutputError, UsageError
from samkd.volumes.geometry import Geometry, Volume
from samkd.volumes.io.nifti import read_labels, read_scan

pytestmark = pytest.mark.slow

FILES = {
    *("MODEL_CARD.md", "manifest.json", "model.bin", "model.xml", "requirements.txt", "runtime.pyz", "sbom.cdx.json"),
    *("configs/metadata.json", "sample/expected.nii.gz", "sample/scan.nii.gz"),
}


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def nothing_left(tmp_path):
    return not (tmp_path / "packages").exists() or not list((tmp_path / "packages").iterdir())


class Constant(nn.Module):
    """A student whose encoder is dead: only its last bias speaks."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(1, 3, 1)
        nn.init.zeros_(self.encoder.weight)

    def forward(self, image):
        return self.encoder(image)


class Shifted(nn.Module):
    """Sees class 2 where the student sees background and class 1 where it sees class 2."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image).roll(1, 1)


class Overflowing(nn.Module):
    """A first layer whose weights lie beyond float16, and a second that takes it back."""

    def __init__(self, network):
        super().__init__()
        self.network = copy.deepcopy(network)
        with torch.no_grad():
            self.network.features.weight *= 2.0**20
            self.network.head.weight /= 2.0**20

    def forward(self, image):
        return self.network(image)


def test_package_holds_everything_and_says_what_it_is(built):
    assert files(built) == FILES
    manifest = json.loads((built / "manifest.json").read_text())
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert (manifest["precision"], manifest["inference_precision"]) == ("fp32", "f32")
    assert manifest["labels"]["1"]["name"] == "liver" and manifest["labels"]["0"]["colour"] == [0, 0, 0]
    assert manifest["provenance"]["run"] == "run-7"
    liver = manifest["scores"]["per_class"]["liver"]
    assert liver["torch"] == 1.0 and liver["package"] > 0.999 and liver["cases"] == 3
    assert liver["drop"] == pytest.approx(1 - liver["package"])
    pins = (built / "requirements.txt").read_text().split()
    assert [pin.split("==")[0] for pin in pins] == ["numpy", "nibabel", "openvino"]
    assert "://" not in (built / "requirements.txt").read_text()
    with zipfile.ZipFile(built / "runtime.pyz") as runtime:
        assert runtime.read("samkd/LICENSE").decode().strip().startswith("Apache License")


def test_papers(built):
    card = (built / "MODEL_CARD.md").read_text()
    assert "validation scans, which also chose the weights" in card and "held-out" not in card
    assert "a drop of 0.005 per class" in card
    assert "Not a medical device" in card and "| left kidney | 1.0000 |" in card and "two bodies" in card
    bill = json.loads((built / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {part["name"]: part for part in bill["components"]}
    assert {"numpy", "nibabel", "openvino", "openvino-telemetry", "samkd", "model.bin"} <= set(listed)
    assert listed["openvino"]["licenses"] == [{"expression": "Apache-2.0"}] and listed["numpy"]["version"]
    references = {part["bom-ref"] for part in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    for edge in bill["dependencies"]:
        assert {edge["ref"], *edge["dependsOn"]} <= references


def test_metadata_is_read_by_monai(built):
    from monai.bundle.config_parser import ConfigParser

    result = ConfigParser.load_config_file(built / "configs/metadata.json")
    parser = ConfigParser(result)
    image, pred = (parser[f"network_data_format::{key}"] for key in ("inputs::image", "outputs::pred"))
    assert image["spatial_shape"] == [16, 16, 16] and image["channel_def"] == {"0": "CT"}
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "left kidney"} and pred["num_channels"] == 3
    assert result["eval_metrics"]["dice"]["liver"] > 0.999 and result["required_packages_version"]["openvino"]


def test_package_gives_the_masks_of_the_network(built, levels, scan):
    package = Package.open(built, threads=1)
    assert package.class_names == {0: "background", 1: "liver", 2: "left kidney"}
    volume = scan(7)
    mask = package.segment(volume)
    assert mask.shape == volume.geometry.shape and mask.dtype == np.uint8
    values = volume.array[0]
    assert (mask[values > 85] == 2).mean() > 0.95 and (mask[np.abs(values - 60) < 5] == 1).mean() > 0.95
    assert (mask[values < 8] == 0).mean() > 0.95
    with pytest.raises(BadInputError, match="2 channels"):
        package.segment(Volume(np.repeat(volume.array, 2, 0), volume.geometry))


def test_sample_carries_no_remarks_and_the_mask_of_the_package(built):
    volume = read_scan(built / "sample/scan.nii.gz")
    expected, geometry = read_labels(built / "sample/expected.nii.gz")
    assert geometry.same_grid(volume.geometry)
    assert np.array_equal(Package.open(built, threads=1).segment(volume), expected) and set(np.unique(expected)) == {
        0,
        1,
        2,
    }


def test_equal_students_give_equal_bytes(built, job, levels):
    again = job(levels)
    for name in FILES:
        assert (again / name).read_bytes() == (built / name).read_bytes(), name
    assert again.with_name("student.zip").read_bytes() == built.with_name("student.zip").read_bytes()


def test_int8_package_passes_the_gate_and_says_how(job, levels):
    made = job(levels, precision="int8", max_drop=0.05)
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["precision"] == "int8" and manifest["quantization"] == "plain"
    assert manifest["versions"]["nncf"]
    assert Package.open(made, threads=1).engine.layer_precisions()["u8"] > 0


def test_dead_student_is_refused_and_leaves_nothing(job, tmp_path):
    with pytest.raises(GateRefusedError, match="the student answers 8 different patches with the same"):
        job(Constant(), max_drop=1)
    assert nothing_left(tmp_path)


def test_conversion_that_kills_the_encoder_is_refused(job, levels, monkeypatch, tmp_path):
    dead = openvino_target.convert(whole(Constant(), patch=(16, 16, 16), in_channels=1))
    monkeypatch.setattr(openvino_int8, "quantize", lambda model, calibration, scheme: dead)
    with pytest.raises(GateRefusedError, match="the converted model answers 8 different patches with the same") as no:
        job(levels, precision="int8", max_drop=1)
    assert no.value.exit_code == 6 and nothing_left(tmp_path)


def test_drop_above_the_limit_is_refused_and_leaves_nothing(job, levels, tmp_path):
    with pytest.raises(GateRefusedError, match=r"refused, nothing was packed(.|\n)*left kidney: Dice 1.0000 -> 0"):
        job(Shifted(levels))
    assert nothing_left(tmp_path)


def test_refusal_keeps_the_package_that_was_there(job, levels, tmp_path):
    before = (job(levels) / "manifest.json").read_bytes()
    with pytest.raises(GateRefusedError):
        job(Shifted(levels))
    assert sorted(p.name for p in (tmp_path / "packages").iterdir()) == ["student", "student.zip"]
    assert (tmp_path / "packages/student/manifest.json").read_bytes() == before
    assert (job(levels, max_drop=0.01) / "manifest.json").read_bytes() != before


def test_the_next_scheme_is_tried_when_the_gate_refuses_one(job, levels, monkeypatch):
    broken = openvino_target.convert(whole(Shifted(levels), patch=(16, 16, 16), in_channels=1))
    tried = []

    def quantize(model, calibration, scheme):
        tried.append(scheme.name)
        return broken if len(tried) < 3 else model

    monkeypatch.setattr(openvino_int8, "quantize", quantize)
    manifest = json.loads((job(levels, precision="int8") / "manifest.json").read_text())
    assert tried == [scheme.name for scheme in openvino_int8.SCHEMES[:3]] and manifest["quantization"] == tried[-1]
    assert [step["refusal"] is None for step in manifest["ladder"]] == [True, False, False, True]
    assert "liver" in manifest["ladder"][1]["refusal"]
    assert manifest["ladder"][1]["per_class"]["liver"]["dice"] == 0 and manifest["ladder"][1]["agreement"] < 0.5


def test_every_scheme_refused_names_every_scheme_the_layers_and_what_did_pass(job, levels, monkeypatch, tmp_path):
    broken = openvino_target.convert(whole(Shifted(levels), patch=(16, 16, 16), in_channels=1))
    monkeypatch.setattr(openvino_int8, "quantize", lambda model, calibration, scheme: broken)
    with pytest.raises(GateRefusedError) as refused:
        job(levels, precision="int8")
    told = str(refused.value)
    assert all(f"int8 ({scheme.name}): " in told for scheme in openvino_int8.SCHEMES) and "in case case_" in told
    assert "The layers that lost most: Convolution_" in told and " dB)" in told
    assert "fp32: passed. `samkd deploy --precision fp32` packs it." in told
    assert nothing_left(tmp_path)


def test_the_ladder_stands_in_the_manifest_and_the_card(job, levels):
    made = job(levels, precision="int8", max_drop=0.05)
    first, last = json.loads((made / "manifest.json").read_text())["ladder"]
    assert (first["precision"], last["precision"], last["quantization"]) == ("fp32", "int8", "plain")
    assert first["snr_db"] > 100 > 50 > last["snr_db"] > 15
    assert first["agreement"] > 0.9999 and last["agreement"] > 0.98
    for step in (first, last):
        liver = step["per_class"]["liver"]
        assert liver["to_torch"] == {key: liver[key] for key in ("dice", "hd95_mm", "nsd")}  # torch is the truth here
    assert first["per_class"]["liver"]["hd95_mm"] == 0 and first["per_class"]["liver"]["nsd"] > 0.9999
    card = (made / "MODEL_CARD.md").read_text()
    assert "| fp32 | " in card and "| int8 (plain) | " in card


def test_bf16_computes_in_bf16(job, levels):
    made = job(levels, precision="bf16", max_drop=0.05)
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["precision"], manifest["inference_precision"]) == ("bf16", "bf16")
    package = Package.open(made, threads=1)
    assert package.engine.precision == "bf16" and package.engine.layer_precisions()["bf16"] > 0
    assert 20 < manifest["ladder"][1]["snr_db"] < 60 < manifest["ladder"][0]["snr_db"]


@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_empty_calibration_is_refused(job, levels, target, tmp_path):
    empty = [np.zeros((1, 16, 16, 16), np.float32)] * 8
    with pytest.raises(GateRefusedError, match="all 8 calibration patches are empty") as refused:
        job(levels, calibration=empty, precision="int8", target=target)
    assert refused.value.exit_code == 6 and nothing_left(tmp_path)


def test_one_patch_eight_times_is_no_calibration(job, levels, tmp_path):
    patch = np.linspace(0, 1, 16**3, dtype=np.float32).reshape(1, 16, 16, 16)
    with pytest.raises(GateRefusedError, match="all 8 calibration patches are the same"):
        job(levels, calibration=[patch] * 8, precision="int8")
    assert nothing_left(tmp_path)


def test_fp16_that_overflows_is_refused(job, levels, tmp_path):
    with pytest.raises(GateRefusedError, match="fp16: the converted model answers 8 different patches") as refused:
        job(Overflowing(levels), precision="fp16")
    assert "fp32: passed" in str(refused.value) and nothing_left(tmp_path)


def test_the_mean_may_pass_where_a_class_fails(job, levels):
    thinner = copy.deepcopy(levels)
    thinner.head.bias.data[2] -= 9.3  # the kidney shrinks a little
    with pytest.raises(GateRefusedError, match="left kidney: Dice"):
        job(thinner, max_drop=0.04)
    made = job(thinner, max_drop=0.04, per_class=False)
    manifest = json.loads((made / "manifest.json").read_text())
    scores = manifest["scores"]["per_class"]
    assert scores["left kidney"]["drop"] > 0.04 > scores["liver"]["drop"]
    assert manifest["gate"] == {"max_drop": 0.04, "per_class": False}
    card = (made / "MODEL_CARD.md").read_text()
    assert "a drop of 0.04 in the mean over the classes" in card and "per class" not in card
    with pytest.raises(GateRefusedError, match="in the mean"):
        job(thinner, max_drop=0.03, per_class=False)


def test_unknown_target_and_precision(job, levels):
    with pytest.raises(UsageError, match="target 'coreml' is not available; choose one of openvino, onnx, tensorrt"):
        job(levels, target="coreml")
    with pytest.raises(UsageError, match="target onnx has no precision bf16; choose one of fp32, int8"):
        job(levels, target="onnx", precision="bf16")


def test_something_else_at_the_destination_is_not_touched(job, levels, tmp_path):
    (tmp_path / "packages/student").mkdir(parents=True)
    (tmp_path / "packages/student/thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no package"):
        job(levels)
    assert (tmp_path / "packages/student/thesis.txt").read_text() == "mine"


def test_place_that_cannot_hold_a_folder(job, levels, tmp_path):
    (tmp_path / "packages").write_text("a file")
    with pytest.raises(OutputError, match="packages"):
        job(levels)
    assert (tmp_path / "packages").read_text() == "a file"


def test_without_a_validation_case_nothing_is_packed(job, levels):
    with pytest.raises(BadInputError, match="no validation case"):
        job(levels, validation=[])


def test_class_that_never_occurs_is_not_judged(job, levels):
    volume = Volume(np.full((1, 16, 16, 16), 60, np.float32), Geometry(np.eye(4), (16, 16, 16)))
    ones = np.ones((16, 16, 16), np.uint8)
    made = job(levels, validation=[ValidationCase("all liver", volume, ones, ones)])
    kidney = json.loads((made / "manifest.json").read_text())["scores"]["per_class"]["left kidney"]
    assert kidney["cases"] == 0 and kidney["drop"] is None
    assert "| left kidney | - | - | - | 0 |" in (made / "MODEL_CARD.md").read_text()


def test_the_network_is_left_as_it_was(job, levels):
    levels.train()
    before = {name: value.clone() for name, value in levels.state_dict().items()}
    job(levels)
    assert levels.training
    assert all(torch.equal(before[name], value) for name, value in levels.state_dict().items())
    levels.eval()
