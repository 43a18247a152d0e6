"""samkd deploy: a student's run, packed for a device."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configs.schema import Config
from ..deploy.acceptance.candidates import AcceptanceCriteria, Prompted, ValidationCase
from ..deploy.acceptance.geometries import Triple
from ..deploy.acceptance.processor import require_processor
from ..deploy.export.base import Precision
from ..deploy.export.registry import require_precision, target_named
from ..deploy.package.destination import require_replaceable
from ..deploy.package.signing import Signer
from ..deploy.pipeline import PackageRequest, TrainedStudent, deploy_student, require_geometry, require_temperature
from ..deploy.runtime.manifest import Description
from ..distill.networks import load_network
from ..errors import BadInputError
from ..students import student_from_spec
from ..students.small_sam.model import SmallSAM
from ..training.checkpoint import load_weights
from ..training.patches import PatchBatches
from ..training.predictor import make_predictor
from ..training.prepared import prepare_case
from ..training.progress import Bar
from ..training.prompt_sampling import kinds_in_training, prompts_from_truth
from ..training.run import CACHE, Run
from ..training.split import DataSplit
from ..volumes.datasets.registry import read_labelled_case
from ..volumes.files import temporary_folder
from ..volumes.io.scans import as_nifti
from ..volumes.pipeline import segment
from ..volumes.plan import slice_axis
from .data import config_for, open_dataset


def deploy(
    run: Run,
    *,
    target: str,
    data: Path | None,
    out: Path | None,
    runs: Path,
    overrides: list[str],
    sign: Path | None = None,
) -> Path:
    """Pack a run for a device and return the package folder; it is judged on the run's validation cases.

    Raises UsageError for an unknown target or precision, BadInputError for a key that cannot sign, OutputError when
    something else than a package lies where this one goes, and GateRefusedError when the converted model lost too much.
    """
    config = config_for(None, run, overrides)
    settings = config.deployment
    name = f"{run.path.name.removeprefix('distill-')}-{target}-{settings.cpu or settings.precision}"
    destination = out or runs / "packages" / name
    _refuse_early(target, settings.precision, sign, destination)
    require_processor(settings.cpu, target=target, precision=Precision(settings.precision))

    dataset = open_dataset(config, data or Path(run.config.data), runs=runs)
    split = DataSplit.of(dataset, validation=config.validation, seed=config.seed)
    if not split.validation:
        raise BadInputError(
            f"{run.path}: trained without validation cases, by which the package would be judged; train with "
            "`--set validation=0.1`"
        )
    network = load_network(run)
    prompt_kinds = _prompt_kinds(run, network)
    require_geometry(settings.geometry, prompt_kinds=prompt_kinds)
    require_temperature(settings.temperature, prompts_required=_prompts_required(network))
    student = TrainedStudent(
        network=network,
        plan=run.plan,
        class_names=run.class_names,
        in_channels=len(run.config.channels),
        calibration=_calibration(run, split, config, cache=runs / CACHE, patch=run.plan.patch),
        resized=_resized(run, network, split, config, cache=runs / CACHE),
        prompt_kinds=prompt_kinds,
        prompts_required=_prompts_required(network),
        intensities=run.intensities(),
        provenance=_provenance(run, config),
        description=Description(dataset.name, config.description, tuple(dataset.channels)),
    )
    criteria = _criteria(run, network, split, config, prompt_kinds=prompt_kinds)
    with temporary_folder() as scratch:
        request = PackageRequest(
            destination=destination,
            target=target,
            precision=settings.precision,
            geometry=settings.geometry,
            cpu=settings.cpu,
            temperature=settings.temperature,
            sample=as_nifti(split.validation[0].image, Path(scratch), channels=len(dataset.channels)),
            sign=sign,
        )
        return deploy_student(student, criteria, request)


def _refuse_early(target: str, precision: str, sign: Path | None, destination: Path) -> None:
    """Raise what is wrong with the options, or in the package's way, before the long pass through torch."""
    if sign is not None:
        Signer.of(sign)
    require_precision(target_named(target), Precision(precision))
    require_replaceable(destination)


