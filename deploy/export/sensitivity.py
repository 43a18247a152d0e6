"""Which layers int8 hurts: the schemes that keep some of them in float, and how much each one lost.

What is said here of a model is said of its layers by name, so the same code serves every engine's graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ATTENTION = "ScaledDotProductAttention"  # the whole of it as one layer; its scale may be a constant
_SIZES = ("Shape", "ShapeOf")  # what is behind them are sizes, not values


@dataclass(frozen=True)
class QuantizationScheme:
    """One way to quantize a model. A target tries its schemes in turn; each gives up less speed for accuracy."""

    name: str
    float_attention: bool = False  # products of two activations: queries with keys, weights with values
    float_ends: bool = False  # the layers next to the image and next to the probabilities
    full_bias_correction: bool = False  # layer by layer on the quantized network; minutes instead of seconds
    half_range: bool = False  # weights in 7 of the 8 bits, so that sums of two products fit into 16


PLAIN = QuantizationScheme("plain")
FLOAT_ATTENTION = QuantizationScheme("attention in float", float_attention=True)
FLOAT_ENDS = QuantizationScheme("attention and both ends in float", float_attention=True, float_ends=True)


@dataclass(frozen=True)
class Layer:
    """One node of a model's graph: its operation, and the names of the layers whose outputs it takes."""

    kind: str
    inputs: Sequence[str] = ()
    constant: bool = False


@dataclass(frozen=True)
class LayerGraph:
    """A model's graph, whatever its format: layers by name, and which of them are its inputs and its outputs.

    `quantizable` are the operations that int8 computes. An input that no layer gives has a name that is not in
    `layers`.
    """

    layers: Mapping[str, Layer]
    inputs: Sequence[str]
    outputs: Sequence[str]
    quantizable: Sequence[str]


def float_layers(graph: LayerGraph, scheme: QuantizationScheme) -> list[str]:
    """The names of the layers that a scheme keeps in float, sorted."""
    names: set[str] = set()
    if scheme.float_attention:
        names.update(attention_layers(graph))
    if scheme.float_ends:
        names.update(end_layers(graph))
    return sorted(names)


def attention_layers(graph: LayerGraph) -> list[str]:
    """The names of the layers that multiply two activations: attention, and products without a weight."""
    return [
        name
        for name, layer in graph.layers.items()
        if layer.kind == _ATTENTION
        or (layer.kind == "MatMul" and not any(_is_weight(graph, each) for each in layer.inputs))
    ]


def end_layers(graph: LayerGraph) -> list[str]:
    """The names of the quantizable layers nearest to the model's inputs, then of those nearest to its outputs."""
    readers: dict[str, list[str]] = {}
    for name, layer in graph.layers.items():
        for each in layer.inputs:
            readers.setdefault(each, []).append(name)
    first = _nearest(graph, graph.inputs, lambda name: readers.get(name, ()))
    last = _nearest(graph, graph.outputs, lambda name: graph.layers[name].inputs if name in graph.layers else ())
    return [*first, *last]


def _is_weight(graph: LayerGraph, name: str) -> bool:
    """Whether a value is a constant, or one that went through layers of a single input."""
    while name in graph.layers and len(graph.layers[name].inputs) == 1:
        (name,) = graph.layers[name].inputs
    return name in graph.layers and graph.layers[name].constant


def _nearest(graph: LayerGraph, start: Iterable[str], neighbours: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """The first quantizable layers on every way from `start`; ways that only carry sizes do not count."""
    seen, stack = set(), list(start)
    while stack:
        for name in neighbours(stack.pop()):
            if name in seen or name not in graph.layers or graph.layers[name].kind in _SIZES:
                continue
            seen.add(name)
            if graph.layers[name].kind in graph.quantizable:
                yield name
            else:
                stack.append(name)


def signal_to_noise(signal: Iterable[np.ndarray], converted: Iterable[np.ndarray]) -> float:
    """Power of `signal` over that of the differences from `converted`, in dB.

    Infinite when there is no difference, and when there is no signal.
    """
    power = noise = 0.0
    for before, after in zip(signal, converted, strict=True):
        power += float(np.square(before, dtype=np.float64).sum())
        noise += float(np.square(before - after, dtype=np.float64).sum())
    return 10 * math.log10(power / noise) if noise and power else math.inf


def weakest(outputs: Iterable[tuple[str, np.ndarray, np.ndarray]], *, count: int = 3) -> list[str]:
    """The layers furthest from what they were, as "name (x dB)", worst first, from (name, output before, after)."""
    ratios = {name: signal_to_noise([before], [after]) for name, before, after in outputs}
    return [f"{name} ({ratios[name]:.1f} dB)" for name in sorted(ratios, key=ratios.__getitem__)[:count]]
