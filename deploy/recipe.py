"""Deployment from end to end: convert, quantize, judge through the deployed pipeline, pack."""

from __future__ import annotations

import importlib.metadata as metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from .. import __version__
from ..errors import BadInputError, GateRefusedError
from ..evaluation.overlay import colours
from ..evaluation.scores import score_case
from ..volumes.geometry import Volume
from ..volumes.nifti import read_scan, write_labels, write_scan
from ..volumes.plan import Plan, prepare
from .gate import Rows, compare, require_accuracy, require_sensible
from .openvino_target import convert, save
from .package import draft, finish
from .precision import INFERENCE, Precision
from .quantize import RUNGS, quantize
from .runtime.engine_openvino import Engine
from .runtime.integrity import FORMAT
from .runtime.package import EXPECTED, SAMPLE, Package
from .runtime.quality import intensity_profile

_PROBES = 8  # calibration patches that must be answered differently
HeldOut = Sequence[tuple[str, Volume, np.ndarray]]


def deploy_student(
    network: nn.Module,
    *,
    plan: Plan,
    dataset_labels: Mapping[int, str],
    in_channels: int,
    calibration: Sequence[np.ndarray],
    held_out: HeldOut,
    reference: Sequence[np.ndarray],
    precision: Precision | str,
    max_drop: float,
    destination: Path,
    sample: Path,
    provenance: Mapping[str, Any],
    description: Mapping[str, Any],
) -> Path:
    """Write the package of a student to `destination` (and `destination`.zip) and return that folder.

    `calibration` are prepared patches [C, *plan.patch] of training cases; `held_out` are (case name, scan, truth
    [D, H, W]) and `reference` the masks the torch network gives for them through volumes.pipeline.segment. `sample` is
    a scan that goes into the package, voxels and geometry only. `provenance` and `description` ("dataset", "text",
    "channels") are plain JSON values and stand in the manifest.

    Raises GateRefusedError when a class loses more than `max_drop` of its mean Dice or the network does not depend on
    its input, BadInputError without a held-out case, OutputError; then nothing of the new package is left.
    """
    precision = Precision(precision)
    if not held_out:
        raise BadInputError(f"{destination}: no held-out case to judge the package on. Give some cases to validation.")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "samkd": __version__,
        "name": destination.name,
        "target": "openvino",
        "precision": precision.value,
        "inference_precision": INFERENCE,
        "model": "model.xml",
        "plan": plan.to_dict(),
        "plan_digest": plan.digest(),
        "labels": _labels(dataset_labels),
        "classes": len(dataset_labels),
        "in_channels": in_channels,
        "intensities": intensity_profile((prepare(volume, plan).array for _, volume, _ in held_out), calibration),
        "provenance": dict(provenance),
        "description": dict(description),
    }
    before = _score(held_out, reference, dataset_labels)
    with draft(destination) as folder:
        refusals = []
        for quantization, model in _candidates(network, plan, in_channels, calibration, precision):
            save(model, folder / manifest["model"], half=precision is Precision.FP16)
            package = Package.of(folder, manifest)
            try:
                require_sensible(package.engine, calibration[:_PROBES], subject="the converted model")
                masks = [package.segment(volume) for _, volume, _ in held_out]
                drops = compare(before, _score(held_out, masks, dataset_labels))
                require_accuracy(drops, max_drop=max_drop)
            except GateRefusedError as refusal:
                refusals.append(f"{precision.value}{f' ({quantization})' if quantization else ''}: {refusal}")
                continue
            break
        else:
            raise GateRefusedError(f"{destination}: refused, nothing was packed.\n" + "\n".join(refusals))
        manifest |= {
            "versions": _versions(precision),
            "quantization": quantization,
            "refused_quantizations": refusals,
            "scores": {
                "max_drop": max_drop,
                "per_class": {drop.name: {k: v for k, v in asdict(drop).items() if k != "name"} for drop in drops},
            },
        }
        _write_sample(package, sample)
        finish(folder, manifest)
    return destination


def _candidates(
    network: nn.Module, plan: Plan, in_channels: int, calibration: Sequence[np.ndarray], precision: Precision
) -> Iterator[tuple[str | None, Any]]:
    """(name of the rung or None, openvino.Model), the next one only when the gate refused those before."""
    model = convert(network, patch=plan.patch, in_channels=in_channels)
    # No rung can mend a student that does not look at its input.
    require_sensible(Engine(model, precision=INFERENCE), calibration[:_PROBES], subject="the student")
    if precision is not Precision.INT8:
        yield None, model
        return
    for rung in RUNGS:
        yield rung.name, quantize(model, calibration, rung)


def _score(held_out: HeldOut, masks: Sequence[np.ndarray], labels: Mapping[int, str]) -> Rows:
    return {
        name: score_case(mask, truth, spacing=volume.geometry.spacing, labels=labels)
        for (name, volume, truth), mask in zip(held_out, masks, strict=True)
    }


def _labels(names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    assert sorted(names) == list(range(len(names))), sorted(names)
    palette = ["#000000", *colours(len(names) - 1)]
    return {
        str(value): {"name": names[value], "colour": list(bytes.fromhex(palette[value][1:]))} for value in sorted(names)
    }


def _versions(precision: Precision) -> dict[str, str]:
    names = ("numpy", "nibabel", "openvino", "torch", *(("nncf",) if precision is Precision.INT8 else ()))
    return {name: metadata.version(name) for name in names}


def _write_sample(package: Package, sample: Path) -> None:
    """The sample is written anew: a scanner's or an archive's remarks in its header do not travel with the package."""
    scan = package.folder / SAMPLE
    scan.parent.mkdir()
    write_scan(scan, read_scan(sample, channels=package.in_channels))
    volume = read_scan(scan, channels=package.in_channels)
    write_labels(package.folder / EXPECTED, package.segment(volume), volume.geometry, like=scan)
