"""OpenVINO on the CPU: the one place of the runtime that knows the engine."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import IntegrityError, MissingExtraError, translated
from ...volumes.hidden import hidden
from .compiled_cache import CompiledCache, entry_name
from .engine import Shape

_INSTALL = (
    "cannot be imported; run: python -m pip install openvino, in the version that a package's requirements.txt names"
)

if TYPE_CHECKING:
    import openvino


def load_openvino() -> ModuleType:
    """The module `openvino`, with its telemetry off and without its converter. Raises MissingExtraError.

    On import OpenVINO, and NNCF with it, report to Google Analytics unless the user opted out before. Both do without
    when the package `openvino_telemetry` cannot be imported, so it is hidden from them.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    with translated("openvino", _INSTALL, MissingExtraError), hidden("openvino.tools.ovc"):  # a quarter of a second
        import openvino
    return openvino


@functools.cache
def core() -> openvino.Core:
    """The one OpenVINO core of this process, its CPU plugin loaded. Never freed.

    Each core's CPU plugin installs an alternate signal stack and unmaps it when it is freed. With two cores, the first
    one freed first, the thread is left with an unmapped signal stack and the next Ctrl-C ends in a segmentation fault.
    """
    ov = load_openvino()
    with translated("openvino", "does not start; run: python -m pip install openvino", MissingExtraError):
        only_core = ov.Core()
        only_core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return only_core


class Engine:
    """A compiled model of one patch, which messages call `name`: `runtime.engine.Engine`.

    `precision` is the arithmetic demanded of the engine ("f32"): left alone, OpenVINO computes in bfloat16 wherever
    the CPU can, and then answers differently from machine to machine. A model file that was compiled before, for the
    same processor and by the same OpenVINO, is taken from `cache`.
    Raises IntegrityError for a model OpenVINO cannot read and when it would compute in another precision.
    """

    def __init__(
        self,
        model: Path | openvino.Model,
        *,
        name: object = None,
        precision: str,
        threads: int | None = None,
        cache: CompiledCache | None = None,
    ):
        ov = load_openvino()
        name = name or (model if isinstance(model, Path) else "the converted model")
        options: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self._name, self._fault = name, f"OpenVINO {ov.__version__} cannot run this model"
        with translated(name, self._fault, IntegrityError):
            self._compiled = _compiled(model, options, cache)
            self.input_shapes = [_shape(port) for port in self._compiled.inputs]
            self.output_shape = _shape(self._compiled.outputs[0])
        self.version = f"openvino {ov.__version__}"
        self.precision: str = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.threads: int = self._compiled.get_property("INFERENCE_NUM_THREADS")
        self._idle: list[openvino.InferRequest] = []
        if self.precision != precision:
            raise IntegrityError(f"{name}: measured in {precision}, but this machine would infer in {self.precision}.")

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        return self.begin(*inputs)()

    def begin(self, *inputs: np.ndarray) -> Callable[[], np.ndarray]:
        """Start inferring; the function returned waits for the answer and must be called once.

        Not from several threads: Python's lock and one of OpenVINO's then wait for each other for ever (2026.4). Both
        raise IntegrityError for a graph that OpenVINO cannot run.
        """
        requests = []
        patches = (np.ascontiguousarray(each, np.float32)[:, None] for each in inputs)
        with translated(self._name, self._fault, IntegrityError):
            for patch in zip(*patches, strict=True):
                requests.append(self._idle.pop() if self._idle else self._compiled.create_infer_request())
                requests[-1].start_async(patch, share_inputs=False)

        def wait() -> np.ndarray:
            with translated(self._name, self._fault, IntegrityError):
                for request in requests:
                    request.wait()
                answer = np.concatenate([request.output_tensors[0].data for request in requests])
            self._idle.extend(requests)
            return answer

        return wait

    def layer_precisions(self) -> dict[str, int]:
        """How many of the layers that compute with the image run in each precision, e.g. {"i8": 101, "f32": 543}."""
        counts = self._counted("runtimePrecision")
        return {name: count for name, count in counts.items() if name not in ("dynamic", "i32", "i64")}

    def implementations(self) -> dict[str, int]:
        """How many layers each kind of code computes, e.g. {"brgconv_avx512_f32": 28, "jit_avx2_f32": 3}."""
        return {name: count for name, count in self._counted("primitiveType").items() if not name.startswith("unknown")}

    def _counted(self, fact: str) -> dict[str, int]:
        layers = self._compiled.get_runtime_model().get_ops()
        return dict(Counter(str(layer.get_rt_info()[fact].astype(str)) for layer in layers).most_common())


def _compiled(model: Path | openvino.Model, options: dict[str, str | int], cache: CompiledCache | None) -> Any:
    """A compiled model, from the cache where it holds it. What cannot be imported is compiled anew."""
    if cache is None or not isinstance(model, Path):
        return core().compile_model(model, "CPU", options)
    name = entry_name(_facts(model, options))
    kept = cache.read(name)
    if kept is not None:
        try:
            return core().import_model(load_openvino().Tensor(np.frombuffer(kept, np.uint8)), "CPU", options)
        except RuntimeError:
            pass
    compiled = core().compile_model(model, "CPU", options)
    cache.write(name, compiled.export_model().getvalue())
    return compiled


def _facts(model: Path, options: dict[str, str | int]) -> dict[str, Any]:
    """All that a compiled model of a file depends on: the network, the engine, its options and the processor."""
    files = (model, model.with_suffix(".bin"))
    return {
        "model": [hashlib.sha256(each.read_bytes()).hexdigest() for each in files],
        "openvino": load_openvino().get_version(),
        "options": options,
        "processor": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "cores": os.cpu_count(),
        "instructions": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    }


def _shape(port: Any) -> Shape:
    """The sizes that a graph declares for an input or output; None for those that it leaves open."""
    shape = port.get_partial_shape()
    return tuple(None if size.is_dynamic else size.get_length() for size in shape) if shape.rank.is_static else ()
