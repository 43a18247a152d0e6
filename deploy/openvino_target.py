"""From a torch network to an OpenVINO model, and that model to disk."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

from .runtime.engine_openvino import load_openvino

if TYPE_CHECKING:
    import openvino

_WORTH_SHARING = 1 << 16  # bytes


def convert(network: nn.Module, *, patch: tuple[int, int, int], in_channels: int) -> openvino.Model:
    """The network as an OpenVINO model: image float32 [1, C, *patch] -> class probabilities float32 [1, K, *patch].

    The graph is traced on one patch, so everything that depends on its size only (shift masks, paddings) is fixed.
    The network itself is left as it is.
    """
    ov = load_openvino()
    shape = (1, in_channels, *patch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # a fixed size is what is wanted
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)  # tracing is deprecated; torch.export's graph is slower here
        model = ov.convert_model(_Probabilities(network), example_input=torch.zeros(shape), input=[shape])
    model.inputs[0].set_names({"image"})
    model.outputs[0].set_names({"probabilities"})
    name_in_order(model)
    return model


def save(model: openvino.Model, path: Path, *, half: bool) -> None:
    """Write `path` (.xml) and its weights beside it (.bin), as float16 when `half`. Equal models give equal bytes."""
    ov = load_openvino()
    model = model.clone()
    share_repeated_columns(model)
    name_in_order(model)
    ov.save_model(model, path, compress_to_fp16=half)


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


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).cpu().eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).softmax(1)
