"""int8 for OpenVINO by post-training quantization (NNCF), and what is tried in turn when plain int8 loses too much."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import MissingExtraError
from ..runtime.engine_openvino import core
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

SCHEMES = (
    PLAIN,
    FLOAT_ATTENTION,
    FLOAT_ENDS,
    replace(FLOAT_ENDS, name=f"{FLOAT_ENDS.name}, full bias correction", full_bias_correction=True),
)
WITHOUT_VNNI = tuple(replace(each, name=f"{each.name}, half range", half_range=True) for each in SCHEMES)
_QUANTIZABLE = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul")
_LAYERS_AT_ONCE = 8


def quantize(model: Any, calibration: Sequence[np.ndarray], scheme: QuantizationScheme) -> Any:
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

    # By itself NNCF halves the range of the first layers alone.
    overflow = nncf.OverflowFix.ENABLE if scheme.half_range else None
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([patch[None] for patch in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            fast_bias_correction=not scheme.full_bias_correction,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow) if overflow else None,
            ignored_scope=nncf.IgnoredScope(names=float_layers(layer_graph(model), scheme)),
        )


def layer_graph(model: Any) -> LayerGraph:
    """The graph of an openvino.Model by the layers' friendly names."""
    layers = {
        layer.get_friendly_name(): Layer(
            kind=layer.get_type_name(),
            inputs=[value.get_node().get_friendly_name() for value in layer.input_values()],
            constant=layer.get_type_name() == "Constant",
        )
        for layer in model.get_ordered_ops()
    }
    inputs = [layer.get_friendly_name() for layer in model.get_parameters()]
    outputs = [layer.get_friendly_name() for layer in model.get_results()]
    return LayerGraph(layers, inputs, outputs, quantizable=_QUANTIZABLE)


def weakest_layers(model: Any, quantized: Any, patch: np.ndarray) -> list[str]:
    """The layers with weights whose output, for a patch [C, *patch], is furthest from what it was: "name (x dB)"."""
    return weakest(_layer_outputs(model, quantized, patch))


def _layer_outputs(model: Any, quantized: Any, patch: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, output before and output after quantization of every quantizable layer that both models have."""
    remaining = {layer.get_friendly_name() for layer in quantized.get_ordered_ops()}
    names = [
        name for name, layer in layer_graph(model).layers.items() if layer.kind in _QUANTIZABLE and name in remaining
    ]
    for start in range(0, len(names), _LAYERS_AT_ONCE):  # every output is held until the end of a run
        some = names[start : start + _LAYERS_AT_ONCE]
        yield from zip(some, _outputs(model, some, patch), _outputs(quantized, some, patch), strict=True)


def _outputs(model: Any, names: Sequence[str], patch: np.ndarray) -> list[np.ndarray]:
    probed = model.clone()
    layers = {layer.get_friendly_name(): layer for layer in probed.get_ordered_ops()}
    probed.add_outputs([layers[name].output(0) for name in names])
    outputs = core().compile_model(probed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(patch[None])
    return [outputs[index] for index in range(1, 1 + len(names))]
