"""ONNX: every student's numbers, a free number of patches, int8 that computes in int8, and the package around it."""

import json
import sys

import numpy as np
import pytest
import torch

from samkd.deploy.export.graphs import whole
from samkd.deploy.export.onnx import export, save
from samkd.deploy.export.quantize_onnx import SCHEMES, layer_graph, quantize, weakest_layers
from samkd.deploy.export.sensitivity import attention_layers, end_layers
from samkd.deploy.runtime.clock import Clock
from samkd.deploy.runtime.engine_onnx import Engine
from samkd.deploy.runtime.package import Package
from samkd.errors import IntegrityError, MissingExtraError
from samkd.students import build_student

pytestmark = pytest.mark.slow

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="samkd[onnx] is not installed")

STUDENTS = {
    "swinunetr-tiny": (32, 64, 32),
    "segresnet": (16, 16, 32),
    "mednext-tiny": (16, 16, 32),
    "mobilesam": (3, 64, 48),
    "efficientsam-ti": (1, 48, 64),
}


@pytest.fixture(scope="module", params=STUDENTS)
def exported(request):
    patch = STUDENTS[request.param]
    torch.manual_seed(0)
    network = build_student(request.param, in_channels=1, num_classes=3, patch=patch).eval()
    images = np.random.default_rng(0).standard_normal((3, 1, *patch)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).softmax(1).numpy()
    return export(whole(network, patch=patch, in_channels=1)), images, expected


def test_equals_torch_for_any_number_of_patches(exported, tmp_path):
    model, images, expected = exported
    save(model, tmp_path / "model.onnx")
    engine = Engine(tmp_path / "model.onnx", precision="f32", threads=1)
    assert expected.std(axis=(2, 3, 4)).min() > 1e-4
    for count in (1, 3):
        assert np.abs(engine(images[:count]) - expected[:count]).max() < 1e-5
    clock = Clock()
    begin = clock.waiting("network", engine.begin)
    waits = [begin(images[index : index + 1]) for index in range(3)]
    assert np.abs(np.concatenate([wait() for wait in waits]) - expected).max() < 1e-5
    assert clock.seconds["network"] > 0


def test_nothing_of_this_machine_is_in_the_model(exported):
    model, _, _ = exported
    raw = model.SerializeToString()
    assert b"site-packages" not in raw and b"samkd" not in raw and b"students" not in raw


def test_int8_computes_in_int8(exported, tmp_path):
    model, images, expected = exported
    made = quantize(model, list(images), SCHEMES[0])
    assert sum(node.op_type == "DequantizeLinear" for node in made.graph.node) > 20
    save(made, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 0.6 * len(model.SerializeToString())
    result = Engine(tmp_path / "model.onnx", precision="f32", threads=1)(images)
    assert np.isfinite(result).all() and np.abs(result[0] - result[1]).max() > 1e-4
    assert 1e-6 < np.abs(result - expected).max() < 0.3
    weakest = weakest_layers(model, made, images[0])
    assert len(weakest) == 3 and all(each.endswith(" dB)") for each in weakest)


def test_schemes_keep_what_they_name_in_float(exported):
    model, images, _ = exported
    graph = layer_graph(model)
    names = {name: layer.kind for name, layer in graph.layers.items()}
    left = {*attention_layers(graph), *end_layers(graph)}
    assert {names[name] for name in attention_layers(graph)} <= {"MatMul"}
    ends = [names[name] for name in end_layers(graph)]
    assert 2 <= len(ends) <= 12 and set(ends) <= {"Conv", "ConvTranspose", "MatMul", "Gemm"}
    made = quantize(model, list(images), SCHEMES[2])
    fed = {output: node for node in made.graph.node for output in node.output}
    for node in made.graph.node:
        if node.name in left:
            assert fed[node.input[0]].op_type != "DequantizeLinear" if node.input[0] in fed else True


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_package(job, levels, built, scan, precision):
    made = job(levels, target="onnx", precision=precision, max_drop=0.05)
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["target"], manifest["model"]) == ("onnx", "model.onnx")
    pins = (made / "requirements.txt").read_text().split()
    assert [pin.split("==")[0] for pin in pins] == ["numpy", "nibabel", "onnxruntime"]
    bill = json.loads((made / "sbom.cdx.json").read_text())
    assert {"onnxruntime", "model.onnx"} <= {part["name"] for part in bill["components"]}
    mine, theirs = (Package.open(folder, threads=1).segment(scan(7)) for folder in (made, built))
    assert (mine == theirs).mean() > (0.9999 if precision == "fp32" else 0.98)
    again = job(levels, target="onnx", precision=precision, max_drop=0.05)
    assert (again / "model.onnx").read_bytes() == (made / "model.onnx").read_bytes()


def test_engine_refusals(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(IntegrityError, match="cannot run this model"):
        Engine(tmp_path / "model.onnx", precision="f32")
    with pytest.raises(IntegrityError, match="measured in bf16, but ONNX Runtime would infer in f32"):
        Engine(tmp_path / "model.onnx", precision="bf16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="python -m pip install onnxruntime"):
        Engine(tmp_path / "model.onnx", precision="f32")
