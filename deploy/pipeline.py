"""Deployment from end to end: convert a student for a target, judge each candidate as it will run, pack the last."""

from __future__ import annotations

import importlib.metadata as metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..errors import BadInputError, GateRefusedError, UsageError
from ..evaluation.calibration import temperature_of
from ..evaluation.overlay import colours
from ..students.small_sam.model import MAX_POINTS
from ..training.predictor import make_predictor
from ..volumes.intensity_profile import intensity_profile
from ..volumes.io.nifti import read_scan, write_labels, write_scan
from ..volumes.plan import Plan
from ..volumes.preprocess import preprocess
from .acceptance.candidates import AcceptanceCriteria, AcceptanceTest, Selection, select_candidate
from .acceptance.gate import require_calibration, require_sensible, shown_the_middle
from .acceptance.geometries import SIDE, InferenceGeometry, ScanShape, Triple, cheaper_geometries, select_geometry
from .acceptance.processor import LimitedProcessor, Processor, require_processor
from .export.base import Candidate, ExportRequest, Precision, Target
from .export.graphs import Probabilities
from .export.registry import require_precision, target_named
from .package.sbom import distribution
from .package.signing import Signer
from .package.writer import draft, finish
from .runtime.judgement import CandidateResult, Gate, accepted
from .runtime.manifest import ClassEntry, Description, Manifest, PromptSupport
from .runtime.manifest_rules import EXPECTED, SAMPLE
from .runtime.package import Package
from .runtime.verify import sample_prompts

_PROBES = 8  # calibration patches that must be answered differently


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """What is deployed: a network and what belongs to it.

    `calibration` are prepared patches [C, *plan.patch] of training cases. A student with `prompt_kinds` (of
    volumes.prompts.KINDS) is packed as an encoder and a decoder; with `prompts_required` it finds nothing but what a
    prompt shows. `resized` gives the same network for patches of another size (D, H, W), and calibration patches of
    that size; a network whose weights know one size only has none. `intensities` are a volumes.intensity_profile, empty
    where none was kept. `provenance` is plain JSON and stands in the manifest.
    """

    network: nn.Module
    plan: Plan
    class_names: Mapping[int, str]
    in_channels: int
    calibration: Sequence[np.ndarray]
    resized: Callable[[Triple], tuple[nn.Module, Sequence[np.ndarray]]] | None = None
    prompt_kinds: Sequence[str] = ()
    prompts_required: bool = False
    intensities: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any]
    description: Description


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """Where the package goes and what it is for.

    The package is the folder `destination`, and `destination`.zip. `geometry` is "training" for the patches and the
    overlap of the student's plan, or "fastest" for the fastest that the criteria allow. `cpu` is a class of processors
    (acceptance.processor.CLASSES) on whose arithmetic and speed is judged; a precision that is not faster there than
    float32 is not packed. `sample` is a scan that goes
    into it, voxels and geometry only. With `temperature` one that is fitted to the validation cases scales the
    probabilities that the package gives away. `sign` is a PEM file with an ed25519 private key.
    """

    destination: Path
    target: str = "openvino"
    precision: Precision | str
    geometry: str = "training"
    cpu: str | None = None
    sample: Path
    temperature: bool = False
    sign: Path | None = None


