"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...errors import IntegrityError, MissingExtraError

PRECISION = "f32"  # the only arithmetic its CPU provider has beside int8
_ERRORS_ONLY = 3


class Engine:
    """A session for a model file: `runtime.engine.Engine`. One patch computes while others wait their turn.

    Raises MissingExtraError without ONNX Runtime, IntegrityError for a model it cannot read and for a package that was
    measured in another precision.
    """

    def __init__(self, model: Path, *, precision: str, threads: int | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError(
                f"onnxruntime cannot be imported ({error}); run: python -m pip install onnxruntime "
                "(the version a package was measured with stands in its requirements.txt)"
            ) from error
        if precision != PRECISION:
            raise IntegrityError(f"{model}: measured in {precision}, but ONNX Runtime would infer in {PRECISION}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        self.threads = threads or os.cpu_count() or 1
        options.intra_op_num_threads = self.threads
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise IntegrityError(
                f"{model}: ONNX Runtime {onnxruntime.__version__} cannot run this model ({error})."
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._worker = ThreadPoolExecutor(1)
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self.precision = PRECISION
        self.seconds = 0.0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return self.begin(patches)()

    def begin(self, patches: np.ndarray) -> Callable[[], np.ndarray]:
        answer = self._worker.submit(self._run, np.array(patches, np.float32, order="C"))

        def wait() -> np.ndarray:
            started = time.perf_counter()
            found = answer.result()
            self.seconds += time.perf_counter() - started
            return found

        return wait

    def _run(self, patches: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._input: patches})[0])

    def layer_precisions(self) -> dict[str, int]:
        """Nothing: ONNX Runtime does not say."""
        return {}
