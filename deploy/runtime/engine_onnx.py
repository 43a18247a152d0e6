"""ONNX Runtime: on the CPU, or on an NVIDIA GPU through TensorRT."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import IntegrityError, MissingExtraError, translated
from .engine import Shape

CPU, TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"
_PRECISIONS = {CPU: ("f32",), TENSORRT: ("f32", "f16")}  # of what is not int8
_FATAL_ONLY = 4  # what is less is raised, too
_INSTALL = (
    "cannot be imported; run: python -m pip install onnxruntime, in the version that a package's requirements.txt names"
)


def load_onnxruntime() -> ModuleType:
    """The module `onnxruntime`. Raises MissingExtraError."""
    with translated("onnxruntime", _INSTALL, MissingExtraError):
        import onnxruntime
    return onnxruntime


def has_provider(name: str) -> bool:
    """Whether this build of ONNX Runtime, if there is one, has the provider; not whether there is a device for it."""
    try:
        return name in load_onnxruntime().get_available_providers()
    except MissingExtraError:
        return False


class Engine:
    """A session for a model file, which messages call `name`: `runtime.engine.Engine`. One patch computes while others
    wait their turn.

    `provider` computes, with `settings` of its own; ONNX Runtime's habit of turning silently to the CPU is refused.
    Raises MissingExtraError without ONNX Runtime or where the provider does not work, IntegrityError for a model that
    cannot be read and for a package that was measured in a precision the provider does not have.
    """

    def __init__(
        self,
        model: Path,
        *,
        name: object = None,
        precision: str,
        threads: int | None = None,
        provider: str = CPU,
        settings: Mapping[str, Any] | None = None,
    ):
        onnxruntime = load_onnxruntime()
        name = name or model
        if precision not in _PRECISIONS[provider]:
            others = " or ".join(_PRECISIONS[provider])
            raise IntegrityError(f"{name}: measured in {precision}, but ONNX Runtime would infer in {others}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        self.threads = threads or os.cpu_count() or 1
        options.intra_op_num_threads = self.threads
        chosen = [(provider, dict(settings or {})), CPU] if provider != CPU else [CPU]
        self._fault = f"ONNX Runtime {onnxruntime.__version__} cannot run this model"
        with translated(name, self._fault, IntegrityError):
            self._session = onnxruntime.InferenceSession(model, options, providers=chosen)
        if self._session.get_providers()[0] != provider:
            raise MissingExtraError(
                f"{name}: ONNX Runtime's {provider} does not work on this machine, and the CPU is not what this "
                "package is for; install a GPU driver and TensorRT, or use a package for the target onnx or openvino"
            )
        self._name = name
        self._inputs = [each.name for each in self._session.get_inputs()]
        self.input_shapes = [_shape(each) for each in self._session.get_inputs()]
        self.output_shape = _shape(self._session.get_outputs()[0])
        self._worker = ThreadPoolExecutor(1)
        self.version = f"onnxruntime {onnxruntime.__version__} ({provider.removesuffix('ExecutionProvider')})"
        self.precision = precision

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        return self.begin(*inputs)()

    def begin(self, *inputs: np.ndarray) -> Callable[[], np.ndarray]:
        inputs = tuple(np.array(each, np.float32, order="C") for each in inputs)
        return self._worker.submit(self._run, inputs).result

    def _run(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        with translated(self._name, self._fault, IntegrityError):
            return np.asarray(self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))[0])

    def layer_precisions(self) -> dict[str, int]:
        """Nothing: ONNX Runtime does not say."""
        return {}


def _shape(port: Any) -> Shape:
    """The sizes that a graph declares for an input or output; None for those that it leaves open."""
    return tuple(size if isinstance(size, int) else None for size in port.shape)
