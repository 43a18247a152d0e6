"""TensorRT: the package carries the ONNX model, and where torch_tensorrt is, the engine for this kind of GPU as well.

A TensorRT engine belongs to one kind of GPU and one version of TensorRT. Every other device builds its own from the
ONNX model, through ONNX Runtime's TensorRT provider, which keeps it beside the user's other caches and finds it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UsageError
from ..runtime.engine_onnx import TENSORRT as PROVIDER
from ..runtime.engine_onnx import has_provider
from ..runtime.engine_tensorrt_native import this_machine
from ..runtime.tensorrt_file import engine_path, write_engine
from . import onnx as onnx_target
from .base import Candidate, ExportRequest, Precision, Target
from .graphs import Graph, graphs_of
from .tensorrt_engine import compiles, serialized_network, serialized_onnx


def candidates(request: ExportRequest) -> Iterator[Candidate]:
    """The candidates of ONNX, each with its engine where torch_tensorrt compiles; fp16 is the float32 model.

    int8 is symmetric: TensorRT knows no other zero point than 0. Raises UsageError for fp16 on a machine where TensorRT
    does not work: nothing else could judge it.
    """
    if request.precision is Precision.FP16 and not TENSORRT.works():
        raise UsageError(
            "precision fp16 of the target tensorrt cannot be judged here: there is no torch_tensorrt with a GPU, and "
            "this ONNX Runtime has no TensorRT; choose fp32 or int8, or deploy on a machine with such a GPU"
        )
    half = request.precision is Precision.FP16
    graphs = graphs_of(request) if compiles() else ()
    plain = replace(request, precision=Precision.FP32) if half else request
    for candidate in onnx_target.candidates(plain, symmetric=True):
        yield _with_engines(candidate, graphs)
        if half:
            yield _with_engines(replace(candidate, precision=Precision.FP16), graphs)


def _with_engines(candidate: Candidate, graphs: Sequence[Graph]) -> Candidate:
    """A candidate that writes the engine of every graph beside its ONNX model; without graphs as it is.

    A decoder stays in float32, as in the ONNX model.
    """
    if not graphs:
        return candidate

    def write(folder: Path) -> None:
        candidate.write(folder)
        for graph, name in zip(graphs, (TENSORRT.model, TENSORRT.decoder), strict=False):
            first, path = name == TENSORRT.model, folder / name
            half = first and candidate.precision is Precision.FP16
            if first and candidate.precision is Precision.INT8:
                engine = serialized_onnx(path.read_bytes())
            else:
                engine = serialized_network(graph, half=half)
            write_engine(engine_path(path), engine, key=this_machine(), precision="f16" if half else "f32")

    return replace(candidate, write=write)


# fp16 with norms and softmax in float32; int8 from the quantize and dequantize nodes (QDQ) of the model.
TENSORRT = Target(
    name="tensorrt",
    model=onnx_target.ONNX.model,
    libraries=("numpy", "nibabel", "onnxruntime", *(("tensorrt", "cuda") if compiles() else ())),
    tools=(*onnx_target.ONNX.tools, *(("torch_tensorrt",) if compiles() else ())),
    inference={Precision.FP32: "f32", Precision.FP16: "f16", Precision.INT8: "f32"},
    candidates=candidates,
    stand_in="onnx",
    works=lambda: compiles() or has_provider(PROVIDER),
    device_names={"onnxruntime": "onnxruntime-gpu", "cuda": "cuda-python"},
)
