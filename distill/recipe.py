"""samkd distill: a student from labels and a teacher, and the same student without its teacher as the control."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..config import Recipe
from ..errors import BadInputError
from ..students import build_student
from ..training.losses import distillation_loss
from ..training.run import Run, digest
from ..training.stage import Cohort, run_config, train_network
from ..volumes.dataset import Case, Dataset
from ..volumes.plan import Plan
from .networks import load_network
from .targets import cached_targets


def distill(
    recipe: Recipe,
    dataset: Dataset,
    *,
    teacher: Run | None,
    runs: Path,
    run: Path | None = None,
    lambda_: float | None = None,
    devices: int = 1,
) -> Run:
    """Train the recipe's student with ``L = lambda * L_seg + (1 - lambda) * L_mse`` and leave its run folder.

    lambda = 1 is the control: same student, seed, patches and steps, no teacher; a control that exists already is
    returned, not trained again. Raises BadInputError when teacher and dataset have other classes.
    """
    weight = recipe.lambda_ if lambda_ is None else lambda_
    plan = Plan.from_dict(recipe.student.plan.model_dump(mode="json"))
    cohort = Cohort.of(dataset, validation=recipe.validation, seed=recipe.seed)
    settings = recipe.student.training
    spec = {
        "room": "students",
        "name": recipe.student.name,
        "in_channels": len(dataset.channels),
        "num_classes": len(dataset.labels),
        "patch": list(plan.patch),
    }
    source = {} if weight == 1 else _describe_teacher(teacher, dataset)
    config = run_config(
        stage="distill" if weight < 1 else "control",
        recipe=recipe,
        network=spec,
        plan=plan,
        cohort=cohort,
        training=settings,
        objective={"lambda": weight, **source},
    )
    torch.manual_seed(recipe.seed)
    network = build_student(**{key: value for key, value in spec.items() if key != "room"})

    def objective(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return distillation_loss(
            logits,
            batch["labels"],
            batch.get("teacher"),
            lambda_=weight,
            dice_weight=settings.dice_weight,
            cross_entropy_weight=settings.cross_entropy_weight,
        )

    def targets(cases: Sequence[Case]) -> Sequence[np.ndarray]:
        assert teacher is not None
        return cached_targets(
            load_network(teacher),
            cases,
            dataset,
            weights=teacher.weights,
            teacher_plan=teacher.plan,
            student_plan=plan,
            cache=runs / "cache",
        )

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
        targets=targets if weight < 1 else None,
    )


def _describe_teacher(teacher: Run | None, dataset: Dataset) -> dict[str, str]:
    if teacher is None:
        raise BadInputError("distillation with lambda < 1 needs a teacher; run `samkd teach` or give --teacher RUN")
    if teacher.labels != dataset.labels:
        raise BadInputError(
            f"{teacher.path}: this teacher knows {teacher.labels}, the dataset declares {dataset.labels}; "
            f"teacher and student must have the same classes"
        )
    digest_of_weights = hashlib.sha256(teacher.weights.read_bytes()).hexdigest()
    return {"teacher": teacher.path.name, "teacher_weights": digest_of_weights}
