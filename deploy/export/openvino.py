"""OpenVINO: from a torch network to its model, and that model to disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

from ...errors import OutputError, UsageError
from ..runtime.engine_openvino import core, load_openvino
from .base import Candidate, ExportRequest, Precision, Target
from .graphs import Graph, graphs_of

if TYPE_CHECKING:
    import openvino

_WORTH_SHARING = 1 << 16  # bytes


def candidates(request: ExportRequest) -> Iterator[Candidate]:
    """The float32 model, then one in half precision or, for int8, one quantized model for each of SCHEMES.

    Raises UsageError for bf16 on a CPU without it, MissingExtraError without OpenVINO or NNCF.
    """
    if request.precision is Precision.BF16 and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UsageError("precision bf16: this CPU has no bfloat16 to judge the package with; choose fp32 or int8")
    model, *decoders = map(convert, graphs_of(request))
    yield Candidate(Precision.FP32, _writer(model, decoders, half=False))
    if request.precision in (Precision.FP16, Precision.BF16):
        yield Candidate(request.precision, _writer(model, decoders, half=True))
    if request.precision is Precision.INT8:
        from .quantize_openvino import SCHEMES, WITHOUT_VNNI, quantize, weakest_layers

        schemes = SCHEMES if request.vnni else WITHOUT_VNNI
        for scheme in (each for each in schemes if request.quantization in (None, each.name)):
            quantized = quantize(model, request.calibration, scheme)
            weakest = partial(weakest_layers, model, quantized)
            yield Candidate(request.precision, _writer(quantized, decoders, half=False), scheme.name, weakest)


def _writer(model: openvino.Model, decoders: Sequence[openvino.Model], *, half: bool) -> Callable[[Path], None]:
    """A decoder stays in float32: it is small, and its sines of positions would move the clicks."""

    def write(folder: Path) -> None:
        save(model, folder / OPENVINO.model, half=half)
        for decoder in decoders:
            save(decoder, folder / OPENVINO.decoder, half=False)

    return write


# CPUs of every maker. What is not int8 or bfloat16 is computed in float32, whatever the CPU could do faster.
OPENVINO = Target(
    name="openvino",
    model="model.xml",
    libraries=("numpy", "nibabel", "openvino"),
    tools=("torch", "openvino", "nncf"),
    inference={Precision.FP32: "f32", Precision.FP16: "f32", Precision.BF16: "bf16", Precision.INT8: "f32"},
    candidates=candidates,
)


def convert(graph: Graph) -> openvino.Model:
    """A graph as an OpenVINO model of one patch: it is traced on one, so everything that depends on its size only
    (shift masks, paddings) is fixed."""
    load_openvino()
    from openvino.tools.ovc import convert_model

    example = tuple(graph.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # a fixed size is the purpose
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)  # tracing is deprecated; torch.export's graph is slower here
        model = convert_model(graph.module, example_input=example, input=[tuple(each.shape) for each in example])
    for port, name in zip(model.inputs, graph.inputs, strict=True):
        port.set_names({name})
    model.outputs[0].set_names({graph.output})
    name_in_order(model)
    return model


def save(model: openvino.Model, path: Path, *, half: bool) -> None:
    """Write `path` (.xml) and its weights beside it (.bin). Equal models give equal bytes.

    Weights take two bytes each (float16) when `half`, else three (see `store_in_three_bytes`). Raises OutputError.
    """
    ov = load_openvino()
    model = model.clone()
    share_repeated_columns(model)
    if not half:
        store_in_three_bytes(model)
    name_in_order(model)
    try:
        ov.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:  # "iostream error" is all that OpenVINO says of a full disk
        message = str(error).strip().splitlines()[-1:] or ["OpenVINO says no more"]
        raise OutputError(f"{path}: cannot be written ({message[0]}). Check that there is free space.") from error


def name_in_order(model: openvino.Model) -> None:
    """Name the layers by type and position: their own names count what else the process has converted before."""
    model.set_friendly_name("student")
    for index, layer in enumerate(model.get_ordered_ops()):
        layer.set_friendly_name(f"{layer.get_type_name()}_{index}")


def share_repeated_columns(model: openvino.Model) -> int:
    """Store every relative position bias [1, heads, n, n] as its table and the index into it; how many there were.

    Conversion multiplies the table (heads x (2w - 1)^3 values for windows of w) out to one value per pair of tokens.
    Undoing this loses nothing, and costs nothing: the engine multiplies it out again when it loads the model.
    """
    ops = load_openvino().opset13
    shared = 0
    for layer in model.get_ordered_ops():
        if layer.get_type_name() != "Constant" or layer.get_byte_size() < _WORTH_SHARING:
            continue
        shape = list(layer.get_output_shape(0))
        if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3]:
            continue
        columns = np.ascontiguousarray(layer.get_data().reshape(shape[1], -1).T)
        bits = columns.view(np.dtype((np.void, columns.itemsize * shape[1])))[:, 0]
        _, first, index = np.unique(bits, return_index=True, return_inverse=True)
        if len(first) * 8 > len(columns):
            continue
        order = np.argsort(first)  # by first appearance: layers with the same window get the same index
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order))
        table = np.ascontiguousarray(columns[first[order]].T)
        gathered = ops.gather(
            ops.constant(table), ops.constant(rank[index].reshape(shape[2:])), ops.constant(np.int32(1))
        )
        whole = ops.unsqueeze(gathered, ops.constant(np.int32(0)))
        for reader in layer.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))
        shared += 1
    model.validate_nodes_and_infer_types()
    return shared


def store_in_three_bytes(model: openvino.Model) -> int:
    """Store large float32 constants as 24-bit fixed point, one power of two per row; how many there were.

    A value is off by at most 2^-24 of the power of two above the largest of its row, an ulp of that largest value: no
    more than what float32 arithmetic rounds off a sum they go into. The engine widens them when it loads.
    """
    ops = load_openvino().opset13
    stored = 0
    for layer in model.get_ordered_ops():
        if layer.get_type_name() != "Constant" or layer.get_byte_size() < _WORTH_SHARING:
            continue
        if layer.get_output_element_type(0).get_type_name() != "f32":
            continue
        values = layer.get_data().astype(np.float64)
        _, exponent = np.frexp(np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True))
        step = np.ldexp(1.0, exponent - 23)
        fixed = np.minimum(np.rint(values / step), 2**23 - 1).astype(np.int32)
        high = ops.convert(ops.constant((fixed >> 8).astype(np.int16)), np.float32)
        low = ops.convert(ops.constant((fixed & 255).astype(np.uint8)), np.float32)
        whole = ops.multiply(ops.add(ops.multiply(high, np.float32(256)), low), ops.constant(step.astype(np.float32)))
        for reader in layer.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))
        stored += 1
    model.validate_nodes_and_infer_types()
    return stored
