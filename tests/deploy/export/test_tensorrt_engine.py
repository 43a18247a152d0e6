"""Engines through torch_tensorrt: what it is asked for, and the package that comes of it, through doubles of it.

The numbers of a GPU are tested where there is one (test_tensorrt_target.py).
"""

import importlib.machinery
import sys

import numpy as np
import pytest
import torch
from helpers import fake_tensorrt
from helpers.packages import Levels, deploy, make_scan
from torch import nn

from samkd.deploy.export import tensorrt, tensorrt_engine
from samkd.deploy.export.base import ExportRequest, Precision
from samkd.deploy.export.graphs import whole
from samkd.deploy.export.tensorrt_engine import compiles, in_half, serialized_network
from samkd.deploy.runtime import engine_tensorrt
from samkd.deploy.runtime.engine_tensorrt_native import Engine
from samkd.deploy.runtime.manifest import Manifest
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.tensorrt_file import read_facts
from samkd.errors import MissingExtraError, UsageError
from samkd.students import build_student

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="samkd[onnx] is not installed")


@pytest.fixture
def compiled(monkeypatch):
    """torch_tensorrt, TensorRT and CUDA on the CPU; what was compiled. ONNX Runtime has no TensorRT."""
    calls = []
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake_tensorrt.torch_tensorrt(calls))
    monkeypatch.setattr(tensorrt_engine, "DEVICE", "cpu")
    monkeypatch.setattr(tensorrt, "compiles", lambda: True)
    monkeypatch.setattr(tensorrt, "has_provider", lambda _: False)
    monkeypatch.setattr(engine_tensorrt, "has_provider", lambda _: False)
    return calls


@pytest.mark.parametrize("name", ["swinunetr-tiny"])
@pytest.mark.slow
def test_types_are_explicit_and_half_is_for_products_alone(compiled, name):
    patch = (32, 32, 64)
    graph = whole(build_student(name, in_channels=1, num_classes=3, patch=patch), patch=patch, in_channels=1)
    for half in (False, True):
        engine = Engine(serialized_network(graph, half=half), name=name, precision="f32")
        assert (engine.input_shapes, engine.output_shape) == ([(None, 1, *patch)], (None, 3, *patch))
    exact, mixed = compiled
    assert torch.float16 not in exact["types"] and {torch.float16, torch.float32} <= mixed["types"]
    assert exact["explicit"] and mixed["explicit"] and not exact["tf32"] and not mixed["tf32"]
    assert next(graph.module.parameters()).dtype == torch.float32  # the graph is left as it is


@pytest.mark.slow
def test_a_network_in_half_is_off_by_no_more_than_half_rounds(compiled):
    patch = (16, 16, 32)
    torch.manual_seed(0)
    network = build_student("mednext-tiny", in_channels=1, num_classes=3, patch=patch).eval()
    graph, image = whole(network, patch=patch, in_channels=1), torch.randn(1, 1, *patch)
    with torch.no_grad():
        expected = network(image).softmax(1).numpy()
    exact, mixed = (
        Engine(serialized_network(graph, half=half), name="model.engine", precision="f32")(image.numpy())
        for half in (False, True)
    )
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    assert 0 < np.abs(mixed - expected).max() < 0.02


def test_norms_and_weights_beyond_half_stay_in_float32():
    layers = nn.Sequential(nn.Conv3d(1, 2, 1), nn.GroupNorm(1, 2), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    layers.append(nn.Conv3d(2, 2, 1))
    with torch.no_grad():
        next(layers[3].parameters()).fill_(1e5)
    types = {name: each.dtype for name, each in in_half(layers).named_parameters() if name.endswith("weight")}
    half = {name for name, dtype in types.items() if dtype == torch.float16}
    assert half == {"0.layer.weight", "2.0.layer.weight"} and len(types) == 5


def test_what_cannot_be_compiled_is_told(compiled, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no converter for aten.roll")

    dynamo = sys.modules["torch_tensorrt"].dynamo
    monkeypatch.setattr(dynamo, "convert_exported_program_to_serialized_trt_engine", refuse)
    with pytest.raises(UsageError, match=r"cannot compile this network; .*no converter for aten.roll"):
        serialized_network(whole(Levels(), patch=(16, 16, 16), in_channels=1), half=False)


def test_it_compiles_only_with_the_libraries_and_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda _: None)
    assert not compiles()
    spec = importlib.machinery.ModuleSpec("torch_tensorrt", None)
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda _: spec)
    assert compiles()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not compiles()


@pytest.mark.slow
def test_a_package_carries_the_engine_beside_the_onnx(compiled, tmp_path, built):
    """Judged on the engine, in the precision that is packed; used by nobody who did not check the signature."""
    folder = deploy(Levels(), tmp_path, target="tensorrt", precision="fp16", max_drop=0.02)
    assert {"model.onnx", "model.engine"} <= {path.name for path in folder.iterdir()}
    key, precision = read_facts(folder / "model.engine")
    assert (str(key), precision) == ("NVIDIA Test (9.0) with TensorRT 10.9.0", "f16")
    assert [torch.float16 in each["types"] for each in compiled] == [False, True]
    with pytest.raises(MissingExtraError, match="give --trust PUBKEY"):
        Package.open(folder)
    package = Package.of(folder, Manifest.read(folder), trusted=True)
    assert package.manifest.judged_on == "tensorrt 10.9.0 (NVIDIA Test)"
    expected = Package.open(built).segment(make_scan(3))
    assert (package.segment(make_scan(3)) == expected).mean() > 0.999


@pytest.mark.slow
def test_int8_is_built_from_the_symmetric_onnx(compiled, monkeypatch, tmp_path):
    """TensorRT's parser reads the very model that is packed; every zero point in it is 0."""
    import onnx
    from onnx import numpy_helper

    engines = []
    monkeypatch.setattr(tensorrt, "serialized_onnx", lambda model: engines.append(model) or b"engine")
    rng = np.random.default_rng(0)
    calibration = [rng.random((1, 16, 16, 16), np.float32) for _ in range(2)]
    request = ExportRequest(Levels(), (16, 16, 16), 1, calibration, Precision.INT8)
    _, plain, *_ = tensorrt.candidates(request)
    plain.write(tmp_path)
    assert engines == [(tmp_path / "model.onnx").read_bytes()]
    values = {each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(engines[0]).graph.initializer}
    zeros = [value for name, value in values.items() if name.endswith("zero_point")]
    assert zeros and all(value.dtype != np.uint8 and not value.any() for value in zeros)
