"""TensorRT, through ONNX Runtime: the engine is built from the package's ONNX model at the first run on a device."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...errors import MissingExtraError
from .engine_onnx import TENSORRT, Engine, has_provider

_INSTALL = "run: python -m pip install onnxruntime-gpu, and install TensorRT in the version that it names"


def tensorrt_engine(model: Path, *, name: Path | None = None, precision: str, threads: int | None = None) -> Engine:
    """An ONNX Runtime session that computes with TensorRT.

    The built engine is kept in the user's cache, in a folder by model; ONNX Runtime names the file after GPU and
    version of TensorRT. Raises MissingExtraError where TensorRT does not work.
    """
    name = name or model
    if not has_provider(TENSORRT):
        raise MissingExtraError(f"{name.parent}: needs ONNX Runtime with TensorRT; {_INSTALL}")
    cache = cache_folder(model)
    cache.mkdir(parents=True, exist_ok=True)
    settings = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_fp16_enable": precision == "f16",
        "trt_layer_norm_fp32_fallback": True,  # powers and means of layer norms overflow in float16
        "trt_int8_enable": True,  # does nothing without quantize and dequantize nodes
    }
    return Engine(model, name=name, precision=precision, threads=threads, provider=TENSORRT, settings=settings)


def cache_folder(model: Path) -> Path:
    """Where engines for this very model are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with model.open("rb") as file:
        return base / "samkd" / "tensorrt" / hashlib.file_digest(file, "sha256").hexdigest()[:32]
