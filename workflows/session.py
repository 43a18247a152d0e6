"""What a verb does that no single room can: pack a run, segment with any model, score, measure."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs.load import load_recipe, parse_recipe
from ..configs.schema import Recipe
from ..errors import BadInputError, SamkdError, UsageError, about
from ..volumes.datasets.registry import Dataset, read_dataset, read_labelled_case
from ..volumes.files import atomic_path, make_folder
from ..volumes.prompt_parsing import Request
from .data import labelled_test, open_dataset, with_recipe_classes, with_unlabelled
from .models import Model, is_package, load_model

if TYPE_CHECKING:
    from ..training.run import Run
    from ..volumes.geometry import Volume


# What a student may be prompted with on the device, by what it was trained with (config.PromptTraining).
_PROMPTED = {"point": ("point",), "points": ("point", "outside point"), "box": ("box",)}


def recipe_for(config: str | None, source: "Run | None", overrides: list[str]) -> Recipe:
    """The recipe named, else the one the source run was made with, else the phantom's."""
    if config is None and source is not None:
        return parse_recipe(source.config.recipe, overrides=overrides, source=f"{source.path}/config.yaml")
    return load_recipe(config or "phantom", overrides)


@dataclass(frozen=True)
class Lesson:
    """What one `samkd distill` works with: the runs that teach, each with its weight, their data, the lambdas."""

    recipe: Recipe
    dataset: Dataset
    teachers: list[tuple["Run", float]]
    lambdas: list[float]


def lesson(
    config: str | None,
    teachers: Sequence[str],
    *,
    lambdas: Sequence[float],
    data: Path | None,
    unlabelled: Path | None,
    runs: Path,
    overrides: Sequence[str],
) -> Lesson:
    """Read the teachers, else the newest one (none for a recipe with lambda = 1 alone), and open what they teach from.

    Recipe and dataset are those named, else the first teacher's; `lambdas` default to the recipe's. Raises UsageError
    when nobody teaches `unlabelled` scans.
    """
    from ..distill.ensemble import read_teacher
    from ..training.run import newest_run

    read = [read_teacher(text) for text in teachers]
    if not read and (config is None or list(lambdas) != [1]):
        read = [(newest_run(runs, "teach", recipe=load_recipe(config, []).name if config else None), 1.0)]
    source = read[0][0] if read else None
    first = [f"lambda={lambdas[0]}"] if lambdas else []
    recipe = recipe_for(config, source, [*first, *overrides])
    asked = list(lambdas) or [recipe.lambda_]
    if unlabelled is not None and min(asked) == 1:
        raise UsageError("--unlabelled: with lambda = 1 there is no teacher, and scans without masks teach nothing")
    dataset = open_dataset(recipe, data or (Path(source.config.data) if source else None), runs=runs)
    return Lesson(recipe, with_unlabelled(dataset, unlabelled) if unlabelled else dataset, read, asked)


