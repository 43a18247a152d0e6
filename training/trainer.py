"""What teach and distill share: prepared cases, the loop, and the final scores on whole test scans."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from ..configs.schema import Recipe, Training
from ..errors import BadInputError
from ..evaluation.scores import score_case, summarise
from ..volumes.datasets.registry import Case, Dataset, read_labelled_case
from ..volumes.datasets.splits import refuse_leaks, split
from ..volumes.pipeline import segment
from ..volumes.plan import Plan
from ..volumes.prompts import GridPrompts
from ..volumes.sliding_window import sliding_window
from .checkpoint import load_weights
from .lock import one_at_a_time
from .loop import Objective, fit, plain_call
from .patches import PatchBatches
from .predictor import patch_function
from .prepared import PreparedCase, fingerprint, prepare_cases
from .progress import Bar, console
from .prompt_sampling import Prompting
from .run import Run, digest
from .taught_classes import check_taught_classes

AddTargets = Callable[[Sequence[Case], Sequence[PreparedCase]], list[PreparedCase]]


@dataclass(frozen=True)
class Cohort:
    """The cases of a run: labelled training and validation cases, unlabelled ones, and test cases nobody trains on."""

    dataset: Dataset
    train: tuple[Case, ...]
    validation: tuple[Case, ...]

    @classmethod
    def of(cls, dataset: Dataset, *, validation: float, seed: int) -> "Cohort":
        """Seeded split of the labelled training cases, unless the dataset comes with validation cases.

        Raises BadInputError when fewer than two are labelled.
        """
        labelled = [case for case in dataset.training if case.label is not None]
        if labelled and dataset.validation:
            return cls(dataset, tuple(labelled), dataset.validation)
        if len(labelled) < 2:
            raise BadInputError(
                f"{dataset.root}: {len(labelled)} labelled training case(s); at least 2 are needed, one of them "
                f"for validation"
            )
        train, held_out = split(labelled, validation=validation, seed=seed)
        return cls(dataset, tuple(train), tuple(held_out))

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.dataset.training if case.label is None)

    @property
    def test(self) -> tuple[Case, ...]:
        return tuple(case for case in self.dataset.test if case.label is not None)

    def names(self) -> dict[str, list[str]]:
        """Case names by part, as a splits.json holds them (volumes.datasets.splits)."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: [case.name for case in cases] for part, cases in parts.items()}

    def describe(self) -> dict[str, Any]:
        """What a run folder keeps of its cases: names, and a fingerprint of the bytes they were trained from.

        Raises BadInputError when one scan, byte by byte, is in two parts.
        """
        training = (*self.train, *self.unlabelled)
        refuse_leaks({"training": training, "validation": self.validation, "test": self.dataset.test})
        prints = sorted(fingerprint(case) for case in (*self.train, *self.validation))
        return {
            "dataset": self.dataset.name,
            "train": [case.name for case in self.train],
            "validation": [case.name for case in self.validation],
            "content": digest({"cases": prints}),
        }


def fabric_for(devices: int, precision: str) -> Fabric:
    """Fabric on the accelerator of this machine; several devices train together through DDP."""
    strategy = DDPStrategy(find_unused_parameters=True) if devices > 1 else "auto"
    return Fabric(accelerator="auto", devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]


def run_config(
    *,
    stage: str,
    recipe: Recipe,
    network: dict[str, Any],
    plan: Plan,
    cohort: Cohort,
    training: Training,
    objective: dict[str, Any],
) -> dict[str, Any]:
    """The resolved configuration of one run: all that decides its result, and where its data lies."""
    dataset = cohort.dataset
    return {
        "stage": stage,
        "network": network,
        "objective": objective,
        "plan": plan.to_dict(),
        "labels": {str(value): name for value, name in dataset.labels.items()},
        "channels": list(dataset.channels),
        "training": training.model_dump(mode="json"),
        "seed": recipe.seed,
        "cases": cohort.describe(),
        "data": str(dataset.root.resolve()),
        "recipe": recipe.model_dump(mode="json", by_alias=True),
    }


def tell_base(run: Run, weights: Path | None, report: Any) -> None:
    """What became of each tensor of a published file (a sam.checkpoints.LoadReport): base.json, and one line of it."""
    run.write_json("base.json", asdict(report))
    console.print(
        f"{weights} ({report.variant}): {len(report.loaded)} tensors loaded, {len(report.interpolated)} of them "
        f"interpolated; {len(report.reinitialised)} re-initialised by design, {len(report.added)} added, "
        f"{len(report.dropped)} dropped; each by name in {run.path / 'base.json'}"
    )


