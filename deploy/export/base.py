"""What every target shares: the precisions, what is to be exported, one conversion of it, and the target itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn


class Precision(StrEnum):
    """How weights are stored and what computes with them. Everything not named is computed in float32."""

    FP32 = "fp32"  # nothing is lost
    FP16 = "fp16"  # half the file. Only storage: on the CPU the weights are widened again, so it is not faster
    BF16 = "bf16"  # half the file; convolutions and products in bfloat16 (8 bits), only on CPUs that have it
    INT8 = "int8"  # a quarter of the file; convolutions and matrix products in int8, faster where the CPU has VNNI


@dataclass(frozen=True)
class ExportRequest:
    """What is to be converted: a network for `patch` (D, H, W), and prepared patches [C, *patch] to calibrate int8.

    With `points` the network becomes two graphs, and the device's user may click: so often in a class of a patch, and
    give a box. With `quantization` the name of one scheme, int8 is made by that one alone. Processors without `vnni`
    add int8 products in 16 bits, where full-range weights overflow.
    """

    network: nn.Module
    patch: tuple[int, int, int]
    in_channels: int
    calibration: Sequence[np.ndarray]
    precision: Precision
    points: int = 0
    quantization: str | None = None
    vnni: bool = True


@dataclass(frozen=True)
class Candidate:
    """One conversion, to be accepted or refused. `write` puts the model's files into a package folder; `weakest` names
    the layers that lost most for a patch [C, *patch], worst first, where the target can tell."""

    precision: Precision
    write: Callable[[Path], None]
    quantization: str | None = None
    weakest: Callable[[np.ndarray], list[str]] | None = None


@dataclass(frozen=True)
class Target:
    """A way to write a student for one engine.

    `inference` is the arithmetic of the engine by precision; `libraries` is what the device installs for it.
    `candidates` gives float32 first, then one or more conversions to the precision of the request, each giving up less
    than the one before.
    """

    name: str
    model: str  # the file the engine opens
    libraries: tuple[str, ...]
    tools: tuple[str, ...]  # what converted and quantized it, for the manifest
    inference: Mapping[Precision, str]
    candidates: Callable[[ExportRequest], Iterator[Candidate]]
    stand_in: str | None = None  # the target whose engine judges on a machine where this one's does not work
    works: Callable[[], bool] = lambda: True  # whether its engine does
    device_names: Mapping[str, str] = field(default_factory=dict)  # other names of `libraries` on the device

    @property
    def decoder(self) -> str:
        """The file of a promptable package's second graph."""
        return self.model.replace("model.", "model.decoder.")
