"""What distillation costs: a training step without a teacher, with cached targets and online, and the cache itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

from ...configs.schema import Config
from ...distill.ensemble import Ensemble, EnsembleMember, check_teachers, read_teacher
from ...distill.losses import distance_of, distillation_loss
from ...distill.soft_targets import cached_targets
from ...distill.target_cache import TargetFile
from ...distill.train import new_student, student_plan
from ...errors import UsageError
from ...training.patches import PatchBatches
from ...training.precision import with_precision
from ...training.prepared import prepare_cases
from ...training.progress import Bar
from ...training.run import Run
from ...training.split import DataSplit
from ...training.validation import PooledDice
from ...volumes.datasets.registry import Dataset, read_case
from ...volumes.files import temporary_folder
from ...volumes.plan import grid
from ..data import config_for, open_dataset


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Median seconds of a training step by its kind: alone (no teacher), cached, and online where the plans allow it.

    `refused` is the reason where they do not; `student`, `batch`, `patch` (D, H, W) and `device` say what was timed.
    """

    seconds: dict[str, float]
    refused: str | None
    student: str
    batch: int
    patch: tuple[int, int, int]
    device: str


@dataclass(frozen=True, kw_only=True)
class DistillationCosts:
    """What the cache of soft targets takes and loses, and the seconds of a training step.

    `bytes_per_case` and `float16_bytes` are means over cases, `read_ms` the median milliseconds in which one patch is
    read. `exact_dice` and `cached_dice` are the float32 and the cached targets' against the masks, pooled over the
    cases; `changed_voxels` counts the voxels of another class in the cache.
    """

    bytes_per_case: float
    float16_bytes: float
    read_ms: float
    exact_dice: float
    cached_dice: float
    changed_voxels: int
    steps: StepTimes


def bench_distill(teachers: Sequence[str]) -> DistillationCosts:
    """What distilling from these runs (RUN or RUN=WEIGHT) costs, with the config and the dataset of the first one.

    Raises UsageError without a run, BadInputError for runs that cannot teach that dataset.
    """
    if not teachers:
        raise UsageError("bench distill: name the runs that teach, for example `samkd bench distill runs/teach-...`")
    runs = [(teacher, weight) for teacher, weight in map(read_teacher, teachers) if isinstance(teacher, Run)]
    if len(runs) < len(teachers):
        raise UsageError("bench distill: folders of predictions cost no training step; name runs alone")
    first = runs[0][0]
    config = config_for(None, first, [])
    dataset = open_dataset(config, Path(first.config.data), runs=first.path.parent)
    check_teachers([run for run, _ in runs], dataset)
    ensemble = Ensemble([EnsembleMember.of(run, weight=weight) for run, weight in runs])
    return measure(config, dataset, ensemble, cases=4, steps=10)


def measure(config: Config, dataset: Dataset, ensemble: Ensemble, *, cases: int, steps: int) -> DistillationCosts:
    """Measure with the config's student on the first training cases; nothing stays on disk.

    Step times are medians of ``steps`` after one to warm up, the kinds of step taking turns on the same patches, so
    that a machine which slows down slows all alike.
    """
    plan = student_plan(config)
    chosen = DataSplit.of(dataset, validation=config.validation, seed=config.seed).train[:cases]
    with temporary_folder() as scratch:
        cache = Path(scratch)
        with Bar("preparing cases", len(chosen)) as bar:
            plain = prepare_cases(chosen, dataset, plan, cache, on_case=bar.advance)
        taught = cached_targets(ensemble, chosen, plain, dataset, plan=plan, cache=cache, limit=float("inf"))
        files = [case.soft_targets for case in taught if isinstance(case.soft_targets, TargetFile)]
        exact, cached, changed = PooledDice(dataset.labels), PooledDice(dataset.labels), 0
        for case, file, prepared in zip(chosen, files, plain, strict=True):
            volume, _ = read_case(case, dataset)
            labels = ensemble.probabilities(volume, grid(plan, volume.geometry)).argmax(0)
            cached_labels = np.asarray(file).argmax(0)
            exact.add(labels, prepared.labels)
            cached.add(cached_labels, prepared.labels)
            changed += int(np.count_nonzero(labels != cached_labels))
        return DistillationCosts(
            bytes_per_case=mean(path.stat().st_size for path in cache.rglob("*.targets")),
            float16_bytes=mean(2 * int(np.prod(file.shape)) for file in files),
            read_ms=1e3 * median(_read_times(files, plan.patch, count=20)),
            exact_dice=exact.scores()["mean"],
            cached_dice=cached.scores()["mean"],
            changed_voxels=changed,
            steps=_step_times(config, dataset, ensemble, plain=plain, taught=taught, steps=steps),
        )


def _read_times(files: Sequence[TargetFile], patch: tuple[int, int, int], *, count: int) -> list[float]:
    """Seconds of `count` reads of a patch, each somewhere in one of the files."""
    rng = np.random.default_rng(0)
    seconds = []
    for _ in range(count):
        file = files[int(rng.integers(len(files)))]
        started = time.perf_counter()
        _ = file[_anywhere(rng, file.shape[1:], patch)]
        seconds.append(time.perf_counter() - started)
    return seconds


def _step_times(config: Config, dataset: Dataset, ensemble: Ensemble, *, plain, taught, steps: int) -> StepTimes:
    plan, settings = student_plan(config), with_precision(config.student.training)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    network = new_student(config, dataset).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    distance = distance_of(config.student.distillation)

    def batches(cases: list) -> PatchBatches:
        options = settings.model_dump(include={"batch", "foreground"})
        return PatchBatches(
            cases, patch=plan.patch, steps=steps + 1, augmentation=settings.augmentation, seed=config.seed, **options
        )

    def step(source: PatchBatches, number: int, teach: Callable | None, lambda_: float) -> float:
        started = time.perf_counter()
        batch = {name: tensor.to(device) for name, tensor in source[number].items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
            logits = network(batch["image"])
        teacher = teach(batch["image"]) if teach else batch.get("soft_targets")
        distillation_loss(logits, batch["labels"], teacher, lambda_=lambda_, distance=distance)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    kinds: dict[str, tuple[PatchBatches, Callable | None, float]] = {
        "alone": (batches(plain), None, 1.0),
        "cached": (batches(taught), None, 0.5),
    }
    refused = None
    try:
        ensemble.check_online(plan)
        kinds["online"] = (batches(plain), ensemble.on_patches, 0.5)
    except UsageError as error:
        refused = str(error)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with Bar("training steps", steps + 1) as bar:
        for number in range(steps + 1):
            for kind, (source, teach, lambda_) in kinds.items():
                times[kind].append(step(source, number, teach, lambda_))
            bar.advance()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return StepTimes(
        seconds={kind: median(seconds[1:]) for kind, seconds in times.items()},
        refused=refused,
        student=config.student.name,
        batch=settings.batch,
        patch=plan.patch,
        device=where,
    )


def _anywhere(
    rng: np.random.Generator, shape: tuple[int, ...], patch: tuple[int, ...]
) -> tuple[slice, slice, slice, slice]:
    """Somewhere in an array [K, *shape], a patch of all its K channels."""
    starts = [int(rng.integers(max(size - width, 0) + 1)) for size, width in zip(shape, patch, strict=True)]
    d, h, w = (slice(a, min(a + width, size)) for a, width, size in zip(starts, patch, shape, strict=True))
    return slice(None), d, h, w
