"""A student from labels and teachers, and the same student without its teachers as the control."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..configs.schema import Recipe
from ..errors import BadInputError, UsageError
from ..students import build_student
from ..training.checkpoint import sha256
from ..training.prepared import PreparedCase, fingerprint
from ..training.prompt_sampling import Prompting
from ..training.run import Run, digest
from ..training.trainer import Cohort, run_config, tell_base, train_network
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.plan import Plan
from .embedding import EmbeddingMatch
from .ensemble import Ensemble
from .losses import distance_of, distillation_loss
from .soft_targets import cached_targets

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
    weights: Path | None = None,
) -> Run:
    """Train the recipe's student with ``L = lambda * L_seg + (1 - lambda) * L_mse`` and leave its run folder.

    Training cases without a mask join with L_mse alone. lambda = 1 is the control: same student, seed, labelled
    patches and steps, no teacher; a control that exists already is returned, not trained again. ``online`` runs the
    teachers on the very patches the student sees, and shows those that are promptable the student's prompts where the
    recipe has some (decoder distillation with prompts in the loop: Zhou et al. 2023, EdgeSAM); else their targets for
    whole scans are cached (at most ``cache_limit`` bytes). A student of SAM's kind starts from published ``weights``.
    Raises BadInputError without teachers for lambda < 1,
    UsageError for prompts the student does not take, and as EmbeddingMatch, Ensemble.check_online and cached_targets.
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
    prompts = recipe.student.prompts
    prompted = {} if prompts.kind == "none" else {"prompts": prompts.model_dump(mode="json")}
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
        objective={
            "lambda": weight,
            **taught,
            **prompted,
            **({"start": {"name": weights.name, "sha256": sha256(weights)}} if weights else {}),
        },
    )
    torch.manual_seed(recipe.seed)
    network: Any = new_student(recipe, dataset)
    report = _start(network, weights, recipe.student.name) if weights else None
    distance = distance_of(recipe.student.distillation)
    share = recipe.student.distillation.embedding if weight < 1 else 0.0
    match = _match(network, teachers, plan, len(dataset.channels), online, devices) if share and teachers else None

    def asked(batch: dict[str, Any], prompts: Any = None) -> torch.Tensor | None:
        if teachers is not None and online and weight < 1:
            return teachers.on_patches(batch["image"], prompts)
        return batch.get("teacher")

    def truth_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The labels; of samples without any, what the teachers make of them."""
        labels = batch["labels"]
        if len(labels) == len(batch["image"]):
            return labels
        taught = asked(batch)
        assert taught is not None
        return torch.cat([labels, taught[len(labels) :].argmax(1).to(labels)])

    own = {"name": spec["name"], "classes": spec["num_classes"], "seed": recipe.seed}
    prompting = Prompting.of(prompts, network, truth_of=truth_of, **own)

    def objective(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        terms = distillation_loss(
            logits,
            batch["labels"],
            asked(batch, batch.get("prompts")),
            lambda_=weight,
            distance=distance,
            dice_weight=settings.dice_weight,
            cross_entropy_weight=settings.cross_entropy_weight,
        )
        if match is None:
            return terms
        distance_of_embeddings = match()
        total = terms["loss"] + (1 - weight) * share * distance_of_embeddings
        return {**terms, "loss": total, "embedding": distance_of_embeddings.detach()}

    def targets(cases: Sequence[Case], prepared: Sequence[PreparedCase]) -> list[PreparedCase]:
        assert teachers is not None
        return cached_targets(teachers, cases, prepared, dataset, plan=plan, cache=runs / "cache", limit=cache_limit)

    name = f"{config['stage']}-{recipe.name}-{recipe.student.name}-{digest(config)[:8]}"
    folder = Run.create(run or runs / name, config)
    if report is not None and not folder.finished:
        tell_base(folder, weights, report)
    return train_network(
        network,
        run=folder,
        cohort=cohort,
        plan=plan,
        settings=settings,
        objective=objective,
        cache=runs / "cache",
        devices=devices,
        title=f"student {recipe.student.name}, lambda {weight:g}",
        targets=targets if weight < 1 and not online else None,
        unlabelled=cohort.unlabelled if weight < 1 else (),
        helper=match,
        prompting=prompting,
    )


def _start(network: Any, weights: Path, name: str) -> Any:
    if not hasattr(network, "load_base"):
        raise UsageError(f"--student-weights {weights}: there are no published weights of {name}; leave it out")
    return network.load_base(weights)


def _match(
    network: torch.nn.Module, teachers: Ensemble, plan: Plan, channels: int, online: bool, devices: int
) -> EmbeddingMatch:
    if not online or devices > 1:
        raise UsageError(
            "distillation.embedding: teachers must see the student's patches, and its projection learns on one device; "
            "give --online and one device, or set it to 0"
        )
    known = [(each.name, each.network, share) for each, share in zip(teachers.teachers, teachers.shares, strict=True)]
    return EmbeddingMatch(network, known, torch.zeros(1, channels, *plan.patch))


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
