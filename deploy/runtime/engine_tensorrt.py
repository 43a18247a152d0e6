"""TensorRT: the engine that a package carries for this very GPU, else one that ONNX Runtime builds from its ONNX model.

An engine is code, so the packed one is used only where it was checked who signed the package.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...errors import MissingExtraError
from .engine import Engine
from .engine_onnx import TENSORRT, has_provider
from .engine_onnx import Engine as OnnxRuntime
from .engine_tensorrt_native import Engine as TensorRT
from .engine_tensorrt_native import this_machine
from .tensorrt_file import engine_path, read_facts, read_serialized

_INSTALL = "run: python -m pip install onnxruntime-gpu, and install TensorRT in the version that it names"


def tensorrt_engine(
    model: Path, *, name: Path | None = None, precision: str, threads: int | None = None, trusted: bool = False
) -> Engine:
    """The engine for an ONNX model: the serialized one beside it, if it is for this machine's GPU and version of
    TensorRT, and `trusted`; else an ONNX Runtime session that computes with TensorRT.

    What the latter builds is kept in the user's cache, in a folder by model; ONNX Runtime names the file after GPU and
    version of TensorRT. Raises MissingExtraError where neither works, IntegrityError for an engine of another kind.
    """
    name = name or model
    reason = _unusable(engine_path(model), precision, trusted=trusted)
    if reason is None:
        packed = engine_path(model)
        return TensorRT(read_serialized(packed), name=name.with_name(packed.name), precision=precision, threads=threads)
    if not has_provider(TENSORRT):
        raise MissingExtraError(f"{name.parent}: needs ONNX Runtime with TensorRT; {_INSTALL}{reason}")
    cache = cache_folder(model)
    cache.mkdir(parents=True, exist_ok=True)
    settings = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_fp16_enable": precision == "f16",
        "trt_layer_norm_fp32_fallback": True,  # powers and means of layer norms overflow in float16
        "trt_int8_enable": True,  # does nothing without quantize and dequantize nodes
    }
    return OnnxRuntime(model, name=name, precision=precision, threads=threads, provider=TENSORRT, settings=settings)


def _unusable(packed: Path, precision: str, *, trusted: bool) -> str | None:
    """Why the engine of a package is not used, as the end of a message; None for one that is. Raises IntegrityError."""
    if not packed.is_file():
        return ""
    key, measured = read_facts(packed)
    if not trusted:
        return ". The engine in the package is code, and it was not checked whose: give --trust PUBKEY"
    try:
        here = this_machine()
    except MissingExtraError as error:
        return f". The engine in the package is for {key}, but {error}"
    if (key, measured) != (here, precision):
        return f". The engine in the package is for {key} in {measured}; here is {here}, {precision}"
    return None


def cache_folder(model: Path) -> Path:
    """Where engines for this very model are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with model.open("rb") as file:
        return base / "samkd" / "tensorrt" / hashlib.file_digest(file, "sha256").hexdigest()[:32]
