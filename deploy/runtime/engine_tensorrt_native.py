"""TensorRT's own runtime: a serialized engine on an NVIDIA GPU, without PyTorch and without ONNX Runtime.

Written against the documented interfaces of tensorrt (10) and cuda-python (12); not run on a GPU yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import IntegrityError, MissingExtraError, translated
from .engine import Shape
from .tensorrt_file import EngineKey

_INSTALL = "cannot be imported; run: python -m pip install tensorrt cuda-python, in the versions of requirements.txt"
_FLOAT = 4  # bytes


def load_tensorrt() -> tuple[ModuleType, ModuleType]:
    """The modules `tensorrt` and `cuda.bindings.runtime`. Raises MissingExtraError."""
    with translated("tensorrt", _INSTALL, MissingExtraError):
        import tensorrt  # pyright: ignore[reportMissingImports]
        from cuda.bindings import runtime  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    return tensorrt, runtime


def this_machine() -> EngineKey:
    """What engines for this machine's GPU belong to. Raises MissingExtraError without a GPU or the libraries."""
    tensorrt, cuda = load_tensorrt()
    with translated("tensorrt", "finds no NVIDIA GPU", MissingExtraError):
        facts = _checked(cuda, cuda.cudaGetDeviceProperties(_checked(cuda, cuda.cudaGetDevice())))
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        return EngineKey(name.strip("\0"), f"{facts.major}.{facts.minor}", tensorrt.__version__)


class Engine:
    """A deserialized engine of one patch, which messages call `name`: `runtime.engine.Engine`. Patches go one by one.

    The engine is code for the GPU: it must come from somebody who is trusted. Raises IntegrityError for one that
    TensorRT does not read, or that is not of fixed sizes and float32 outside.
    """

    def __init__(self, serialized: bytes, *, name: object, precision: str, threads: int | None = None):
        tensorrt, self._cuda = load_tensorrt()
        self._fault = f"TensorRT {tensorrt.__version__} cannot run this model"
        self._name = name
        with translated(name, self._fault, IntegrityError):
            self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(serialized)
            if self._engine is None:
                raise RuntimeError("it cannot be deserialized")
            self._context = self._engine.create_execution_context()
            names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
            shapes = {each: tuple(self._engine.get_tensor_shape(each)) for each in names}
            modes = {each: self._engine.get_tensor_mode(each) for each in names}
            floats = all(self._engine.get_tensor_dtype(each) == tensorrt.DataType.FLOAT for each in names)
            self._inputs = [each for each in names if modes[each] == tensorrt.TensorIOMode.INPUT]
            outputs = [each for each in names if each not in self._inputs]
            if not floats or len(outputs) != 1 or any(shape[:1] != (1,) or min(shape) < 1 for shape in shapes.values()):
                raise RuntimeError(f"it has inputs and outputs {shapes}, expected float32 of one patch")
            (self._output,) = outputs
            self._shapes = shapes
            self._buffers, self._stream = self._allocated(names)
        weakref.finalize(self, _free, self._cuda, list(self._buffers.values()), self._stream)
        self.input_shapes: list[Shape] = [(None, *shapes[each][1:]) for each in self._inputs]
        self.output_shape: Shape = (None, *shapes[self._output][1:])
        self.version = f"tensorrt {tensorrt.__version__} ({this_machine().gpu})"
        self.precision = precision
        self.threads = threads or 1
        self._worker = ThreadPoolExecutor(1)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        return self.begin(*inputs)()

    def begin(self, *inputs: np.ndarray) -> Callable[[], np.ndarray]:
        inputs = tuple(np.array(each, np.float32, order="C") for each in inputs)
        return self._worker.submit(self._run, inputs).result

    def layer_precisions(self) -> dict[str, int]:
        """Nothing: an engine does not say."""
        return {}

    def _allocated(self, names: Sequence[str]) -> tuple[dict[str, int], Any]:
        """The GPU's memory for each input and output, and the stream that computes."""
        buffers = {}
        for name in names:
            buffers[name] = _checked(self._cuda, self._cuda.cudaMalloc(prod(self._shapes[name]) * _FLOAT))
            self._context.set_tensor_address(name, int(buffers[name]))
        return buffers, _checked(self._cuda, self._cuda.cudaStreamCreate())

    def _run(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        with translated(self._name, self._fault, IntegrityError):
            answers = np.empty((len(inputs[0]), *self._shapes[self._output][1:]), np.float32)
            for index in range(len(answers)):
                self._run_patch([each[index] for each in inputs], answers[index])
            return answers

    def _run_patch(self, patch: Sequence[np.ndarray], answer: np.ndarray) -> None:
        """One patch of each input; the output is written into `answer`."""
        cuda, kinds = self._cuda, self._cuda.cudaMemcpyKind
        for name, values in zip(self._inputs, patch, strict=True):
            if values.shape != self._shapes[name][1:]:
                raise RuntimeError(f"{name} is of {values.shape}, expected {self._shapes[name][1:]}")
            source = values.ctypes.data
            _checked(cuda, cuda.cudaMemcpy(self._buffers[name], source, values.nbytes, kinds.cudaMemcpyHostToDevice))
        if not self._context.execute_async_v3(int(self._stream)):
            raise RuntimeError("it was not started")
        _checked(cuda, cuda.cudaStreamSynchronize(self._stream))
        output = self._buffers[self._output]
        _checked(cuda, cuda.cudaMemcpy(answer.ctypes.data, output, answer.nbytes, kinds.cudaMemcpyDeviceToHost))


def _checked(cuda: ModuleType, result: Any) -> Any:
    """The value of a call of CUDA, which gives its status before. Raises RuntimeError for any but success."""
    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA says {status}")
    return values[0] if values else None


def _free(cuda: ModuleType, buffers: Sequence[int], stream: Any) -> None:
    for each in buffers:
        cuda.cudaFree(each)
    cuda.cudaStreamDestroy(stream)
