"""What an engine is, and the one that a package names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...errors import IntegrityError

if TYPE_CHECKING:
    from .compiled_cache import CompiledCache

Shape = tuple[int | None, ...]


class Engine(Protocol):
    """A graph: calling it turns its inputs, float32 [N, ...] for N patches, into its one output, float32 [N, ...]: for
    a whole student, patches [N, C, *patch] into class probabilities [N, K, *patch].

    `precision` is the arithmetic it computes in ("f32", "bf16"), `layer_precisions` how many layers run in
    each precision, where the engine says. `input_shapes` and `output_shape` are what the graph itself declares, None
    for a size that it leaves open.
    """

    version: str
    precision: str
    threads: int
    input_shapes: list[Shape]
    output_shape: Shape

    def __call__(self, *inputs: np.ndarray) -> np.ndarray: ...

    def begin(self, *inputs: np.ndarray) -> Callable[[], np.ndarray]:
        """Start inferring; the function returned waits for the answer and must be called once."""
        ...

    def layer_precisions(self) -> dict[str, int]: ...


def open_engine(
    target: str,
    model: Path,
    *,
    name: Path,
    precision: str,
    threads: int | None = None,
    cache: CompiledCache | None = None,
    trusted: bool = False,
) -> Engine:
    """The engine of a target with a model file, which messages call `name`. OpenVINO keeps what it compiled in `cache`;
    code that a package carries runs only if it is `trusted`.

    Raises IntegrityError for a target that this runtime does not know, and what the engines raise.
    """
    if target == "openvino":
        from .engine_openvino import Engine as OpenVINO

        return OpenVINO(model, name=name, precision=precision, threads=threads, cache=cache)
    if target == "onnx":
        from .engine_onnx import Engine as OnnxRuntime

        return OnnxRuntime(model, name=name, precision=precision, threads=threads)
    if target == "tensorrt":
        from .engine_tensorrt import tensorrt_engine

        return tensorrt_engine(model, name=name, precision=precision, threads=threads, trusted=trusted)
    raise IntegrityError(f"{name.parent}: is for the target {target!r}; this runtime does not know it.")