def deploy_student(student: TrainedStudent, criteria: AcceptanceCriteria, request: PackageRequest) -> Path:
    """Write the package of a student that meets the criteria, and return its folder.

    Raises GateRefusedError when a conversion loses more than the criteria allow, the network does not depend on its
    input, or the calibration shows nothing; BadInputError without a validation case; UsageError for a precision that
    the target does not have; OutputError. Then nothing of the new package is left.
    """
    target, precision = target_named(request.target), Precision(request.precision)
    require_precision(target, precision)
    require_geometry(request.geometry, prompt_kinds=student.prompt_kinds)
    require_temperature(request.temperature, prompts_required=student.prompts_required)
    require_processor(request.cpu, target=target.name, precision=precision)
    signer = Signer.of(request.sign) if request.sign else None
    destination = request.destination
    if not criteria.validation:
        raise BadInputError(f"{destination}: no validation case to judge the package on. Give it some cases.")
    names = [case.name for case in criteria.validation]
    numbered = [replace(case, name=str(number)) for number, case in enumerate(criteria.validation, start=1)]
    processor = LimitedProcessor(request.cpu) if request.cpu else Processor()
    criteria = replace(criteria, validation=numbered)  # a hospital's file names do not travel with the package
    try:
        test = _acceptance_test(student, criteria, processor)
        describe = partial(_describe, _manifest(student, criteria, target=target, name=destination.name), target)
        candidates = target.candidates(_export_request(student, precision, processor))
        with draft(destination) as folder:
            selection = select_candidate(candidates, test, folder, describe=describe, faster=request.cpu is not None)
            if request.geometry == "fastest":
                selection = _fastest_geometry(selection, student, criteria, folder, target=target, on=processor)
            _write_sample(selection.package, request.sample)
            timed = request.geometry == "fastest" or request.cpu is not None
            manifest = replace(_with_scores(selection, criteria, target, timed=timed), processor=request.cpu)
            if request.temperature:
                scans = ((case.volume, case.truth) for case in criteria.validation)
                manifest = replace(manifest, temperature=temperature_of(selection.package, scans))
            finish(
                folder,
                manifest,
                libraries=target.libraries,
                device_names=target.device_names,
                signer=signer,
            )
    except GateRefusedError as refusal:
        told = re.sub(r"in case (\d+)", lambda match: f"in case {names[int(match[1]) - 1]}", str(refusal))
        raise GateRefusedError(f"{destination}: refused, nothing was packed.\n{told}") from None
    return destination


def require_geometry(geometry: str, *, prompt_kinds: Sequence[str]) -> None:
    """Raises UsageError for a student that takes prompts and another geometry than the training's."""
    if geometry != "training" and prompt_kinds:
        raise UsageError(
            f"geometry {geometry}: this student takes prompts, which lie in the patches it was trained with; leave "
            "--geometry out"
        )


def require_temperature(temperature: bool, *, prompts_required: bool) -> None:
    """Raises UsageError for the temperature of a network that finds nothing without prompts."""
    if temperature and prompts_required:
        raise UsageError("temperature: this network finds nothing without prompts, by which one could be fitted")


def _fastest_geometry(
    trained: Selection,
    student: TrainedStudent,
    criteria: AcceptanceCriteria,
    folder: Path,
    *,
    target: Target,
    on: Processor,
) -> Selection:
    """The selection with the fastest patches and overlap that the criteria allow, its model in `folder`."""
    scans = [ScanShape.of(preprocess(case.volume, student.plan).array) for case in criteria.validation]
    packed = accepted(trained.results)
    students: dict[Triple, TrainedStudent] = {student.plan.patch: student}
    conversions: dict[Triple, Candidate] = {}

    def trial(geometry: InferenceGeometry, scratch: Path) -> Selection:
        patch = geometry.patch
        if patch not in students and student.resized is not None:
            network, calibration = student.resized(patch)
            students[patch] = replace(student, network=network, calibration=calibration)
        other = replace(students[patch], plan=geometry.in_plan(student.plan))
        if patch not in conversions:
            conversions[patch] = _same_conversion(target, other, packed, on)
        manifest = replace(trained.package.manifest, plan=other.plan)
        describe = partial(_describe, manifest, target)
        return select_candidate([conversions[patch]], _acceptance_test(other, criteria, on), scratch, describe=describe)

    side = getattr(student.network, "patch_divisor", SIDE)
    geometries = cheaper_geometries(student.plan, scans, fixed_patch=student.resized is None, side=side)
    return select_geometry(trained, geometries, folder, scans=scans, trial=trial)


def _same_conversion(target: Target, student: TrainedStudent, packed: CandidateResult, on: Processor) -> Candidate:
    """The conversion of a student that is of the precision and quantization of the packed one."""
    wanted = (packed.precision, packed.quantization)
    request = replace(_export_request(student, Precision(packed.precision), on), quantization=packed.quantization)
    candidates = target.candidates(request)
    return next(each for each in candidates if (each.precision.value, each.quantization) == wanted)


