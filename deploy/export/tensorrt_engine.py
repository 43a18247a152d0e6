"""Serialized TensorRT engines: from a torch network through torch_tensorrt, from a quantized ONNX model by TensorRT.

Written against the documented interfaces of torch_tensorrt (2.10, dynamo) and tensorrt (10); not run on a GPU yet.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import UsageError, translated
from ..runtime.engine_tensorrt_native import load_tensorrt
from .graphs import Graph
from .onnx import quiet

DEVICE = "cuda"
_REFUSED = "cannot compile this network; deploy it for the target onnx, or without torch_tensorrt"
_PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def compiles() -> bool:
    """Whether torch_tensorrt is installed and there is a GPU to compile for."""
    return all(map(find_spec, ("torch_tensorrt", "tensorrt"))) and torch.cuda.is_available()


def serialized_network(graph: Graph, *, half: bool) -> bytes:
    """The engine of a graph for one patch. With `half` convolutions and products with weights compute in float16.

    Types are explicit: TensorRT computes in those of the network, and TF32 is off. Raises UsageError for a network that
    torch_tensorrt cannot compile whole.
    """
    with translated("torch_tensorrt", _REFUSED, UsageError):
        import torch_tensorrt  # pyright: ignore[reportMissingImports]

        module = copy.deepcopy(graph.module)
        module = (in_half(module) if half else module).to(DEVICE).eval()
        example = tuple(each.to(DEVICE) for each in graph.inputs.values())
        with quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            program = torch.export.export(module, example)
            return bytes(
                torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                    program,
                    arg_inputs=list(example),
                    disable_tf32=True,
                    use_explicit_typing=True,
                    truncate_double=True,
                )
            )


def serialized_onnx(model: bytes) -> bytes:
    """The engine of an ONNX model for one patch; its quantize and dequantize nodes say what computes in int8.

    Raises UsageError for a model that TensorRT does not read.
    """
    tensorrt, _ = load_tensorrt()
    with translated("tensorrt", _REFUSED, UsageError):
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse(model):
            raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
        for index in range(network.num_inputs):
            image = network.get_input(index)
            image.shape = (1, *tuple(image.shape)[1:])  # the number of patches is free in the ONNX model
        config = builder.create_builder_config()
        config.clear_flag(tensorrt.BuilderFlag.TF32)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise RuntimeError("it cannot be built")
        return bytes(serialized)


class _InHalf(nn.Module):
    """A layer that computes in float16 between float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.half()

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values.half()).float()


def in_half(module: nn.Module) -> nn.Module:
    """The module with every convolution and linear layer in float16, in its place; norms, softmax and all the rest
    stay in float32. A layer whose weights do not fit into float16 stays, too.
    """
    for name, child in module.named_children():
        if isinstance(child, _PRODUCTS):
            largest = max(float(each.detach().abs().max()) for each in child.parameters())
            if largest <= torch.finfo(torch.float16).max:
                setattr(module, name, _InHalf(child))
        else:
            in_half(child)
    return module
