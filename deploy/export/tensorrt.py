"""TensorRT: the package carries the ONNX model, and the device builds its engine at the first run.

A TensorRT engine belongs to one kind of GPU and one version of TensorRT; built here it would be of no use there. ONNX
Runtime's TensorRT provider builds it, keeps it beside the user's other caches by GPU and version, and finds it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...errors import UsageError
from ..runtime.engine_onnx import TENSORRT as PROVIDER
from ..runtime.engine_onnx import has_provider
from . import onnx as onnx_target
from .base import Candidate, ExportRequest, Precision, Target


def candidates(request: ExportRequest) -> Iterator[Candidate]:
    """The candidates of ONNX; fp16 is the float32 model, and TensorRT's choice of layers.

    Raises UsageError for fp16 on a machine where TensorRT does not work: nothing else could judge it.
    """
    if request.precision is Precision.FP16 and not TENSORRT.works():
        raise UsageError(
            "precision fp16 of the target tensorrt cannot be judged here: this ONNX Runtime has no TensorRT; choose "
            "fp32 or int8, or deploy on a machine with such a GPU"
        )
    half = request.precision is Precision.FP16
    for candidate in onnx_target.candidates(replace(request, precision=Precision.FP32) if half else request):
        yield candidate
        if half:
            yield replace(candidate, precision=Precision.FP16)


# fp16 with layer norms and softmax in float32; int8 from the quantize and dequantize nodes (QDQ) of the model.
TENSORRT = Target(
    name="tensorrt",
    model=onnx_target.ONNX.model,
    libraries=("numpy", "nibabel", "onnxruntime"),
    tools=onnx_target.ONNX.tools,
    inference={Precision.FP32: "f32", Precision.FP16: "f16", Precision.INT8: "f32"},
    candidates=candidates,
    stand_in="onnx",
    works=lambda: has_provider(PROVIDER),
    device_names={"onnxruntime": "onnxruntime-gpu"},
)
