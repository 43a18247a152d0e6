"""int8 for OpenVINO by post-training quantization (NNCF), and what is tried in turn when plain int8 loses too much."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import MissingExtraError
from ..runtime.engine_openvino import core

_LAYERS_AT_ONCE = 8
_WEIGHTED = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul")


@dataclass(frozen=True)
class Way:
    """One way to quantize. Each of WAYS gives up less than the one before; the same gate judges all."""

    name: str
    float_attention: bool = False  # products of two activations: queries with keys, weights with values
    float_ends: bool = False  # the layers next to the image and next to the probabilities
    full_bias_correction: bool = False  # layer by layer on the quantized network; minutes instead of seconds


WAYS = (
    Way("plain"),
    Way("attention in float", float_attention=True),
    Way("attention and both ends in float", float_attention=True, float_ends=True),
    Way(
        "attention and both ends in float, full bias correction",
        float_attention=True,
        float_ends=True,
        full_bias_correction=True,
    ),
)


def quantize(model: Any, calibration: Sequence[np.ndarray], way: Way) -> Any:
    """A quantized copy of an openvino.Model; `calibration` are prepared patches [C, *patch] of training cases.

    Weights symmetric per channel, activations asymmetric where they need it (NNCF's MIXED preset), SmoothQuant as for
    transformers (Xiao et al. 2022). Raises MissingExtraError without NNCF.
    """
    core()  # before NNCF is imported: it keeps it from reporting home, and its cores from unmapping our signal stack
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError(
            f"nncf cannot be imported ({error}); run: python -m pip install 'samkd[openvino]'"
        ) from error

    nncf.set_log_level(logging.ERROR)
    names = [*(_attention(model) if way.float_attention else ()), *(_ends(model) if way.float_ends else ())]
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([patch[None] for patch in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            fast_bias_correction=not way.full_bias_correction,
            ignored_scope=nncf.IgnoredScope(names=sorted(set(names))),
        )


def weakest_layers(model: Any, quantized: Any, patch: np.ndarray, *, count: int = 3) -> list[str]:
    """The layers with weights whose output, for a patch [C, *patch], is furthest from what it was: "name (x dB)"."""
    names = [layer.get_friendly_name() for layer in model.get_ordered_ops() if layer.get_type_name() in _WEIGHTED]
    kept = {layer.get_friendly_name() for layer in quantized.get_ordered_ops()}
    names = [name for name in names if name in kept]
    ratios: dict[str, float] = {}
    for start in range(0, len(names), _LAYERS_AT_ONCE):  # every output is held until the end of a run
        some = names[start : start + _LAYERS_AT_ONCE]
        for name, before, after in zip(
            some, *(_outputs(each, some, patch) for each in (model, quantized)), strict=True
        ):
            noise = float(np.square(before - after, dtype=np.float64).sum())
            power = float(np.square(before, dtype=np.float64).sum())
            ratios[name] = 10 * np.log10(power / noise) if noise and power else np.inf
    return [f"{name} ({ratios[name]:.1f} dB)" for name in sorted(ratios, key=ratios.__getitem__)[:count]]


def _outputs(model: Any, names: Sequence[str], patch: np.ndarray) -> list[np.ndarray]:
    probed = model.clone()
    layers = {layer.get_friendly_name(): layer for layer in probed.get_ordered_ops()}
    probed.add_outputs([layers[name].output(0) for name in names])
    run = core().compile_model(probed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = run(patch[None])
    return [found[index] for index in range(1, 1 + len(names))]


def _attention(model: Any) -> Iterable[str]:
    for layer in model.get_ordered_ops():
        kind = layer.get_type_name()
        if kind == "ScaledDotProductAttention" or (kind == "MatMul" and not any(map(_is_weight, _inputs(layer)))):
            yield layer.get_friendly_name()


def _ends(model: Any) -> Iterable[str]:
    first = _nearest(model.get_parameters(), _readers)
    last = _nearest(model.get_results(), _inputs)
    return [layer.get_friendly_name() for layer in (*first, *last)]


def _nearest(start: Iterable[Any], neighbours: Callable[[Any], list[Any]]) -> list[Any]:
    """The first layers with weights on every way from `start`; ways that only carry sizes do not count."""
    found, seen, stack = [], set(), list(start)
    while stack:
        for layer in neighbours(stack.pop()):
            name = layer.get_friendly_name()
            if name in seen or layer.get_type_name() == "ShapeOf":
                continue
            seen.add(name)
            (found if layer.get_type_name() in _WEIGHTED else stack).append(layer)
    return found


def _inputs(layer: Any) -> list[Any]:
    return [value.get_node() for value in layer.input_values()]


def _readers(layer: Any) -> list[Any]:
    return [reader.get_node() for output in layer.outputs() for reader in output.get_target_inputs()]


def _is_weight(layer: Any) -> bool:
    while layer.get_input_size() == 1:
        layer = layer.input_value(0).get_node()
    return layer.get_type_name() == "Constant"
