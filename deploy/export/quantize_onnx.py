"""int8 for ONNX by static quantization (ONNX Runtime), and what is tried in turn when plain int8 loses too much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MissingExtraError
from ...volumes.files import temporary_folder
from .onnx import quiet, save
from .sensitivity import (
    FLOAT_ATTENTION,
    FLOAT_ENDS,
    PLAIN,
    Layer,
    LayerGraph,
    QuantizationScheme,
    float_layers,
    weakest,
)

if TYPE_CHECKING:
    import onnx

SCHEMES = (PLAIN, FLOAT_ATTENTION, FLOAT_ENDS)
_QUANTIZABLE = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def quantize(
    model: onnx.ModelProto, calibration: Sequence[np.ndarray], scheme: QuantizationScheme, *, symmetric: bool = False
) -> onnx.ModelProto:
    """A quantized copy, its int8 parts between quantize and dequantize nodes (QDQ); `calibration` are prepared patches
    [C, *patch] of training cases.

    Weights symmetric per channel in int8, activations asymmetric in uint8, or with `symmetric` in int8 with a zero
    point of 0, ranges from minimum and maximum. Raises MissingExtraError without ONNX Runtime.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingExtraError(f"{error}; run: python -m pip install 'samkd[onnx]'") from error

    class Patches(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            patch = next(self._left, None)
            return None if patch is None else {"image": patch[None].astype(np.float32)}

    with temporary_folder() as scratch, quiet():
        source, quantized = Path(scratch) / "model.onnx", Path(scratch) / "int8.onnx"
        save(model, source)
        quantize_static(
            source,
            quantized,
            Patches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZABLE),
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=float_layers(layer_graph(model), scheme),
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": symmetric},
        )
        return onnx.load(quantized)


def layer_graph(model: onnx.ModelProto) -> LayerGraph:
    """The graph of an ONNX model by its nodes' names; initializers, inputs and outputs are layers of their own."""
    graph = model.graph
    makers = {
        **{output: node.name for node in graph.node for output in node.output},
        **{each.name: f"input {each.name}" for each in graph.input},
        **{each.name: f"weight {each.name}" for each in graph.initializer},
    }
    weights = {f"weight {each.name}": Layer("Constant", constant=True) for each in graph.initializer}
    inputs = {f"input {each.name}": Layer("Parameter") for each in graph.input}
    nodes = {node.name: Layer(node.op_type, [makers.get(each, "") for each in node.input]) for node in graph.node}
    outputs = {f"output {each.name}": Layer("Result", [makers.get(each.name, "")]) for each in graph.output}
    return LayerGraph(weights | inputs | nodes | outputs, list(inputs), list(outputs), quantizable=_QUANTIZABLE)


def weakest_layers(model: onnx.ModelProto, quantized: onnx.ModelProto, patch: np.ndarray) -> list[str]:
    """The layers whose output, for a patch [C, *patch], is furthest from what it was: "name (x dB)", worst first."""
    names = {node.output[0]: node.name for node in model.graph.node if node.op_type in _QUANTIZABLE}
    before, after = (_outputs(each, list(names), patch) for each in (model, quantized))
    return weakest((names[each], before[each], after[each]) for each in names if each in before and each in after)


def _outputs(model: onnx.ModelProto, names: Sequence[str], patch: np.ndarray) -> dict[str, Any]:
    """Those of the values `names` that the model computes, for a patch [C, *patch]."""
    import onnx
    import onnxruntime

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    computed = {output for node in probed.graph.node for output in node.output}
    outputs = {output.name for output in probed.graph.output}
    names = [name for name in names if name in computed]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"image": patch[None].astype(np.float32)}), strict=True))
