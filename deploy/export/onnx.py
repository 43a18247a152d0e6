"""ONNX: from a torch network to a checked model with a free number of patches, and that model to disk."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import MissingExtraError
from .base import Candidate, ExportRequest, Precision, Target
from .graphs import Graph, graphs_of

if TYPE_CHECKING:
    import onnx

OPSET = 20
_MOST_PATCHES = 1024  # an upper bound that torch.export asks for


def candidates(request: ExportRequest, *, symmetric: bool = False) -> Iterator[Candidate]:
    """The float32 model, then for int8 one quantized model for each of SCHEMES, `symmetric` or not (see
    quantize_onnx.quantize). Raises MissingExtraError without onnx, onnxscript or ONNX Runtime."""
    model, *decoders = map(export, graphs_of(request))
    yield Candidate(Precision.FP32, _writer(model, decoders))
    if request.precision is Precision.INT8:
        from .quantize_onnx import SCHEMES, quantize, weakest_layers

        for scheme in (each for each in SCHEMES if request.quantization in (None, each.name)):
            quantized = quantize(model, request.calibration, scheme, symmetric=symmetric)
            weakest = partial(weakest_layers, model, quantized)
            yield Candidate(request.precision, _writer(quantized, decoders), scheme.name, weakest)


def _writer(model: onnx.ModelProto, decoders: Sequence[onnx.ModelProto]) -> Callable[[Path], None]:
    """A decoder stays in float32: it is small, and its sines of positions would move the clicks."""

    def write(folder: Path) -> None:
        save(model, folder / ONNX.model)
        for decoder in decoders:
            save(decoder, folder / ONNX.decoder)

    return write


# Every engine that reads ONNX; packages run on ONNX Runtime. int8 lies between quantize and dequantize nodes (QDQ).
ONNX = Target(
    name="onnx",
    model="model.onnx",
    libraries=("numpy", "nibabel", "onnxruntime"),
    tools=("torch", "onnx", "onnxscript", "onnxruntime"),
    inference={Precision.FP32: "f32", Precision.INT8: "f32"},
    candidates=candidates,
)


def export(graph: Graph) -> onnx.ModelProto:
    """A graph as an ONNX model of N patches, N free.

    It is exported by torch.export ("dynamo"). Nothing of this machine or of the source code is left in the model.
    Raises MissingExtraError without onnx or onnxscript.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise MissingExtraError(f"{error}; run: python -m pip install 'samkd[onnx]'") from error

    example = tuple(torch.cat([each, each]) for each in graph.inputs.values())  # one would be taken for a constant
    free = torch.export.Dim("patches", min=1, max=_MOST_PATCHES)
    # The mathematical attention, because a fused one's memory layout would be recorded as if every engine had it.
    with quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            graph.module,
            example,
            dynamo=True,
            dynamic_shapes=tuple({0: free} for _ in example),
            input_names=list(graph.inputs),
            output_names=[graph.output],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        for key in ("metadata_props", "doc_string"):
            if key in part.DESCRIPTOR.fields_by_name:
                part.ClearField(key)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the number of patches was fixed by the export"
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Equal models give equal bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the remarks of the exporter and of the quantizer on their own progress."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
