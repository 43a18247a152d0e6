"""What a target is: a way to write a student for one engine, rung by rung. Each is imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError
from .precision import Precision

if TYPE_CHECKING:
    from torch import nn

TARGETS = ("openvino", "onnx", "tensorrt")


@dataclass(frozen=True)
class Rung:
    """One conversion. `write` puts the model's files into a package folder; `weakest` names the layers that lost most
    for a patch [C, *patch], worst first, where the target can tell."""

    precision: Precision
    write: Callable[[Path], None]
    quantization: str | None = None
    weakest: Callable[[np.ndarray], list[str]] | None = None


@dataclass(frozen=True)
class Order:
    """What is to be converted: a network for `patch` (D, H, W), and prepared patches [C, *patch] to calibrate int8.

    With `prompts` the network becomes two graphs, and the device's user may click.
    """

    network: nn.Module
    patch: tuple[int, int, int]
    in_channels: int
    calibration: Sequence[np.ndarray]
    precision: Precision
    prompts: bool = False


@dataclass(frozen=True)
class Target:
    """`inference` is the arithmetic of the engine by precision; `libraries` is what the device installs for it.

    `rungs` gives float32 first, then one or more ways to the precision wanted, each giving up less than the one before.
    """

    name: str
    model: str  # the file the engine opens
    libraries: tuple[str, ...]
    tools: tuple[str, ...]  # what converted and quantized it, for the manifest
    inference: Mapping[Precision, str]
    rungs: Callable[[Order], Iterator[Rung]]
    judged_as: str | None = None  # the target whose engine judges on a machine where this one's does not work
    works: Callable[[], bool] = lambda: True  # whether its engine does
    installed_as: Mapping[str, str] = field(default_factory=dict)  # other names of `libraries` on the device

    @property
    def decoder(self) -> str:
        """The file of a promptable package's second graph."""
        return self.model.replace("model.", "model.decoder.")


def target_named(name: str) -> Target:
    """Raises UsageError for an unknown target, MissingExtraError when its libraries are not installed."""
    if name == "openvino":
        from .openvino import OPENVINO

        return OPENVINO
    if name == "onnx":
        from .onnx import ONNX

        return ONNX
    if name == "tensorrt":
        from .tensorrt import TENSORRT

        return TENSORRT
    raise UsageError(f"target {name!r} is not available; choose one of {', '.join(TARGETS)}")


def require_precision(target: Target, precision: Precision) -> None:
    """Raises UsageError for a precision the target does not have."""
    if precision not in target.inference:
        known = ", ".join(each.value for each in target.inference)
        raise UsageError(f"target {target.name} has no precision {precision.value}; choose one of {known}")
