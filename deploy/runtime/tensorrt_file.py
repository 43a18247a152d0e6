"""A serialized TensorRT engine beside a package's ONNX model: one line of what it is for, then the engine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import IntegrityError

_MARK = b"samkd tensorrt engine 1\n"
_MOST_FACTS = 4096  # bytes


@dataclass(frozen=True)
class EngineKey:
    """What an engine belongs to: a kind of GPU, its compute capability ("9.0"), and a version of TensorRT."""

    gpu: str
    capability: str
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} ({self.capability}) with TensorRT {self.tensorrt}"


def engine_path(model: Path) -> Path:
    """Where the engine of an ONNX model lies: model.onnx, model.engine."""
    return model.with_suffix(".engine")


def write_engine(path: Path, serialized: bytes, *, key: EngineKey, precision: str) -> None:
    """`precision` is the arithmetic of what is not int8: "f32" or "f16"."""
    facts = json.dumps({**asdict(key), "precision": precision}, sort_keys=True).encode()
    path.write_bytes(_MARK + facts + b"\n" + serialized)


def read_facts(path: Path) -> tuple[EngineKey, str]:
    """What an engine is for, and its precision; of the engine itself nothing is read. Raises IntegrityError."""
    with path.open("rb") as file:
        mark, line = file.read(len(_MARK)), file.readline(_MOST_FACTS)
    try:
        facts = json.loads(line)
        precision = facts.pop("precision")
        key = EngineKey(**facts)
        if mark == _MARK and all(isinstance(each, str) for each in (precision, *asdict(key).values())):
            return key, precision
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise IntegrityError(f"{path}: is no engine of samkd. Copy the package again.")


def read_serialized(path: Path) -> bytes:
    """The engine alone."""
    with path.open("rb") as file:
        file.read(len(_MARK))
        file.readline(_MOST_FACTS)
        return file.read()
