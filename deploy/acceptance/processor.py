"""The processor that candidates are judged on: this machine's, or as one of another class would compute.

oneDNN, which computes for OpenVINO, keeps to the instructions that ONEDNN_MAX_CPU_ISA names, where it is set before
the library is loaded. So a class is judged in a process of its own: the accuracy that its arithmetic gives, and what
it takes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SamkdError, UsageError
from ..export.base import Precision
from ..runtime.engine import Engine, Shape, open_engine


@dataclass(frozen=True)
class ProcessorClass:
    """x86 processors by the instructions they have: oneDNN's name for these, and the flags of Linux."""

    instructions: str
    flags: frozenset[str]


_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
CLASSES = {
    "avx2": ProcessorClass("AVX2", frozenset({"avx2", "fma"})),
    "avx512": ProcessorClass("AVX512_CORE", _AVX512),
    "avx512_vnni": ProcessorClass("AVX512_CORE_VNNI", _AVX512 | {"avx512_vnni"}),
    "avx512_bf16": ProcessorClass("AVX512_CORE_BF16", _AVX512 | {"avx512_vnni", "avx512_bf16"}),
    "amx": ProcessorClass("AVX512_CORE_AMX", _AVX512 | {"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}),
}
_WITHOUT_VNNI = ("avx2", "avx512")
_WITH_BF16 = ("avx512_bf16", "amx")
_CPUINFO = Path("/proc/cpuinfo")


def require_processor(name: str | None, *, target: str, precision: Precision) -> None:
    """Raises UsageError for a class that is unknown, that this machine cannot stand in for, that lacks the arithmetic
    of the precision, or whose target is not OpenVINO."""
    if name is None:
        return
    if name not in CLASSES:
        raise UsageError(f"cpu {name!r} is no class of processors; choose one of {', '.join(CLASSES)}")
    if target != "openvino":
        raise UsageError(f"cpu {name}: only the target openvino is judged for a class of processors, not {target}")
    if precision is Precision.BF16 and name not in _WITH_BF16:
        raise UsageError(f"cpu {name}: has no bfloat16; choose --precision fp32 or int8")
    missing = sorted(CLASSES[name].flags - _own_flags())
    if missing:
        raise UsageError(
            f"cpu {name}: this machine cannot stand in for it, it lacks {', '.join(missing)}; deploy on a machine that "
            "has these instructions, or leave --cpu out"
        )


def _own_flags() -> frozenset[str]:
    """The instructions of this machine by Linux's names; none where the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


class Processor:
    """The machine's own processor."""

    name: str | None = None
    vnni = True  # taken for granted: the gate judges what it computes

    def open_engine(
        self, target: str, model: Path, *, name: Path, precision: str, threads: int | None = None
    ) -> Engine:
        """As runtime.engine.open_engine, for a model that was written here."""
        return open_engine(target, model, name=name, precision=precision, threads=threads, trusted=True)

    def spent(self) -> float:
        """Seconds of the processor that judging has taken so far."""
        return time.process_time()


class LimitedProcessor(Processor):
    """One of CLASSES, whose engines compute in processes of their own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vnni = name not in _WITHOUT_VNNI
        self._in_engines = 0.0

    def open_engine(
        self, target: str, model: Path, *, name: Path, precision: str, threads: int | None = None
    ) -> Engine:
        """As runtime.engine.open_engine. Raises UsageError where OpenVINO does not keep to the class's instructions."""
        assert target == "openvino", target  # by require_processor
        job = {"model": model, "name": name, "precision": precision, "threads": threads}
        return _LimitedEngine(job, processor=str(self.name), spend=self._spend)

    def spent(self) -> float:
        return super().spent() + self._in_engines

    def _spend(self, seconds: float) -> None:
        self._in_engines += seconds


class _LimitedEngine:
    """`runtime.engine.Engine` in a process that keeps to the instructions of a class; `spend` is told its seconds."""

    def __init__(self, job: dict[str, Any], *, processor: str, spend: Callable[[float], None]) -> None:
        limited = CLASSES[processor]
        self._class, self._spend = processor, spend
        self._child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.limited_engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": limited.instructions},
        )
        weakref.finalize(self, _end, self._child)
        facts = self._ask(job)
        self.version: str = f"{facts['version']}, as on {processor}{_beyond(processor, facts['implementations'])}"
        self.precision: str = facts["precision"]
        self.threads: int = facts["threads"]
        self.input_shapes: list[Shape] = facts["input_shapes"]
        self.output_shape: Shape = facts["output_shape"]
        self._layers: dict[str, int] = facts["layer_precisions"]

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        answer, seconds = self._ask(inputs)
        self._spend(seconds)
        return answer

    def begin(self, *inputs: np.ndarray) -> Callable[[], np.ndarray]:
        answer = self(*inputs)
        return lambda: answer

    def layer_precisions(self) -> dict[str, int]:
        return self._layers

    def _ask(self, question: Any) -> Any:
        """What the process answers. Raises what it raised, and UsageError where it ended."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            pickle.dump(question, self._child.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._child.stdin.flush()
            answer = pickle.load(self._child.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._child.wait()
            raise UsageError(
                f"cpu {self._class}: OpenVINO ends here ({f'signal {-code}' if code < 0 else f'exit {code}'}) when it "
                "may use the instructions of that class alone, so this machine cannot stand in for it; deploy on a "
                "machine of that class, or leave --cpu out"
            ) from error
        if isinstance(answer, SamkdError):
            raise answer
        return answer


def _beyond(processor: str, implementations: Mapping[str, int]) -> str:
    """How many layers use more instructions than the class has; empty where none does that can be told by its name.

    OpenVINO's norms, and products by Microsoft's MLAS, look at the processor themselves.
    """
    names = ("avx512", "mlas") if processor == "avx2" else ()
    count = sum(number for kind, number in implementations.items() if any(name in kind for name in names))
    return f" but for {count} of {sum(implementations.values())} layers" if count else ""


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let the process of an engine end: it does when nothing more can be asked."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(OSError):  # it is gone already
                stream.close()
    child.wait()