@one_at_a_time
def train_network(
    network: torch.nn.Module,
    *,
    run: Run,
    cohort: Cohort,
    plan: Plan,
    settings: Training,
    objective: Objective,
    cache: Path,
    devices: int,
    title: str,
    targets: AddTargets | None = None,
    unlabelled: Sequence[Case] = (),
    prompting: Prompting | None = None,
    helper: torch.nn.Module | None = None,
) -> Run:
    """Train, then score the best weights on every whole labelled test scan; leaves ``metrics.json``.

    ``targets`` gives prepared training cases their teacher targets on this plan's grid; ``unlabelled`` cases join
    every batch. With ``prompting`` the network learns, and is validated, with prompts and without. ``helper`` as in
    loop.fit. A finished run is returned as it is.
    """
    if run.finished:
        return run
    run.write_json("splits.json", cohort.names())
    fabric = fabric_for(devices, settings.precision)
    fabric.launch()
    used = (*cohort.train, *unlabelled)
    with Bar(f"{title}: preparing cases", len(used) + len(cohort.validation)) as bar:
        prepared = prepare_cases(used, cohort.dataset, plan, cache, on_case=bar.advance)
        held_out = prepare_cases(cohort.validation, cohort.dataset, plan, cache, on_case=bar.advance)
    check_taught_classes(prepared[: len(cohort.train)], labels=run.labels, root=cohort.dataset.root)
    if targets is not None:
        prepared = targets(used, prepared)
    batches = PatchBatches(
        prepared[: len(cohort.train)],
        patch=plan.patch,
        batch=settings.batch,
        masks=settings.masks,
        steps=settings.steps * settings.accumulate,
        foreground=settings.foreground,
        augmentation=settings.augmentation,
        seed=run.config["seed"],
        rank=fabric.global_rank,
        unlabelled=prepared[len(cohort.train) :],
    )
    summary = fit(
        network,
        batches=batches,
        objective=objective,
        validate=lambda model: grid_dice(model, held_out, plan=plan, labels=run.labels, prompting=prompting),
        settings=settings,
        run=run,
        fabric=fabric,
        title=title,
        call=prompting.call if prompting else plain_call,
        helper=helper,
    )
    fabric.barrier()
    if fabric.is_global_zero:
        load_weights(network, run.weights)
        rows = score_scans(network, cohort.test, cohort.dataset, plan=plan, title=f"{title}: test scans")
        run.write_json(
            "metrics.json",
            {
                "steps": summary.steps,
                "seconds": round(summary.seconds, 1),
                "skipped_steps": summary.skipped,
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
                "validation": {"dice": summary.best_dice, "step": summary.best_step},
                "test": {"summary": summarise(rows), "cases": rows} if rows else None,
            },
        )
    fabric.barrier()
    return run


def grid_dice(
    network: torch.nn.Module,
    cases: Sequence[PreparedCase],
    *,
    plan: Plan,
    labels: dict[int, str],
    prompting: Prompting | None = None,
) -> dict[str, float]:
    """Dice per class and their mean on the plan's grid: the quick score that training steers by.

    Pooled over cases (voxels of all cases together), so that an organ absent from one case needs no rule. A network
    that learns with prompts in a share of its steps is scored in both ways, and by both: each number is that share of
    the prompted one and the rest of the automatic one, whose means are added under these names.
    """
    infer = patch_function(network, to_network=prompting.to_network if prompting else None)

    def scored(shown: Callable[[PreparedCase], GridPrompts | None]) -> dict[str, float]:
        pooled = PooledDice(labels)
        for case in cases:
            image = np.asarray(case.image)
            found = sliding_window(image, plan.patch, plan.overlap, infer, num_classes=len(labels), prompts=shown(case))
            pooled.add(found.argmax(0), case.labels)
        return pooled.scores()

    automatic = scored(lambda _: None)
    if prompting is None:
        return automatic
    prompted = scored(lambda case: prompting.as_a_user(np.asarray(case.labels), case.spacing))
    share = prompting.settings.share
    # A class of no truth that one of them finds scores 0 there, and is not in the other.
    both = {k: share * prompted.get(k, 0.0) + (1 - share) * automatic.get(k, 0.0) for k in automatic | prompted}
    return {**both, "automatic": automatic["mean"], "prompted": prompted["mean"]}


class PooledDice:
    """Dice per class over the voxels of all cases together, and the mean over classes."""

    def __init__(self, labels: dict[int, str]) -> None:
        self.labels = labels
        self.overlap, self.total = np.zeros(len(labels)), np.zeros(len(labels))

    def add(self, found: np.ndarray, truth: np.ndarray | None) -> None:
        for value in self.labels:
            predicted, true = found == value, truth == value
            self.overlap[value] += np.count_nonzero(predicted & true)
            self.total[value] += np.count_nonzero(predicted) + np.count_nonzero(true)

    def scores(self) -> dict[str, float]:
        present = [value for value in self.labels if value and self.total[value]]
        dice = {self.labels[value]: float(2 * self.overlap[value] / self.total[value]) for value in present}
        return {"mean": float(np.mean(list(dice.values()))) if dice else 0.0, **dice}


def score_scans(
    network: torch.nn.Module, cases: Sequence[Case], dataset: Dataset, *, plan: Plan, title: str
) -> dict[str, list[dict[str, Any]]]:
    """Scores of a torch network on whole scans, on their own grids, by case name."""
    infer = patch_function(network)
    rows = {}
    with Bar(title, len(cases)) as bar:
        for case in cases:
            volume, truth = read_labelled_case(case, dataset)
            prediction = segment(volume, plan, infer, num_classes=len(dataset.labels))
            rows[case.name] = score_case(
                prediction,
                truth,
                spacing=volume.geometry.spacing,
                labels=dataset.labels,
                frames=volume.geometry.frames,
            )
            bar.advance(case.name)
    return rows
