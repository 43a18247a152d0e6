"""samkd teach: fit a SAM-adapter teacher to a dataset."""

from pathlib import Path
from typing import Any

import torch

from ..configs.schema import Recipe
from ..errors import BadInputError, UsageError
from ..training.checkpoint import load_shared, load_weights, sha256
from ..training.losses import segmentation_loss
from ..training.progress import console
from ..training.prompt_sampling import Prompting
from ..training.run import Run, digest
from ..training.trainer import Cohort, run_config, tell_base, train_network
from ..volumes.datasets.registry import Dataset
from ..volumes.plan import Plan
from . import build_teacher


def teach(
    recipe: Recipe,
    dataset: Dataset,
    *,
    runs: Path,
    run: Path | None = None,
    weights: Path | None = None,
    start: Path | None = None,
    devices: int = 1,
) -> Run:
    """Train the recipe's teacher and leave its run folder; the same call continues an interrupted run.

    With published ``weights`` the image encoder is frozen and only adapters and decoder learn (Chen et al. 2023);
    without, there is nothing to keep and everything learns. It goes on from the best weights of the run `start`, of
    the same network; where that knew other classes, the layers that depend on them start anew. Raises UsageError when
    the recipe has prompts for a teacher that takes none, or holds an encoder that starts from nothing, BadInputError
    when `start` is another network's run.
    """
    plan = Plan.from_dict(recipe.teacher.plan.model_dump(mode="json"))
    cohort = Cohort.of(dataset, validation=recipe.validation, seed=recipe.seed)
    settings, prompts = recipe.teacher.training, recipe.teacher.prompts
    if recipe.teacher.hold_encoder and start is None:
        raise UsageError(
            f"recipe {recipe.name!r} holds the image encoder of the run it starts from; give --start RUN, or set "
            "teacher.hold_encoder to false"
        )
    spec = {
        "room": "teachers",
        "name": recipe.teacher.name,
        "backbone": recipe.teacher.backbone,
        "in_channels": len(dataset.channels),
        "num_classes": len(dataset.labels),
        "patch": list(plan.patch),
        "options": recipe.teacher.options,
    }
    pretrained = {"name": weights.name, "sha256": sha256(weights)} if weights else None
    first = _first(start, spec, pretrained) if start else None
    config = run_config(
        stage="teach",
        recipe=recipe,
        network=spec,
        plan=plan,
        cohort=cohort,
        training=settings,
        objective={
            "lambda": 1.0,
            "pretrained": pretrained,
            **({"start": sha256(first.weights)} if first else {}),
            **({"held encoder": True} if recipe.teacher.hold_encoder else {}),
            **({} if prompts.kind == "none" else {"prompts": prompts.model_dump(mode="json")}),
        },
    )
    config["base"] = str(weights.resolve()) if weights else None
    torch.manual_seed(recipe.seed)
    network = build_teacher(
        **{key: value for key, value in spec.items() if key not in ("room", "options")}, **spec["options"]
    )
    prompting = Prompting.of(prompts, network, name=spec["name"], classes=spec["num_classes"], seed=recipe.seed)
    report = network.load_base(weights) if weights else None
    name = f"teach-{recipe.name}-{recipe.teacher.name}-{digest(config)[:8]}"
    folder = Run.create(run or runs / name, config)
    if report is not None:
        network.freeze_base()
        tell_base(folder, weights, report)
    if first is not None:
        _go_on(network, first, dataset.labels)
    if recipe.teacher.hold_encoder:
        network.hold_encoder()

    def objective(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = segmentation_loss(
            logits,
            batch["labels"],
            dice_weight=settings.dice_weight,
            cross_entropy_weight=settings.cross_entropy_weight,
        )
        return {"loss": loss}

    return train_network(
        network,
        run=folder,
        cohort=cohort,
        plan=plan,
        settings=settings,
        objective=objective,
        cache=runs / "cache",
        devices=devices,
        title=f"teacher {recipe.teacher.name}",
        prompting=prompting,
    )


def _first(start: Path, spec: dict[str, Any], pretrained: dict[str, str] | None) -> Run:
    """The run `start`. Raises BadInputError when a network made by `spec` cannot go on from it."""
    run = Run.read(start)
    ours = {"network": spec, "published weights": pretrained}
    theirs = {
        "network": {**run.config["network"], "num_classes": spec["num_classes"]},
        "published weights": run.config["objective"].get("pretrained"),
    }
    if wrong := [f"its {key}: {theirs[key]}, here {ours[key]}" for key in ours if theirs[key] != ours[key]]:
        raise BadInputError(f"{start}: cannot be gone on from; {'; '.join(wrong)}")
    if not run.weights.exists():
        raise BadInputError(f"{start}: no weights yet; finish this run first")
    return run


def _go_on(network: torch.nn.Module, first: Run, classes: dict[int, str]) -> None:
    """Fill the network from the best weights of `first`, and say which of its layers another set of classes leaves."""
    if first.labels == classes:
        return load_weights(network, first.weights)
    anew = load_shared(network, first.weights)
    learned = ", ".join(first.labels.values())
    console.print(
        f"{first.path}: its classes are {learned}; of its layers, {', '.join(anew) or 'none'} start anew here"
    )
