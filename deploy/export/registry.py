"""The targets by name. The module of a target is imported when it is chosen, so others' libraries may be missing."""

from __future__ import annotations

from importlib import import_module

from ...errors import UsageError
from .base import Precision, Target

TARGETS = {"openvino": "openvino:OPENVINO", "onnx": "onnx:ONNX", "tensorrt": "tensorrt:TENSORRT"}


def target_named(name: str) -> Target:
    """The target of that name. Raises UsageError for an unknown one."""
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not available; choose one of {', '.join(TARGETS)}")
    module, variable = TARGETS[name].split(":")
    return getattr(import_module(f".{module}", __package__), variable)


def require_precision(target: Target, precision: Precision) -> None:
    """Raises UsageError for a precision the target does not have."""
    if precision not in target.inference:
        choices = ", ".join(each.value for each in target.inference)
        raise UsageError(f"target {target.name} has no precision {precision.value}; choose one of {choices}")
