"""The one trainer, for teachers and students alike: a job becomes a run folder with weights and scores."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ..errors import UsageError
from ..evaluation.records import ClassScore
from ..evaluation.rules import DEFAULT_RULES, ScoringRules
from ..evaluation.scores import case_scores, score_scan
from ..sam.checkpoints import LoadReport
from ..volumes.datasets.registry import Case, Dataset, read_labelled_case
from ..volumes.intensity_profile import intensity_profile
from ..volumes.pipeline import segment
from ..volumes.plan import Plan
from .checkpoint import load_weights
from .compiled import check_compile
from .job import TrainingJob
from .lock import one_at_a_time
from .loop import TrainingResult, fit
from .memory_plan import MemoryPlan
from .memory_planner import MemoryPlanner
from .metrics import BestValidation, RunMetrics, scoring_rules
from .patches import PatchBatches
from .predictor import make_predictor
from .prepared import PreparedCase, prepare_cases
from .progress import Bar, console
from .prompt_protocol import PromptProtocol, parse_protocol, protocol_of_training
from .prompt_sampling import PromptSampler
from .ranks import barrier, gathered, is_main, main_first, of_main, rank, share_of, world_size
from .run import CACHE, INTENSITIES, Run
from .sharding import check_shardable, gathered_weights
from .step import TrainingStep
from .taught_classes import check_taught_classes
from .together import Layout, fabric_for, strategy, together
from .validation import grid_dice

PATCH_DIVISOR = 32  # voxels; every student that takes any patch takes multiples of it
PROFILE_PATCHES = 32  # as many as calibrate a package by default


@runtime_checkable
class Pretrainable(Protocol):
    """A network that has published weights."""

    def load_pretrained(self, path: str | Path) -> LoadReport: ...


def run_job(
    job: TrainingJob, *, runs: Path, run: Path | None = None, devices: int = 1, vram: float | None = None
) -> Run:
    """train_and_score on so many devices together, of this machine; or on those that are together already."""
    with together(Layout(devices)):
        return train_and_score(job, runs=runs, run=run, vram=vram)


def train_and_score(job: TrainingJob, *, runs: Path, run: Path | None = None, vram: float | None = None) -> Run:
    """Train, then score the best weights on every whole labelled test scan; ``metrics.json`` is written last.

    Without validation cases the last weights are the best. With ``vram`` every device's steps are planned to stay
    within so many bytes (AUTO: all that it has).

    The folder is ``run``, or one in ``runs`` named after the job. A finished run is returned as it is, an interrupted
    one continues. Raises UsageError for prompts that the network does not take, for a network without published
    weights and for one that cannot be divided among devices as the strategy says; BadInputError for a checkpoint or
    folder that is not this job's; Stopped when interrupted.
    """
    if job.settings.patience and not job.split.validation:
        raise UsageError(
            f"training.patience is {job.settings.patience}, but there are no validation cases to wait for: set it to "
            "0, or validation above 0"
        )
    scoring_rules(job.config.evaluation, job.split.dataset.labels.values())
    run_config = job.run_config()
    torch.manual_seed(job.config.seed)
    network = job.build()
    check_patches(network, job.settings.patches, name=job.network.name)
    if strategy() == "fsdp":
        check_shardable(network, name=job.network.name, planned=vram is not None, compiled=job.settings.compile)
    prompts = PromptSampler.of(job.prompts, network, name=job.network.name, seed=job.config.seed)
    report = load_pretrained(network, job.pretrained, name=job.network.name) if job.pretrained else None
    step = job.make_step(network, prompts)
    with main_first():
        folder = Run.create(run or runs / job.folder_name(run_config), run_config)
    if of_main(folder.finished):
        return folder
    if report is not None and is_main():
        report_pretrained(folder, job.pretrained, report)
    job.initialise(network)
    return _train(job, network, step, prompts, run=folder, cache=runs / CACHE, vram=vram)


@one_at_a_time
def _train(
    job: TrainingJob,
    network: torch.nn.Module,
    step: TrainingStep,
    prompts: PromptSampler | None,
    *,
    run: Run,
    cache: Path,
    vram: float | None,
) -> Run:
    """Train the job's network in its folder, which nobody else may do meanwhile, and score it."""
    if is_main():
        run.write_json("splits.json", job.split.names())
    fabric = fabric_for(job.settings.precision)
    fabric.launch()
    if job.settings.compile:
        check_compile(fabric.device, step)
    labelled, unlabelled, validation = prepare(job, cache=cache)
    check_taught_classes(labelled, labels=run.class_names, root=job.split.dataset.root)
    batches = PatchBatches(
        labelled,
        patch=job.plan.patch,
        batch=job.settings.batch,
        patches=job.settings.patches,
        masks=job.settings.masks,
        steps=job.settings.steps * job.settings.accumulate,
        foreground=job.settings.foreground,
        augmentation=job.settings.augmentation,
        seed=job.config.seed,
        rank=rank(),
        unlabelled=unlabelled,
        boxed_classes=prompts.num_classes if prompts and prompts.settings.whole_case else 0,
    )

    def validate(model: torch.nn.Module) -> dict[str, float]:
        return grid_dice(model, validation, plan=job.plan, class_names=run.class_names, prompts=prompts)

    memory = None
    if vram is not None:
        memory = MemoryPlanner(network, step, batches=batches, settings=job.settings, fabric=fabric, run=run, vram=vram)
        memory.prepare()
    result = fit(
        network,
        step,
        batches=batches,
        validate=validate if validation else None,
        settings=job.settings,
        run=run,
        fabric=fabric,
        title=job.title,
        memory=memory,
    )
    barrier()  # the best weights are written
    if is_main():
        patches = PatchBatches.plain(labelled, patch=job.plan.patch, count=PROFILE_PATCHES, seed=job.config.seed)
        images = (np.asarray(case.image) for case in (*labelled, *unlabelled))
        run.write_json(INTENSITIES, intensity_profile(images, patches))
    score_run(run, network, job, result, memory=memory.plan if memory else None)
    barrier()
    return run


