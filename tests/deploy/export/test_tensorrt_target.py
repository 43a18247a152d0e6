"""The TensorRT target without a GPU: what it packs, what judges it here, and what it refuses to do silently."""

import json

import pytest

from samkd.deploy.package.sbom import distribution
from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.engine_onnx import TENSORRT, Engine, has_provider, load_onnxruntime
from samkd.deploy.runtime.engine_tensorrt import cache_folder, tensorrt_engine
from samkd.deploy.runtime.package import Package
from samkd.errors import MissingExtraError, UsageError

pytestmark = pytest.mark.slow

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="samkd[onnx] is not installed")

here = pytest.mark.skipif(has_provider(TENSORRT), reason="TensorRT is installed here")


@here
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_package_carries_the_onnx_and_says_what_judged_it(job, levels, precision, capsys):
    made = job(levels, target="tensorrt", precision=precision, max_drop=0.05)
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["target"], manifest["model"]) == ("tensorrt", "model.onnx")
    assert manifest["judged_on"].endswith("(CPU)")
    pins = (made / "requirements.txt").read_text().split()
    assert [pin.split("==")[0] for pin in pins] == ["numpy", "nibabel", "onnxruntime-gpu"]
    assert "judged on onnxruntime" in (made / "MODEL_CARD.md").read_text()
    # No GPU: the device is told what is missing, and is never handed the CPU's mask in its place.
    with pytest.raises(MissingExtraError, match="needs ONNX Runtime with TensorRT"):
        Package.open(made)
    assert main(["verify", "--package", str(made)]) == 5
    assert "python -m pip install onnxruntime-gpu" in capsys.readouterr().err


def test_a_library_is_found_under_another_builds_name():
    """As onnxruntime is where only onnxruntime-gpu is installed; PIL's distribution is called pillow everywhere."""
    assert (distribution("numpy"), distribution("PIL").lower()) == ("numpy", "pillow")
    assert distribution("no_such_library") == "no_such_library"


@here
def test_fp16_needs_the_gpu_that_judges_it(job, levels):
    with pytest.raises(UsageError, match="cannot be judged here"):
        job(levels, target="tensorrt", precision="fp16")


def test_a_provider_that_silently_gives_way_to_the_cpu_is_refused(job, levels, monkeypatch, tmp_path):
    model = job(levels, target="onnx", precision="fp32") / "model.onnx"
    asked = {}

    class Session(load_onnxruntime().InferenceSession):
        def __init__(self, model, options, providers):
            asked.update(dict(each for each in providers if isinstance(each, tuple)))
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(load_onnxruntime(), "InferenceSession", Session)
    monkeypatch.setattr(load_onnxruntime(), "get_available_providers", lambda: [TENSORRT])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MissingExtraError, match="the CPU is not what this package is for"):
        tensorrt_engine(model, precision="f16")
    settings = asked[TENSORRT]
    assert settings["trt_fp16_enable"] and settings["trt_layer_norm_fp32_fallback"]
    assert settings["trt_engine_cache_path"] == str(cache_folder(model)) and cache_folder(model).is_dir()
    assert cache_folder(model).is_relative_to(tmp_path / "cache")
    assert Engine(model, precision="f32").precision == "f32"


@pytest.mark.gpu
@pytest.mark.skipif(not has_provider(TENSORRT), reason="needs onnxruntime-gpu with TensorRT and an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_gpu_gives_the_masks_of_the_cpu(job, levels, built, scan, precision):
    made = job(levels, target="tensorrt", precision=precision, max_drop=0.05)
    mine, theirs = (Package.open(folder).segment(scan(7)) for folder in (made, built))
    assert (mine == theirs).mean() > 0.98
