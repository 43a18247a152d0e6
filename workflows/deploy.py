"""samkd deploy: a student's run, packed for a device."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configs.schema import Recipe
from ..deploy.acceptance.candidates import Prompted
from ..deploy.export.precision import Precision
from ..deploy.export.registry import require_precision, target_named
from ..deploy.package.signing import Signer
from ..deploy.pipeline import deploy_student
from ..distill.networks import load_network
from ..students.small_sam.model import SmallSAM
from ..training.patches import PatchBatches
from ..training.predictor import patch_function
from ..training.prepared import prepare_case
from ..training.progress import Bar
from ..training.prompt_sampling import prompts_from_truth
from ..training.run import Run
from ..training.trainer import Cohort
from ..volumes.datasets.registry import Dataset, read_labelled_case
from ..volumes.geometry import Volume
from ..volumes.io.scans import as_nifti
from ..volumes.pipeline import segment
from ..volumes.prompts import ScanPrompts
from .data import open_dataset, recipe_for

# The prompts that a packed student takes, by the kind of prompts it was trained with (configs.schema.PromptTraining).
PACKED_PROMPT_KINDS = {"point": ("point",), "points": ("point", "outside point"), "box": ("box",)}


@dataclass
class References:
    """The validation scans with their truth, and the masks [D, H, W] that the torch network gives for them.

    For a student that takes prompts also one prompt per class of every scan, and the masks that come of them.
    """

    held_out: list[tuple[str, Volume, np.ndarray]] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    prompts: list[ScanPrompts] = field(default_factory=list)
    prompted_masks: list[np.ndarray] = field(default_factory=list)


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

    Raises UsageError for an unknown target or precision, BadInputError for a key that cannot sign, and GateRefusedError
    when the converted model lost too much.
    """
    recipe = recipe_for(None, run, overrides)
    settings = recipe.deployment
    _refuse_early(target, settings.precision, sign)

    dataset = open_dataset(recipe, data or Path(run.config["data"]), runs=runs)
    cohort = Cohort.of(dataset, validation=recipe.validation, seed=recipe.seed)
    network = load_network(run)
    calibration = _calibration(run, cohort, recipe, cache=runs / "cache")
    prompt_kinds = _prompt_kinds(run, network)
    prompt_kind = "box" if "box" in prompt_kinds else "point" if prompt_kinds else None
    references = _segment_validation(run, network, cohort, prompt_kind=prompt_kind)

    name = f"{run.path.name.removeprefix('distill-')}-{target}-{settings.precision}"
    with tempfile.TemporaryDirectory() as scratch:
        return deploy_student(
            network,
            plan=run.plan,
            dataset_labels=run.labels,
            in_channels=len(run.config["channels"]),
            calibration=calibration,
            held_out=references.held_out,
            reference=references.masks,
            precision=settings.precision,
            max_drop=settings.max_drop,
            destination=out or runs / "packages" / name,
            target=target,
            per_class=settings.per_class,
            sign=sign,
            takes=prompt_kinds,
            prompted=Prompted(prompt_kind, references.prompts, references.prompted_masks) if prompt_kind else None,
            sample=as_nifti(cohort.validation[0].image, Path(scratch), channels=len(dataset.channels)),
            provenance=_provenance(run, recipe),
            description=_description(dataset, recipe),
        )


def _refuse_early(target: str, precision: str, sign: Path | None) -> None:
    """Raise what is wrong with the options before the long pass through torch."""
    if sign is not None:
        Signer.of(sign)
    require_precision(target_named(target), Precision(precision))


def _calibration(run: Run, cohort: Cohort, recipe: Recipe, *, cache: Path) -> list[np.ndarray]:
    """Unchanged patches [C, *patch] of training cases, as many as the recipe says."""
    count = recipe.deployment.calibration
    cases = [prepare_case(case, cohort.dataset, run.plan, cache) for case in cohort.train[:count]]
    return PatchBatches.plain(cases, patch=run.plan.patch, count=count, seed=recipe.seed)


def _prompt_kinds(run: Run, network: torch.nn.Module) -> tuple[str, ...]:
    """The kinds of prompts (volumes.prompts.KINDS) that the package takes: those the student was trained with."""
    training = run.config["objective"].get("prompts") if isinstance(network, SmallSAM) else None
    return PACKED_PROMPT_KINDS[training["kind"]] if training else ()


def _segment_validation(run: Run, network: torch.nn.Module, cohort: Cohort, *, prompt_kind: str | None) -> References:
    """What the torch network says of the validation scans, with one prompt per class too if it takes prompts."""
    infer = patch_function(network, to_network=getattr(network, "prompts_of", None))
    plan, num_classes = run.plan, len(run.labels)
    references = References()
    with Bar("held-out scans, torch", len(cohort.validation)) as bar:
        for case in cohort.validation:
            volume, truth = read_labelled_case(case, cohort.dataset)
            references.held_out.append((case.name, volume, truth))
            references.masks.append(segment(volume, plan, infer, num_classes=num_classes))
            if prompt_kind:
                prompts = prompts_from_truth(prompt_kind, truth, labels=run.labels, spacing=volume.geometry.spacing)
                references.prompts.append(prompts)
                references.prompted_masks.append(segment(volume, plan, infer, num_classes=num_classes, prompts=prompts))
            bar.advance(case.name)
    return references


def _provenance(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Where the package comes from, as its manifest keeps it."""
    return {
        "run": run.path.name,
        "stage": run.stage,
        "recipe": recipe.name,
        "network": run.config["network"]["name"],
        "objective": run.config["objective"],
        "test": (run.metrics()["test"] or {}).get("summary"),
    }


def _description(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What the package segments, as its manifest and its model card say it."""
    return {"dataset": dataset.name, "text": recipe.description, "channels": list(dataset.channels)}