def check_patches(network: torch.nn.Module, patches: Sequence[tuple[int, int, int]], *, name: str) -> None:
    """Raises UsageError for further patch sizes that the network, called ``name``, cannot take."""
    if patches and not getattr(network, "takes_any_patch", False):
        raise UsageError(f"training.patches: the weights of {name} belong to the plan's patch; leave this key out")
    for patch in patches:
        if any(size < PATCH_DIVISOR or size % PATCH_DIVISOR for size in patch) or max(patch) == PATCH_DIVISOR:
            raise UsageError(
                f"training.patches: {patch}; expected multiples of {PATCH_DIVISOR}, one of them at least "
                f"{2 * PATCH_DIVISOR}"
            )


def load_pretrained(network: torch.nn.Module, path: Path, *, name: str) -> LoadReport:
    """Fill the network from a published checkpoint. Raises UsageError for a network, called ``name``, without any."""
    if not isinstance(network, Pretrainable):
        raise UsageError(f"{path}: there are no published weights of {name}; leave this file out")
    return network.load_pretrained(path)


def report_pretrained(run: Run, path: Path | None, report: LoadReport) -> None:
    """What became of each tensor of a published file: pretrained.json, and one line of it."""
    run.write_json("pretrained.json", asdict(report))
    console.print(
        f"{path} ({report.variant}): {len(report.loaded)} tensors loaded, {len(report.interpolated)} of them "
        f"interpolated; {len(report.reinitialised)} re-initialised by design, {len(report.added)} added, "
        f"{len(report.dropped)} dropped; each by name in {run.path / 'pretrained.json'}"
    )


def prepare(job: TrainingJob, *, cache: Path) -> tuple[list[PreparedCase], list[PreparedCase], list[PreparedCase]]:
    """The labelled, the unlabelled and the validation cases on the plan's grid, the first two with soft targets."""
    split = job.split
    used = (*split.train, *job.unlabelled)
    if world_size() > 1:  # each device's process writes its share into the cache, then all read everything
        mine = share_of((*used, *split.validation))
        with Bar(f"{job.title}: preparing {len(mine)} cases on each device", len(mine)) as bar:
            prepare_cases(mine, split.dataset, job.plan, cache, on_case=bar.advance)
        barrier()
    with Bar(f"{job.title}: preparing cases", len(used) + len(split.validation)) as bar:
        prepared = prepare_cases(used, split.dataset, job.plan, cache, on_case=bar.advance)
        validation = prepare_cases(split.validation, split.dataset, job.plan, cache, on_case=bar.advance)
    if job.add_soft_targets is not None:
        prepared = job.add_soft_targets(used, prepared)
    return prepared[: len(split.train)], prepared[len(split.train) :], validation


def score_run(
    run: Run, network: torch.nn.Module, job: TrainingJob, result: TrainingResult, *, memory: MemoryPlan | None = None
) -> None:
    """Score the best weights on the whole test scans and write ``metrics.json``, with which the run is finished."""
    load_weights(network, run.weights)
    rules = scoring_rules(job.config.evaluation, job.split.dataset.labels.values())
    test_prompts = protocol_of_training(job.prompts)
    with gathered_weights(network):
        cases = score_scans(
            network,
            job.split.test,
            job.split.dataset,
            plan=job.plan,
            title=f"{job.title}: test scans{f', shown {test_prompts} from their masks' if test_prompts else ''}",
            rules=rules,
            protocol=parse_protocol(test_prompts) if test_prompts else None,
        )
    metrics = RunMetrics(
        steps=result.steps,
        seconds=round(result.seconds, 1),
        skipped_steps=result.skipped,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        validation=None if result.best_dice is None else BestValidation(dice=result.best_dice, step=result.best_step),
        test=case_scores(cases, rules=rules) if cases else None,
        test_prompts=test_prompts if cases else None,
        memory=memory and asdict(memory),
    )
    if is_main():
        run.write_json("metrics.json", metrics.to_json())


def score_scans(
    network: torch.nn.Module,
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    plan: Plan,
    title: str,
    rules: ScoringRules = DEFAULT_RULES,
    protocol: PromptProtocol | None = None,
) -> dict[str, tuple[ClassScore, ...]]:
    """Scores of a torch network on whole scans, on their own grids, by case name; it is shown what `protocol` says.

    Of several devices each segments its share of the cases, and all return the scores of all.
    """
    predictor = make_predictor(network)
    rows, mine = {}, share_of(cases)
    with Bar(title, len(mine)) as bar:
        for case in mine:
            volume, truth = read_labelled_case(case, dataset)
            grid = volume.geometry
            prompts = protocol and protocol.of_scan(truth, name=case.name, labels=dataset.labels, grid=grid, plan=plan)
            prediction = segment(volume, plan, predictor, num_classes=len(dataset.labels), prompts=prompts)
            rows |= score_scan(case.name, prediction, truth, grid=grid, labels=dataset.labels, rules=rules)
            bar.advance(case.name)
    everybodys = {name: scores for share in gathered(rows) for name, scores in share.items()}
    return {case.name: everybodys[case.name] for case in cases}
