"""Deployment from end to end: convert a student for a target, judge each candidate as it will run, pack the last."""

from __future__ import annotations

import importlib.metadata as metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..errors import BadInputError, GateRefusedError
from ..evaluation.overlay import colours
from ..students.small_sam.model import MAX_POINTS
from ..volumes.io.nifti import read_scan, write_labels, write_scan
from ..volumes.plan import Plan, prepare
from .acceptance.candidates import AcceptanceTest, HeldOut, Prompted, select_candidate
from .acceptance.gate import require_calibration, require_sensible
from .export.base import Candidate, ExportRequest, Precision, Target
from .export.graphs import Probabilities
from .export.registry import require_precision, target_named
from .package.sbom import distribution
from .package.signing import Signer
from .package.writer import draft, finish
from .runtime.integrity import FORMAT
from .runtime.package import EXPECTED, SAMPLE, Package
from .runtime.quality import intensity_profile

_PROBES = 8  # calibration patches that must be answered differently


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
    target: str = "openvino",
    per_class: bool = True,
    sign: Path | None = None,
    takes: Sequence[str] = (),
    prompted: Prompted | None = None,
) -> Path:
    """Write the package of a student to `destination` (and `destination`.zip) and return that folder.

    `calibration` are prepared patches [C, *plan.patch] of training cases; `held_out` are (case name, scan, truth
    [D, H, W]) and `reference` the masks the torch network gives for them through volumes.pipeline.segment. `sample` is
    a scan that goes into the package, voxels and geometry only. `provenance` and `description` ("dataset", "text",
    "channels") are plain JSON values and stand in the manifest. `sign` is a PEM file with an ed25519 private key.

    A student that `takes` prompts (of volumes.prompts.KINDS) is packed as an encoder and a decoder, and judged once
    more with what it was `prompted` with.

    Raises GateRefusedError when a class (without `per_class`: the mean of all) loses more than `max_drop` of its mean
    Dice, the network does not depend on its input, or the calibration shows nothing; BadInputError without a held-out
    case, UsageError for a precision that `target` does not have, OutputError; then nothing of the new package is left.
    """
    made_by, precision = target_named(target), Precision(precision)
    signer = Signer.of(sign) if sign else None
    require_precision(made_by, precision)
    if not held_out:
        raise BadInputError(f"{destination}: no held-out case to judge the package on. Give some cases to validation.")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "samkd": __version__,
        "name": destination.name,
        "target": target if made_by.works() else made_by.stand_in,
        "model": made_by.model,
        "plan": plan.to_dict(),
        "plan_digest": plan.digest(),
        "labels": _labels(dataset_labels),
        "classes": len(dataset_labels),
        "in_channels": in_channels,
        **({"prompts": {"kinds": sorted(takes), "decoder": made_by.decoder, "points": MAX_POINTS}} if takes else {}),
        "intensities": intensity_profile((prepare(volume, plan).array for _, volume, _ in held_out), calibration),
        "provenance": dict(provenance),
        "description": dict(description),
    }

    def describe(candidate: Candidate) -> dict[str, Any]:
        return {
            **manifest,
            "precision": candidate.precision.value,
            "inference_precision": made_by.inference[candidate.precision],
            "quantization": candidate.quantization,
        }

    try:
        require_calibration(calibration)
        probes = calibration[:_PROBES]
        # No conversion can mend a student that does not look at its input.
        probabilities = require_sensible(_with_torch(network), probes, subject="the student")
        test = AcceptanceTest(
            held_out,
            reference,
            labels=dataset_labels,
            probes=probes,
            probabilities=probabilities,
            max_drop=max_drop,
            per_class=per_class,
            prompted=prompted,
        )
        candidates = made_by.candidates(
            ExportRequest(network, plan.patch, in_channels, calibration, precision, bool(takes))
        )
        with draft(destination) as folder:
            package, results = select_candidate(candidates, test, folder, describe=describe)
            sealed = {
                **package.manifest,
                "target": target,
                "judged_on": package.engine.version,
                "versions": _versions(made_by),
                "ladder": [result.to_dict() for result in results],
                "scores": {
                    "max_drop": max_drop,
                    "per_class": {
                        drop.name: {key: value for key, value in asdict(drop).items() if key != "name"}
                        for drop in results[-1].drops
                    },
                },
            }
            _write_sample(package, sample)
            finish(folder, sealed, libraries=made_by.libraries, renamed=made_by.device_names, signer=signer)
    except GateRefusedError as refusal:
        raise GateRefusedError(f"{destination}: refused, nothing was packed.\n{refusal}") from None
    return destination


def _with_torch(network: nn.Module):
    made = Probabilities(network)

    def infer(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return made(torch.from_numpy(np.ascontiguousarray(patches, np.float32))).numpy()

    return infer


def _labels(names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    assert sorted(names) == list(range(len(names))), sorted(names)
    palette = ["#000000", *colours(len(names) - 1)]
    return {
        str(value): {"name": names[value], "colour": list(bytes.fromhex(palette[value][1:]))} for value in sorted(names)
    }


def _versions(target: Target) -> dict[str, str]:
    return {name: metadata.version(distribution(name)) for name in dict.fromkeys((*target.libraries, *target.tools))}


def _write_sample(package: Package, sample: Path) -> None:
    """The sample is written anew: a scanner's or an archive's remarks in its header do not travel with the package."""
    scan = package.folder / SAMPLE
    scan.parent.mkdir()
    write_scan(scan, read_scan(sample, channels=package.in_channels))
    volume = read_scan(scan, channels=package.in_channels)
    write_labels(package.folder / EXPECTED, package.segment(volume), volume.geometry, like=scan)
