"""A student from labels and teachers, and the same student without its teachers as the control."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import Recipe
from ..errors import BadInputError
from ..students import build_student
from ..training.cases import PreparedCase, fingerprint
from ..training.run import Run, digest
from ..training.stage import Cohort, run_config, train_network
from ..volumes.dataset import Case, Dataset
from ..volumes.plan import Plan
from .ensemble import Ensemble
from .losses import distance_of, distillation_loss
from .targets import cached_targets

CACHE_LIMIT = 20e9  # bytes


def distill(
    recipe: Recipe,
    dataset: Dataset,
    *,
    teachers: Ensemble | None,
    runs: Path,
    run: Path | None = None,
    lambda_: float | None = None,
    devices: int = 1,
    online: bool = False,
    cache_limit: float = CACHE_LIMIT,
) -> Run:
    """Train the recipe's student with ``L = lambda * L_seg + (1 - lambda) * L_mse`` and leave its run folder.

    Training cases without a mask join with L_mse alone. lambda = 1 is the control: same student, seed, labelled
    patches and steps, no teacher; a control that exists already is returned, not trained again. ``online`` runs the
    teachers on the very patches the student sees, else their targets for whole scans are cached (at most
    ``cache_limit`` bytes). Raises BadInputError without teachers for lambda < 1, UsageError as Ensemble.check_online
    and cached_targets do.
    """
    weight = recipe.lambda_ if lambda_ is None else lambda_
    plan = student_plan(recipe)
    cohort = Cohort.of(dataset, validation=recipe.validation, seed=recipe.seed)
    settings = recipe.student.training
    spec = {
        "room": "students",
        "name": recipe.student.name,
        "in_channels": len(dataset.channels),
        "num_classes": len(dataset.labels),
        "patch": list(plan.patch),
        "options": recipe.student.options,
    }
    taught: dict[str, Any] = {}
    if weight < 1:
        if teachers is None:
            raise BadInputError("distillation with lambda < 1 needs a teacher; run `samkd teach` or give --teacher RUN")
        if online:
            teachers.check_online(plan)
        taught = {
            "teachers": [
                {"run": teacher.name, "sha256": teacher.sha256, "share": share}
                for teacher, share in zip(teachers.teachers, teachers.shares, strict=True)
            ],
            "distillation": recipe.student.distillation.model_dump(mode="json"),
            "online": online,
            "unlabelled": {
                "cases": len(cohort.unlabelled),
                "content": digest({"cases": sorted(fingerprint(case) for case in cohort.unlabelled)}),
            },
        }
    config = run_config(
        stage="distill" if weight < 1 else "control",
        recipe=recipe,
        network=spec,
        plan=plan,
        cohort=cohort,
        training=settings,
        objective={"lambda": weight, **taught},
    )
    torch.manual_seed(recipe.seed)
    network = new_student(recipe, dataset)
    distance = distance_of(recipe.student.distillation)

    def objective(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return distillation_loss(
            logits,
            batch["labels"],
            teachers.on_patches(batch["image"]) if teachers and online and weight < 1 else batch.get("teacher"),
            lambda_=weight,
            distance=distance,
            dice_weight=settings.dice_weight,
            cross_entropy_weight=settings.cross_entropy_weight,
        )

    def targets(cases: Sequence[Case], prepared: Sequence[PreparedCase]) -> list[PreparedCase]:
        assert teachers is not None
        return cached_targets(teachers, cases, prepared, dataset, plan=plan, cache=runs / "cache", limit=cache_limit)

    name = f"{config['stage']}-{recipe.name}-{recipe.student.name}-{digest(config)[:8]}"
    return train_network(
        network,
        run=Run.create(run or runs / name, config),
        cohort=cohort,
        plan=plan,
        settings=settings,
        objective=objective,
        cache=runs / "cache",
        devices=devices,
        title=f"student {recipe.student.name}, lambda {weight:g}",
        targets=targets if weight < 1 and not online else None,
        unlabelled=cohort.unlabelled if weight < 1 else (),
    )


def new_student(recipe: Recipe, dataset: Dataset) -> torch.nn.Module:
    return build_student(
        recipe.student.name,
        in_channels=len(dataset.channels),
        num_classes=len(dataset.labels),
        patch=student_plan(recipe).patch,
        **recipe.student.options,
    )


def student_plan(recipe: Recipe) -> Plan:
    return Plan.from_dict(recipe.student.plan.model_dump(mode="json"))