def _acceptance_test(student: TrainedStudent, criteria: AcceptanceCriteria, processor: Processor) -> AcceptanceTest:
    """The test for a student's conversions, which compute on `processor`.

    Raises GateRefusedError for a student that no conversion can mend.
    """
    require_calibration(student.calibration)
    probes = student.calibration[:_PROBES]
    infer = _with_torch(student.network)
    if student.prompts_required:
        infer = shown_the_middle(make_predictor(student.network), classes=len(student.class_names))
    probabilities = require_sensible(infer, probes, subject="the student")
    return AcceptanceTest(
        criteria, class_names=student.class_names, probes=probes, probabilities=probabilities, processor=processor
    )


def _with_torch(network: nn.Module):
    module = Probabilities(network)

    def infer(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(patches, np.float32))).numpy()

    return infer


def _export_request(student: TrainedStudent, precision: Precision, processor: Processor) -> ExportRequest:
    return ExportRequest(
        network=student.network,
        patch=student.plan.patch,
        in_channels=student.in_channels,
        calibration=student.calibration,
        precision=precision,
        vnni=processor.vnni,
        points=0 if not student.prompt_kinds else 1 if student.prompts_required else MAX_POINTS,
    )


def _manifest(student: TrainedStudent, criteria: AcceptanceCriteria, *, target: Target, name: str) -> Manifest:
    """What is known of the package before anything is converted; the precision is that of the float32 candidate."""
    return Manifest(
        samkd=__version__,
        name=name,
        target=target.name if target.works() else target.stand_in or target.name,
        model=target.model,
        plan=student.plan,
        classes=_classes(student.class_names),
        in_channels=student.in_channels,
        precision=Precision.FP32.value,
        inference_precision=target.inference[Precision.FP32],
        prompts=_prompt_support(student, target),
        intensities=tuple(student.intensities or _profile(student, criteria)),
        provenance=student.provenance,
        description=student.description,
    )


def _profile(student: TrainedStudent, criteria: AcceptanceCriteria) -> list[dict[str, Any]]:
    """The intensities of the validation scans and of the calibration patches, for a run that kept no profile."""
    scans = (preprocess(case.volume, student.plan).array for case in criteria.validation)
    return intensity_profile(scans, student.calibration)


def _prompt_support(student: TrainedStudent, target: Target) -> PromptSupport | None:
    if not student.prompt_kinds:
        return None
    points = 1 if student.prompts_required else MAX_POINTS
    return PromptSupport(frozenset(student.prompt_kinds), target.decoder, points, required=student.prompts_required)


def _classes(names: Mapping[int, str]) -> dict[int, ClassEntry]:
    assert sorted(names) == list(range(len(names))), sorted(names)
    palette = ["#000000", *colours(len(names) - 1)]
    return {value: ClassEntry(names[value], tuple(bytes.fromhex(palette[value][1:]))) for value in sorted(names)}


def _describe(manifest: Manifest, target: Target, candidate: Candidate) -> Manifest:
    return replace(
        manifest,
        precision=candidate.precision.value,
        inference_precision=target.inference[candidate.precision],
        quantization=candidate.quantization,
    )


def _with_scores(selection: Selection, criteria: AcceptanceCriteria, target: Target, *, timed: bool) -> Manifest:
    """The manifest of the accepted package with what was judged, by which engine, and what every candidate did.

    Only a `timed` one keeps seconds: any other is the same, byte for byte, when it is made again.
    """
    results = [each if timed else replace(each, cpu_seconds=None) for each in selection.results]
    libraries = dict.fromkeys((*target.libraries, *target.tools))
    return replace(
        selection.package.manifest,
        target=target.name,
        judged_on=selection.package.engine.version,
        versions={name: metadata.version(distribution(name)) for name in libraries},
        candidates=tuple(results),
        geometries=tuple(selection.geometries),
        gate=Gate(criteria.max_drop, criteria.per_class),
        scores=tuple(selection.drops),
    )


def _write_sample(package: Package, sample: Path) -> None:
    """The sample is written anew: a scanner's or an archive's remarks in its header do not travel with the package."""
    scan = package.folder / SAMPLE
    scan.parent.mkdir()
    write_scan(scan, read_scan(sample, channels=package.in_channels))
    volume = read_scan(scan, channels=package.in_channels)
    labels = package.segment(volume, prompts=sample_prompts(package, volume))
    write_labels(package.folder / EXPECTED, labels, volume.geometry, like=scan)
