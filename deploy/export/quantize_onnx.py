"""int8 for ONNX by static quantization (ONNX Runtime), and what is tried in turn when plain int8 loses too much."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MissingExtraError
from .onnx import quiet, save

if TYPE_CHECKING:
    import onnx

_QUANTIZED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Way:
    """One way to quantize. Each of WAYS gives up less than the one before; the same gate judges all."""

    name: str
    float_attention: bool = False  # products of two activations: queries with keys, weights with values
    float_ends: bool = False  # the layers next to the image and next to the probabilities


WAYS = (
    Way("plain"),
    Way("attention in float", float_attention=True),
    Way("attention and both ends in float", float_attention=True, float_ends=True),
)


def quantize(model: onnx.ModelProto, calibration: Sequence[np.ndarray], way: Way) -> onnx.ModelProto:
    """A quantized copy, its int8 parts between quantize and dequantize nodes (QDQ); `calibration` are prepared patches
    [C, *patch] of training cases.

    Weights symmetric per channel in int8, activations asymmetric in uint8, ranges from minimum and maximum. Raises
    MissingExtraError without ONNX Runtime.
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

    left_out = [*(_attention(model) if way.float_attention else ()), *(_ends(model) if way.float_ends else ())]
    with tempfile.TemporaryDirectory() as scratch, quiet():
        before, after = Path(scratch) / "model.onnx", Path(scratch) / "int8.onnx"
        save(model, before)
        quantize_static(
            before,
            after,
            Patches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(set(left_out)),
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        return onnx.load(after)


def weakest_layers(model: Any, quantized: Any, patch: np.ndarray, *, count: int = 3) -> list[str]:
    """The layers whose output, for a patch [C, *patch], is furthest from what it was: "name (x dB)", worst first."""
    names = {node.output[0]: node.name for node in model.graph.node if node.op_type in _QUANTIZED}
    before, after = (_outputs(each, list(names), patch) for each in (model, quantized))
    ratios = {}
    for output in before.keys() & after.keys():
        noise = float(np.square(before[output] - after[output], dtype=np.float64).sum())
        power = float(np.square(before[output], dtype=np.float64).sum())
        ratios[output] = 10 * np.log10(power / noise) if noise and power else np.inf
    return [f"{names[each]} ({ratios[each]:.1f} dB)" for each in sorted(ratios, key=ratios.__getitem__)[:count]]


def _outputs(model: Any, names: Sequence[str], patch: np.ndarray) -> dict[str, Any]:
    import onnx
    import onnxruntime

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    made = {output for node in probed.graph.node for output in node.output}
    known = {output.name for output in probed.graph.output}
    wanted = [name for name in names if name in made]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(wanted, {"image": patch[None].astype(np.float32)}), strict=True))


def _attention(model: Any) -> Iterable[str]:
    weights = {each.name for each in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "MatMul" and not any(_is_weight(each, weights, makers) for each in node.input):
            yield node.name


def _is_weight(name: str, weights: set[str], makers: dict[str, Any]) -> bool:
    while name in makers and len(makers[name].input) == 1:
        name = makers[name].input[0]
    return name in weights


def _ends(model: Any) -> Iterable[str]:
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    yield from _nearest([each.name for each in model.graph.input], lambda name: readers.get(name, []), "output")
    yield from _nearest(
        [each.name for each in model.graph.output], lambda name: [makers[name]] if name in makers else [], "input"
    )


def _nearest(start: Iterable[str], neighbours: Any, onward: str) -> Iterable[str]:
    """The first quantizable layers on every way from the values `start`; ways that only carry sizes do not count."""
    seen, stack = set(), list(start)
    while stack:
        for node in neighbours(stack.pop()):
            if node.name in seen or node.op_type == "Shape":
                continue
            seen.add(node.name)
            if node.op_type in _QUANTIZED:
                yield node.name
            else:
                stack.extend(getattr(node, onward))
