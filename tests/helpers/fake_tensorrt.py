"""TensorRT, CUDA and torch_tensorrt as far as they are documented, on the CPU: for the wiring, not for the numbers.

An engine is the pickled name of what it computes with the sizes of its inputs and output; memory is numpy's.
"""

import ctypes
import itertools
import pickle
import sys
from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Shape = tuple[int, ...]
COMPUTES: dict[str, Callable[..., np.ndarray]] = {}  # name -> what an engine of that name answers


def serialized(computes: str, inputs: dict[str, Shape], output: tuple[str, Shape]) -> bytes:
    return pickle.dumps((computes, inputs, output))


class TensorIOMode(Enum):
    INPUT = 0
    OUTPUT = 1


class DataType(Enum):
    FLOAT = 0
    HALF = 1


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


Status = cudaError_t
Kind = cudaMemcpyKind


class Cuda(ModuleType):
    """cuda.bindings.runtime: every call gives its status first. `memory` is what was allocated."""

    cudaError_t, cudaMemcpyKind = cudaError_t, cudaMemcpyKind

    def __init__(self, *, gpu: str, room: int = 1 << 30) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpu, self.room = gpu, room
        self.memory: dict[int, np.ndarray] = {}
        self.streams: set[int] = set()
        self._handles = itertools.count(1)

    def cudaGetDevice(self) -> tuple[Status, int]:
        return cudaError_t.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, SimpleNamespace]:
        return cudaError_t.cudaSuccess, SimpleNamespace(name=self.gpu.encode() + b"\0\0", major=9, minor=0)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        if size > self.room:
            return cudaError_t.cudaErrorMemoryAllocation, 0
        buffer = np.zeros(size, np.uint8)
        self.memory[buffer.ctypes.data] = buffer
        return cudaError_t.cudaSuccess, buffer.ctypes.data

    def cudaMemcpy(self, target: int, source: int, size: int, kind: Kind) -> tuple[Status]:
        device = target if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert self.memory[device].nbytes == size
        ctypes.memmove(target, source, size)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamCreate(self) -> tuple[Status, int]:
        stream = next(self._handles)
        self.streams.add(stream)
        return cudaError_t.cudaSuccess, stream

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        assert stream in self.streams
        return (cudaError_t.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        self.streams.remove(stream)
        return (cudaError_t.cudaSuccess,)

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.memory[address]
        return (cudaError_t.cudaSuccess,)


class Context:
    """tensorrt.IExecutionContext."""

    def __init__(self, cuda: Cuda, computes: str, inputs: dict[str, Shape], output: tuple[str, Shape]) -> None:
        self.cuda, self.computes, self.inputs, self.output = cuda, computes, inputs, output
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle in self.cuda.streams
        values = [
            self.cuda.memory[self.addresses[name]].view(np.float32).reshape(shape)
            for name, shape in self.inputs.items()
        ]
        name, shape = self.output
        answer = COMPUTES[self.computes](*values)
        assert answer.shape == shape
        self.cuda.memory[self.addresses[name]].view(np.float32)[:] = answer.astype(np.float32).ravel()
        return True


class CudaEngine:
    """tensorrt.ICudaEngine."""

    def __init__(self, cuda: Cuda, computes: str, inputs: dict[str, Shape], output: tuple[str, Shape]) -> None:
        self.cuda, self.computes, self.inputs, self.output = cuda, computes, inputs, output
        self.shapes = {**inputs, output[0]: output[1]}
        self.num_io_tensors = len(self.shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_shape(self, name: str) -> Shape:
        return self.shapes[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.HALF if self.computes == "half outside" else DataType.FLOAT

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def create_execution_context(self) -> Context:
        return Context(self.cuda, self.computes, self.inputs, self.output)


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        self.severity = severity


def tensorrt(cuda: Cuda, *, version: str) -> ModuleType:
    """The module `tensorrt`, as far as it runs engines."""

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            assert logger.severity == Logger.ERROR

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
            try:
                return CudaEngine(cuda, *pickle.loads(serialized_engine))
            except pickle.UnpicklingError:
                return None

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__=version, Runtime=Runtime, Logger=Logger, TensorIOMode=TensorIOMode, DataType=DataType
    )
    return module


def torch_tensorrt(compiled: list[dict[str, Any]]) -> ModuleType:
    """The module `torch_tensorrt`: its engines compute what the exported program does; the calls are kept."""
    import torch

    def convert(
        exported_program: Any,
        inputs: None = None,
        *,
        arg_inputs: Sequence[Any],
        disable_tf32: bool,
        use_explicit_typing: bool,
        truncate_double: bool,
    ) -> bytes:
        name = f"program {len(compiled)}"
        values = [node.meta.get("val") for node in exported_program.graph.nodes]
        types = {each.dtype for each in values if isinstance(each, torch.Tensor)}
        compiled.append({"types": types, "explicit": use_explicit_typing, "tf32": not disable_tf32})
        module = exported_program.module()

        def compute(*values: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return module(*(torch.from_numpy(each.copy()) for each in values)).numpy()

        COMPUTES[name] = compute
        (output,) = exported_program.graph.find_nodes(op="output")
        named = {f"arg_{index}": tuple(each.shape) for index, each in enumerate(arg_inputs)}
        return serialized(name, named, ("output0", tuple(output.args[0][0].meta["val"].shape)))

    module = ModuleType("torch_tensorrt")
    module.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)  # type: ignore[attr-defined]
    return module


def install(monkeypatch: Any, *, gpu: str = "NVIDIA Test", version: str = "10.9.0") -> Cuda:
    """Put the runtime's modules in their places."""
    cuda = Cuda(gpu=gpu)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(cuda, version=version))
    return cuda
