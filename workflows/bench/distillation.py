"""What distillation costs: a training step without a teacher, with cached targets and online, and the cache itself."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from ...configs.schema import Config
from ...distill.ensemble import Ensemble, EnsembleMember, check_teachers, read_teacher
from ...distill.losses import distance_of, distillation_loss
from ...distill.soft_targets import cached_targets
from ...distill.train import new_student, student_plan
from ...errors import UsageError
from ...training.patches import PatchBatches
from ...training.prepared import prepare_cases
from ...training.progress import Bar
from ...training.split import DataSplit
from ...training.validation import PooledDice
from ...volumes.datasets.registry import Dataset, read_case
from ...volumes.files import temporary_folder
from ...volumes.plan import grid
from ..data import config_for, open_dataset


def bench_distill(teachers: Sequence[str]) -> dict[str, Any]:
    """What distilling from these runs (RUN or RUN=WEIGHT) costs, with the config and the dataset of the first one.

    Raises UsageError without a run, BadInputError for runs that cannot teach that dataset.
    """
    if not teachers:
        raise UsageError("bench distill: name the runs that teach, for example `samkd bench distill runs/teach-...`")
    runs = [read_teacher(text) for text in teachers]
    first = runs[0][0]
    config = config_for(None, first, [])
    dataset = open_dataset(config, Path(first.config.data), runs=first.path.parent)
    check_teachers([run for run, _ in runs], dataset)
    ensemble = Ensemble([EnsembleMember.of(run, weight=weight) for run, weight in runs])
    return measure(config, dataset, ensemble, cases=4, steps=10)


def measure(config: Config, dataset: Dataset, ensemble: Ensemble, *, cases: int, steps: int) -> dict[str, Any]:
    """Measure with the config's student on the first training cases; nothing stays on disk.

    Step times are medians of ``steps`` after one to warm up, the kinds of step taking turns on the same patches, so
    that a machine which slows down slows all alike; ``online`` is the reason instead where the plans refuse it.
    ``dice`` is the float and the quantised targets' against the masks, pooled over the cases.
    """
    plan = student_plan(config)
    chosen = DataSplit.of(dataset, validation=config.validation, seed=config.seed).train[:cases]
    with temporary_folder() as scratch:
        cache = Path(scratch)
        with Bar("preparing cases", len(chosen)) as bar:
            plain = prepare_cases(chosen, dataset, plan, cache, on_case=bar.advance)
        taught = cached_targets(ensemble, chosen, plain, dataset, plan=plan, cache=cache, limit=float("inf"))
        files = [case.soft_targets for case in taught if case.soft_targets is not None]
        sizes = [path.stat().st_size for path in cache.rglob("*.targets")]
        exact, rounded, changed = PooledDice(dataset.labels), PooledDice(dataset.labels), 0
        for case, file, prepared in zip(chosen, files, plain, strict=True):
            volume, _ = read_case(case, dataset)
            found = ensemble.probabilities(volume, grid(plan, volume.geometry)).argmax(0)
            kept = np.asarray(file).argmax(0)
            exact.add(found, prepared.labels)
            rounded.add(kept, prepared.labels)
            changed += int(np.count_nonzero(found != kept))
        rng = np.random.default_rng(0)
        reads = []
        for _ in range(20):
            file = files[int(rng.integers(len(files)))]
            started = time.perf_counter()
            _ = file[(slice(None), *_anywhere(rng, file.shape[1:], plan.patch))]
            reads.append(time.perf_counter() - started)
        return {
            "bytes": mean(sizes),
            "bytes_float16": mean(2 * int(np.prod(file.shape)) for file in files),
            "read_ms": 1e3 * median(reads),
            "dice": {"float32": exact.scores()["mean"], "cached": rounded.scores()["mean"]},
            "changed_voxels": changed,
            **_step_times(config, dataset, ensemble, plain=plain, taught=taught, steps=steps),
        }


def _step_times(config: Config, dataset: Dataset, ensemble: Ensemble, *, plain, taught, steps: int) -> dict[str, Any]:
    plan, settings = student_plan(config), config.student.training
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
    return {
        "seconds": {kind: median(taken[1:]) for kind, taken in times.items()},
        "refused": refused,
        "batch": settings.batch,
        "student": config.student.name,
        "patch": plan.patch,
        "device": where,
    }


def _anywhere(rng: np.random.Generator, shape: tuple[int, ...], patch: tuple[int, ...]) -> list[slice]:
    starts = [int(rng.integers(max(size - width, 0) + 1)) for size, width in zip(shape, patch, strict=True)]
    return [slice(a, min(a + width, size)) for a, width, size in zip(starts, patch, shape, strict=True)]