def deploy_run(
    run: "Run",
    *,
    target: str,
    data: Path | None,
    out: Path | None,
    runs: Path,
    overrides: list[str],
    sign: Path | None = None,
) -> Path:
    """Pack a run for a device and return the package folder; the gate judges it on the run's validation cases.

    Raises UsageError for an unknown target, GateRefusedError when the converted model lost too much.
    """
    from ..deploy.acceptance.candidates import Prompted
    from ..deploy.export.precision import Precision
    from ..deploy.export.registry import require_precision, target_named
    from ..deploy.package.signing import Signer
    from ..deploy.pipeline import deploy_student
    from ..distill.networks import load_network
    from ..students.small_sam.model import SmallSAM
    from ..training.patches import PatchBatches
    from ..training.predictor import make_predictor
    from ..training.prepared import prepare_case
    from ..training.progress import Bar
    from ..training.prompt_sampling import prompts_from_truth
    from ..training.split import DataSplit
    from ..volumes.io.scans import as_nifti
    from ..volumes.pipeline import segment

    made_by = target_named(target)
    if sign is not None:
        Signer.of(sign)
    recipe = recipe_for(None, run, overrides)
    settings = recipe.deployment
    require_precision(made_by, Precision(settings.precision))  # before the long pass through torch
    dataset = open_dataset(recipe, data or Path(run.config.data), runs=runs)
    cohort = DataSplit.of(dataset, validation=recipe.validation, seed=recipe.seed)
    network, plan = load_network(run), run.plan
    train = [prepare_case(case, dataset, plan, runs / "cache") for case in cohort.train[: settings.calibration]]
    patches = PatchBatches.plain(train, patch=plan.patch, count=settings.calibration, seed=recipe.seed)
    asked = run.config.objective.prompts if isinstance(network, SmallSAM) else None
    takes = _PROMPTED[asked["kind"]] if asked else ()
    kind = "box" if "box" in takes else "point"
    held_out, reference, prompts, prompted = [], [], [], []
    infer = make_predictor(network)
    with Bar("held-out scans, torch", len(cohort.validation)) as bar:
        for case in cohort.validation:
            volume, truth = read_labelled_case(case, dataset)
            held_out.append((case.name, volume, truth))
            reference.append(segment(volume, plan, infer, classes=len(run.labels)))
            if takes:
                prompts.append(prompts_from_truth(kind, truth, labels=run.labels, spacing=volume.geometry.spacing))
                prompted.append(segment(volume, plan, infer, classes=len(run.labels), prompts=prompts[-1]))
            bar.advance(case.name)
    name = f"{run.path.name.removeprefix('distill-')}-{target}-{settings.precision}"
    with tempfile.TemporaryDirectory() as scratch:
        return deploy_student(
            network,
            plan=plan,
            dataset_labels=run.labels,
            in_channels=len(run.config.channels),
            calibration=patches,
            held_out=held_out,
            reference=reference,
            precision=settings.precision,
            max_drop=settings.max_drop,
            destination=out or runs / "packages" / name,
            target=target,
            per_class=settings.per_class,
            sign=sign,
            takes=takes,
            prompted=Prompted(kind, prompts, prompted) if takes else None,
            sample=as_nifti(cohort.validation[0].image, Path(scratch), channels=len(dataset.channels)),
            provenance={
                "run": run.path.name,
                "stage": run.stage,
                "recipe": recipe.name,
                "network": run.config.network.name,
                "objective": run.config.objective.to_dict(),
                "test": (run.metrics()["test"] or {}).get("summary"),
            },
            description={
                "dataset": dataset.name,
                "text": recipe.description,
                "channels": list(dataset.channels),
            },
        )


def predict(
    model: Path,
    scan: Path,
    out: Path,
    *,
    prompts: Request | None = None,
    base: Path | None = None,
    seg_type: str = "binary",
    trust: Path | None = None,
) -> list[Path]:
    """Write the masks of one scan (NIfTI, picture), or of every scan in a folder (videos and DICOM series too), named
    like their scans. One DICOM series gets a DICOM-SEG of that type where `out` is named *.dcm.

    Raises BadInputError for a scan that cannot be used; a folder is refused before anything is written when no scan is
    in it. UsageError for prompts with several scans, or with a network that takes none. `base` and `trust` as in
    models.load_model.
    """
    from ..volumes.io.scans import mask_paths, read_source, sources, write_mask

    sources(scan)
    loaded = load_model(model, base=base, trust=trust)
    scans = sources(scan, channels=loaded.channels)
    targets = mask_paths(scans, out, seg_type=seg_type)
    if prompts is not None and len(scans) > 1:
        raise UsageError(f"{scan}: {len(scans)} scans, but prompts belong to one; give them with that scan")
    if targets != [out]:
        make_folder(out)
    asked = None
    if prompts is not None:
        asked = prompts.accepted(loaded.path, labels=loaded.labels, takes=loaded.takes)
    for source, target in zip(scans, targets, strict=True):
        with about(source.place):
            volume = read_source(source, channels=loaded.channels)
            labels = loaded.segment(volume, prompts=asked)
        write_mask(target, labels, volume.geometry, source=source, names=loaded.labels, seg_type=seg_type)
    return targets


