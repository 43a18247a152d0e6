"""A student from labels and teachers, and the same student without its teachers as the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..configs.schema import Config
from ..errors import BadInputError, UsageError
from ..students import build_student, student_from_spec
from ..training.job import TrainingJob
from ..training.precision import with_precision
from ..training.prepared import PreparedCase, fingerprint
from ..training.prompt_sampling import PromptSampler
from ..training.run import CACHE, Run
from ..training.run_config import NetworkSpec, Objective, PublishedFile, TeacherRecord, Teaching, digest
from ..training.schedule import with_steps
from ..training.split import DataSplit
from ..training.trainer import run_job
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.files import file_digest
from ..volumes.plan import Plan
from .embedding import EmbeddingMatch
from .embedding_cache import cache_embeddings
from .ensemble import Ensemble, EnsembleMember
from .losses import distance_of
from .soft_targets import cached_targets
from .step import DistillationStep

if TYPE_CHECKING:
    from ..students import Student

CACHE_LIMIT = 20e9  # bytes


def distill(
    config: Config,
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
    vram: float | None = None,
) -> Run:
    """Train the config's student with ``L = lambda * L_seg + (1 - lambda) * L_KD`` and leave its run folder.

    Training cases without a mask join with L_KD alone. lambda = 1 is the control: same student, seed, labelled
    patches and steps, no teacher; a control that exists already is returned, not trained again. ``online`` runs the
    teachers on the very patches the student sees, and shows those that take prompts the student's, where the config has
    some (decoder distillation with prompts in the loop: Zhou et al. 2023, EdgeSAM); else their soft targets for whole
    scans are cached (at most ``cache_limit`` bytes). A student of SAM's kind starts from published ``weights``.
    ``vram`` is a budget of memory in bytes.
    Raises BadInputError without teachers for lambda < 1, UsageError for prompts the student does not take, and as
    EmbeddingMatch, Ensemble.check_online and cached_targets.
    """
    lambda_ = config.lambda_ if lambda_ is None else lambda_
    if lambda_ == 1:
        job = control_job(config, dataset, pretrained=weights, devices=devices)
    elif teachers is None:
        raise BadInputError("distillation with lambda < 1 needs a teacher; run `samkd teach` or give --teacher RUN")
    else:
        job = distillation_job(
            config,
            dataset,
            teachers=teachers,
            lambda_=lambda_,
            devices=devices,
            online=online,
            cache=runs / CACHE,
            cache_limit=cache_limit,
            pretrained=weights,
        )
    return run_job(job, runs=runs, run=run, devices=devices, vram=vram)


def control_job(config: Config, dataset: Dataset, *, pretrained: Path | None, devices: int) -> TrainingJob:
    """The run of the student from labels alone, lambda = 1."""
    student = config.student
    plan = student_plan(config)
    split = DataSplit.of(dataset, validation=config.validation, seed=config.seed)
    settings = with_steps(with_precision(student.training), cases=len(split.train), devices=devices)
    if settings.iou_weight:
        raise UsageError("student.training.iou_weight: no student learns the IoU of its masks; set it to 0")
    spec = NetworkSpec(
        family="students",
        name=student.name,
        in_channels=len(dataset.channels),
        num_classes=len(dataset.labels),
        patch=plan.patch,
        options=student.options,
    )

    def make_step(network: Student, prompts: PromptSampler | None) -> DistillationStep:
        return DistillationStep(
            lambda_=1.0, distance=distance_of(student.distillation), settings=settings, prompts=prompts
        )

    return TrainingJob(
        stage="control",
        config=config,
        network=spec,
        plan=plan,
        split=split,
        settings=settings,
        prompts=student.prompts,
        objective=Objective(
            pretrained=PublishedFile(pretrained.name, file_digest(pretrained)) if pretrained else None,
            prompts=None if student.prompts.kind == "none" else student.prompts.model_dump(mode="json"),
        ),
        title=f"student {student.name}, lambda 1",
        build=lambda: student_from_spec(spec),
        make_step=make_step,
        pretrained=pretrained,
    )


def distillation_job(
    config: Config,
    dataset: Dataset,
    *,
    teachers: Ensemble,
    lambda_: float,
    devices: int,
    online: bool,
    cache: Path,
    cache_limit: float,
    pretrained: Path | None,
) -> TrainingJob:
    """The control's run and what teachers add to it: soft targets, unlabelled cases, the distance of embeddings."""
    control = control_job(config, dataset, pretrained=pretrained, devices=devices)
    distillation, plan, split = config.student.distillation, control.plan, control.split
    if online:
        teachers.check_online(plan, prompted=always_boxed(config))
    if distillation.embedding and (not online or devices > 1):
        raise UsageError(
            "distillation.embedding: teachers must see the student's patches, and its projection learns on one device; "
            "give --online and one device, or set it to 0"
        )
    teaching = Teaching(
        teachers=tuple(
            TeacherRecord(member.name, member.sha256, share, predictions=not isinstance(member, EnsembleMember))
            for member, share in zip(teachers.teachers, teachers.shares, strict=True)
        ),
        distillation=distillation.model_dump(mode="json"),
        online=online,
        unlabelled={
            "cases": len(split.unlabelled),
            "content": digest({"cases": sorted(fingerprint(case) for case in split.unlabelled)}),
        },
    )

    def make_step(network: Student, prompts: PromptSampler | None) -> DistillationStep:
        if distillation.cache_embeddings:
            networks = [(member.sha256, member.network) for member in teachers.runs]
            cache_embeddings(networks, control.settings.augmentation, cache=cache, limit=cache_limit)
        return DistillationStep(
            lambda_=lambda_,
            distance=distance_of(distillation),
            settings=control.settings,
            teachers=teachers if online else None,
            prompts=prompts,
            helper=match_embeddings(network, teachers, config) if distillation.embedding else None,
            embedding_weight=distillation.embedding,
            embedding_steps=distillation.embedding_steps,
        )

    def add_soft_targets(cases: Sequence[Case], prepared: Sequence[PreparedCase]) -> list[PreparedCase]:
        return cached_targets(teachers, cases, prepared, dataset, plan=plan, cache=cache, limit=cache_limit)

    return replace(
        control,
        stage="distill",
        objective=replace(control.objective, lambda_=lambda_, teaching=teaching),
        title=f"student {config.student.name}, lambda {lambda_:g}",
        make_step=make_step,
        add_soft_targets=None if online else add_soft_targets,
        unlabelled=split.unlabelled,
    )


def always_boxed(config: Config) -> bool:
    """Whether every step of the config's student shows boxes."""
    prompts = config.student.prompts
    return prompts.kind == "box" and prompts.share == 1


def match_embeddings(student: Student, teachers: Ensemble, config: Config) -> EmbeddingMatch:
    """The distance of embeddings on patches of the student's plan; UsageError as in EmbeddingMatch."""
    members = [
        (member.name, member.network, share) for member, share in zip(teachers.runs, teachers.shares, strict=True)
    ]
    image = torch.zeros(1, int(student.in_channels), *student_plan(config).patch)
    return EmbeddingMatch(student, members, image, projection=config.student.distillation.projection)


def new_student(config: Config, dataset: Dataset) -> Student:
    """The config's student for a dataset, with random weights."""
    options: dict[str, Any] = config.student.options
    return build_student(
        config.student.name,
        in_channels=len(dataset.channels),
        num_classes=len(dataset.labels),
        patch=student_plan(config).patch,
        **options,
    )


def student_plan(config: Config) -> Plan:
    return Plan.from_dict(config.student.plan.model_dump(mode="json"))