def _resized(
    run: Run, network: torch.nn.Module, split: DataSplit, config: Config, *, cache: Path
) -> Callable[[Triple], tuple[torch.nn.Module, list[np.ndarray]]] | None:
    """What gives a run's network for patches of another size, with its weights, and calibration patches of that size;
    None for networks whose weights belong to one size of patch.
    """
    if not getattr(network, "takes_any_patch", False):
        return None

    def resized(patch: Triple) -> tuple[torch.nn.Module, list[np.ndarray]]:
        other = student_from_spec(replace(run.config.network, patch=patch))
        load_weights(other, run.weights)
        return other.eval(), _calibration(run, split, config, cache=cache, patch=patch)

    return resized


def _calibration(run: Run, split: DataSplit, config: Config, *, cache: Path, patch: Triple) -> list[np.ndarray]:
    """Unchanged patches [C, *patch] of training cases, as many as the config says."""
    count = config.deployment.calibration
    cases = [prepare_case(case, split.dataset, run.plan, cache) for case in split.train[:count]]
    return PatchBatches.plain(cases, patch=patch, count=count, seed=config.seed)


def _prompt_kinds(run: Run, network: torch.nn.Module) -> tuple[str, ...]:
    """The kinds of prompts (volumes.prompts.KINDS) that the package takes: those the student was trained with, all
    those of a published model.
    """
    if _prompts_required(network):
        return tuple(sorted(network.prompt_kinds))  # pyright: ignore[reportArgumentType]
    return tuple(sorted(kinds_in_training(run.config.objective.prompts))) if isinstance(network, SmallSAM) else ()


def _prompts_required(network: torch.nn.Module) -> bool:
    return bool(getattr(network, "prompts_required", False))


def _criteria(
    run: Run, network: torch.nn.Module, split: DataSplit, config: Config, *, prompt_kinds: tuple[str, ...]
) -> AcceptanceCriteria:
    """The validation scans with the masks that the torch network gives for them, and what a conversion may lose.

    A student that takes prompts is judged once more with one prompt per class of every scan, drawn from its truth; one
    that requires them only with those, a box on every slice.
    """
    if _prompts_required(network):
        return _prompted_criteria(run, network, split, config)
    kind = "box" if "box" in prompt_kinds else "point"
    infer = make_predictor(network)
    plan, num_classes = run.plan, len(run.class_names)
    cases, prompts, prompted_masks = [], [], []
    with Bar("validation scans, torch", len(split.validation)) as bar:
        for case in split.validation:
            volume, truth = read_labelled_case(case, split.dataset)
            cases.append(
                ValidationCase(case.name, volume, truth, segment(volume, plan, infer, num_classes=num_classes))
            )
            if prompt_kinds:
                grid = volume.geometry
                prompts.append(
                    prompts_from_truth(kind, truth, labels=run.class_names, spacing=grid.spacing, frames=grid.frames)
                )
                prompted_masks.append(segment(volume, plan, infer, num_classes=num_classes, prompts=prompts[-1]))
            bar.advance(case.name)
    return AcceptanceCriteria(
        validation=cases,
        max_drop=config.deployment.max_drop,
        per_class=config.deployment.per_class,
        prompted=Prompted(kind, prompts, prompted_masks) if prompt_kinds else None,
    )


def _prompted_criteria(run: Run, network: torch.nn.Module, split: DataSplit, config: Config) -> AcceptanceCriteria:
    """The validation scans of a network that finds nothing without prompts, each with a box on every slice."""
    infer, cases = make_predictor(network), []
    with Bar("validation scans, torch", len(split.validation)) as bar:
        for case in split.validation:
            volume, truth = read_labelled_case(case, split.dataset)
            axis, spacing = slice_axis(run.plan, volume.geometry), volume.geometry.spacing
            prompts = prompts_from_truth("boxes", truth, labels=run.class_names, spacing=spacing, axis=axis)
            mask = segment(volume, run.plan, infer, num_classes=len(run.class_names), prompts=prompts)
            cases.append(ValidationCase(case.name, volume, truth, mask, prompts))
            bar.advance(case.name)
    settings = config.deployment
    return AcceptanceCriteria(validation=cases, max_drop=settings.max_drop, per_class=settings.per_class)


def _provenance(run: Run, config: Config) -> dict[str, Any]:
    """Where the package comes from, as its manifest keeps it."""
    test = run.metrics().test
    return {
        "run": run.path.name,
        "stage": run.stage,
        "recipe": config.name,
        "network": run.config.network.name,
        "objective": run.config.objective.to_dict(),
        "test": test and asdict(test.summary),
    }