def evaluate(
    model: Path,
    data: Path,
    *,
    prompt_from_truth: str | None = None,
    split: Path | None = None,
    modality: str | None = None,
    base: Path | None = None,
    config: str | None = None,
) -> dict[str, Any]:
    """Scores of a model, or of a folder of masks named like the scans, on the labelled test cases of a dataset.

    The test cases of a `split` (a run's splits.json) take their place. `modality` ("CT" or "MR") keeps one of the two
    in a dataset that holds both. With `prompt_from_truth` ("point" or "box") the network is shown where each class is:
    scores of a user who knows, and the result says so. UsageError for a network that takes no prompts. `base` is the
    published file that a run adapts, where it has moved. The recipe `config` says which classes of the dataset the
    model's are; BadInputError when they are others than the dataset's.
    """
    from ..evaluation.scores import score_case, summarise
    from ..training.progress import Bar
    from ..volumes.datasets.splits import assign, read_split
    from ..volumes.io.scans import mask_in, read_mask

    if prompt_from_truth not in (None, "point", "box"):
        raise UsageError(f"--prompt-from-truth {prompt_from_truth!r}: choose point or box")
    recipe = load_recipe(config) if config else None
    dataset = read_dataset(data, modality=modality or (recipe and recipe.modality))
    if recipe is not None:
        dataset = with_recipe_classes(dataset, recipe)
    if split is not None:
        dataset = assign(dataset, read_split(split))
    cases = labelled_test(dataset)
    masks = model.is_dir() and not is_package(model) and not (model / "config.yaml").exists()
    if masks and (prompt_from_truth or base):
        raise UsageError(f"{model}: a folder of masks takes neither prompts nor --weights")
    loaded = None if masks else load_model(model, base=base)
    own = _recipe_of(model) if loaded and loaded.labels != dataset.labels and recipe is None else None
    if own is not None and own.classes is not None:
        dataset = with_recipe_classes(dataset, own)
    if loaded and loaded.labels != dataset.labels:
        raise BadInputError(
            f"{data}: its classes are {list(dataset.labels.values())}, {model} knows {list(loaded.labels.values())}; "
            f"give -c RECIPE, whose `classes` say which are which"
        )
    if loaded and prompt_from_truth:
        loaded.accept(frozenset({prompt_from_truth}))
    rows = {}
    with Bar("test scans", len(cases)) as bar:
        for case in cases:
            volume, truth = read_labelled_case(case, dataset)
            if loaded is None:
                mask = mask_in(model, case.image)
                found, geometry = read_mask(mask)
                if not geometry.same_grid(volume.geometry):
                    raise BadInputError(f"{mask.files[0]}: this mask is not on the grid of {case.image.files[0]}")
            elif prompt_from_truth:
                found = _prompted_by_truth(loaded, volume, truth, prompt_from_truth)
            else:
                with about(case.image.place):
                    found = loaded.segment(volume)
            rows[case.name] = score_case(found, truth, spacing=volume.geometry.spacing, labels=dataset.labels)
            bar.advance(case.name)
    return {"summary": summarise(rows), "cases": rows, "prompts_from_truth": prompt_from_truth}


def _recipe_of(model: Path) -> Recipe | None:
    """The recipe a run was made with; None for a package."""
    from ..training.run import Run

    return None if is_package(model) else recipe_for(None, Run.read(model), [])


def _prompted_by_truth(loaded: Model, volume: "Volume", truth: Any, kind: str) -> Any:
    from ..training.prompt_sampling import prompts_from_truth

    prompts = prompts_from_truth(kind, truth, labels=loaded.labels, spacing=volume.geometry.spacing)
    return loaded.segment(volume, prompts=prompts)


def write_json(path: Path, values: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class DeviceRun:
    """What runtime.pyz, in a process of its own, did with some scans."""

    masks: dict[str, Path]
    report: dict[str, Any]


def on_device(package: Path, scans: Sequence[Path], out: Path, *, threads: int | None = None) -> DeviceRun:
    """Segment scans with the package's own runtime, as the device would: another process, no torch in it.

    `package` is a folder or a zip; every file is checked before its runtime is started.
    """
    from ..deploy.runtime.package import unpacked

    report = out / "report.json"
    (out / "masks").mkdir(parents=True, exist_ok=True)
    with unpacked(package) as folder:
        command = [sys.executable, str(folder / "runtime.pyz"), "predict", *map(str, scans)]
        command += ["-o", str(out / "masks"), "--report", str(report)]
        command += ["--threads", str(threads)] if threads else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SamkdError(f"{package}: its runtime failed with exit {done.returncode}: {done.stderr.strip()}")
    return DeviceRun(
        {path.name: out / "masks" / path.name for path in scans},
        json.loads(report.read_text(encoding="utf-8")),
    )


def bench_distill(teachers: Sequence[str]) -> dict[str, Any]:
    """What distilling from these runs costs, with the recipe and the dataset of the first one. Raises UsageError
    without a run.
    """
    if not teachers:
        raise UsageError("bench distill: name the runs that teach, for example `samkd bench distill runs/teach-...`")
    from ..distill.ensemble import Ensemble, EnsembleMember, check_teachers, read_teacher
    from .bench.distillation import bench_distill as measure

    read = [read_teacher(text) for text in teachers]
    recipe = recipe_for(None, read[0][0], [])
    dataset = open_dataset(recipe, Path(read[0][0].config.data), runs=read[0][0].path.parent)
    check_teachers([run for run, _ in read], dataset)
    ensemble = Ensemble([EnsembleMember.of(run, weight=weight) for run, weight in read])
    return measure(recipe, dataset, ensemble, cases=4, steps=10)
