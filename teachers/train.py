"""samkd teach: fit a SAM-adapter teacher to a dataset."""

from dataclasses import replace
from pathlib import Path

from ..configs.schema import Config
from ..errors import BadInputError, UsageError
from ..training.checkpoint import load_shared, load_weights
from ..training.job import TrainingJob
from ..training.precision import with_precision
from ..training.progress import console
from ..training.prompt_sampling import PromptSampler
from ..training.run import Run
from ..training.run_config import NetworkSpec, Objective, PublishedFile
from ..training.schedule import with_steps
from ..training.split import DataSplit
from ..training.step import PredictsIoU, SupervisedStep
from ..training.trainer import run_job
from ..volumes.datasets.registry import Dataset
from ..volumes.files import file_digest
from ..volumes.plan import Plan
from . import PUBLISHED, teacher_from_spec
from .base import TeacherNetwork
from .published.run import record_published


def teach(
    config: Config,
    dataset: Dataset,
    *,
    runs: Path,
    run: Path | None = None,
    weights: Path | None = None,
    start: Path | None = None,
    devices: int = 1,
    vram: float | None = None,
) -> Run:
    """Train the config's teacher and leave its run folder; the same call continues an interrupted run.

    With published ``weights`` the image encoder is frozen and only adapters and decoder learn (Chen et al. 2023);
    without, there is nothing to keep and everything learns. It goes on from the best weights of the run `start`, of
    the same network; where that knew other classes, the layers that depend on them start anew. ``vram`` is a budget of
    memory in bytes. The teacher ``published`` is recorded as it is, without training. Raises UsageError when the config
    has prompts for a teacher that takes none, or freezes an encoder that starts from nothing, BadInputError when
    `start` is another network's run.
    """
    job = teaching_job(config, dataset, pretrained=weights, init_run=start, devices=devices)
    if config.teacher.name == PUBLISHED:
        if devices > 1:
            raise UsageError(f"{PUBLISHED!r} is a published model as it is, and nothing trains: start one process")
        return record_published(job, runs=runs, run=run)
    return run_job(job, runs=runs, run=run, devices=devices, vram=vram)


def teaching_job(
    config: Config, dataset: Dataset, *, pretrained: Path | None, init_run: Path | None, devices: int
) -> TrainingJob:
    """The run of a teacher: labels alone, from a published checkpoint or another run where there is one."""
    teacher = config.teacher
    split = DataSplit.of(dataset, validation=config.validation, seed=config.seed)
    settings = with_steps(with_precision(teacher.training), cases=len(split.train), devices=devices)
    if teacher.hold_encoder and init_run is None:
        raise UsageError(
            f"config {config.name!r} holds the image encoder of the run it starts from; give --start RUN, or set "
            "teacher.hold_encoder to false"
        )
    plan = Plan.from_dict(teacher.plan.model_dump(mode="json"))
    spec = NetworkSpec(
        family="teachers",
        name=teacher.name,
        backbone=teacher.backbone,
        in_channels=len(dataset.channels),
        num_classes=len(dataset.labels),
        patch=plan.patch,
        options=teacher.options,
    )
    published = PublishedFile(pretrained.name, file_digest(pretrained)) if pretrained else None
    first = _first_run(init_run, spec, published) if init_run else None

    def initialise(network: TeacherNetwork) -> None:
        if pretrained:
            network.freeze_pretrained()
        if first:
            _continue_from(first, network, dataset.labels)
        if teacher.hold_encoder:
            network.freeze_encoder()

    def make_step(network: TeacherNetwork, prompts: PromptSampler | None) -> SupervisedStep:
        predicts = network if isinstance(network, PredictsIoU) and network.records_iou else None
        if settings.iou_weight and predicts is None:
            raise UsageError(
                f"{teacher.name!r} does not learn the IoU of its masks; set teacher.training.iou_weight to 0, or take "
                "medsa with its option iou_head"
            )
        return SupervisedStep(
            dice_weight=settings.dice_weight,
            cross_entropy_weight=settings.cross_entropy_weight,
            focal_weight=settings.focal_weight,
            iou_weight=settings.iou_weight,
            network=predicts,
            prompts=prompts,
        )

    return TrainingJob(
        stage="teach",
        config=config,
        network=spec,
        plan=plan,
        split=split,
        settings=settings,
        prompts=teacher.prompts,
        objective=Objective(
            pretrained=published,
            init_run=file_digest(first.weights) if first else None,
            freeze_encoder=teacher.hold_encoder,
            prompts=None if teacher.prompts.kind == "none" else teacher.prompts.model_dump(mode="json"),
        ),
        title=f"teacher {teacher.name}",
        build=lambda: teacher_from_spec(spec),
        make_step=make_step,
        initialise=initialise,
        pretrained=pretrained,
    )


def _first_run(path: Path, spec: NetworkSpec, pretrained: PublishedFile | None) -> Run:
    """The run that training goes on from. Raises BadInputError when a network made by ``spec`` cannot."""
    run = Run.read(path)
    theirs = {
        "network": replace(run.config.network, num_classes=spec.num_classes),
        "published weights": run.config.objective.pretrained,
    }
    ours = {"network": spec, "published weights": pretrained}
    if wrong := [f"its {key}: {theirs[key]}, here {ours[key]}" for key in ours if theirs[key] != ours[key]]:
        raise BadInputError(f"{path}: cannot be gone on from; {'; '.join(wrong)}")
    if not run.weights.exists():
        raise BadInputError(f"{path}: no weights yet; finish this run first")
    return run


def _continue_from(first: Run, network: TeacherNetwork, class_names: dict[int, str]) -> None:
    """Fill the network from the best weights of ``first``, and say which layers another set of classes leaves."""
    if first.class_names == class_names:
        load_weights(network, first.weights)
        return
    anew = load_shared(network, first.weights)
    learned = ", ".join(first.class_names.values())
    console.print(
        f"{first.path}: its classes are {learned}; of its layers, {', '.join(anew) or 'none'} start anew here"
    )
