"""What a verb does that no single room can: find the dataset, pack a run, segment with any model, score, compare."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Recipe, load_recipe, parse_recipe
from .errors import BadInputError, SamkdError, UsageError
from .models import Model, is_package, load_model
from .volumes.dataset import Case, Dataset, read_dataset, read_labelled_case
from .volumes.files import atomic_path
from .volumes.prompt_input import Request

if TYPE_CHECKING:
    from .training.run import Run
    from .volumes.geometry import Volume


def open_dataset(recipe: Recipe, data: Path | None, *, runs: Path) -> Dataset:
    """The dataset of a recipe: the folder given, the recipe's own, or the built-in phantom, made on first use."""
    folder = data or (Path(recipe.data) if recipe.data else None)
    if folder is not None:
        return read_dataset(folder)
    if recipe.phantom is None:
        raise UsageError(f"recipe {recipe.name!r} needs a dataset; give --data DIR")
    from .volumes.phantom import write_phantom

    made = recipe.phantom
    name = f"phantom-{made.training}-{made.test}-{made.seed}"
    return read_dataset(write_phantom(runs / "data" / name, **made.model_dump()))


def recipe_for(config: str | None, source: "Run | None", overrides: list[str]) -> Recipe:
    """The recipe named, else the one the source run was made with, else the phantom's."""
    if config is None and source is not None:
        return parse_recipe(source.config["recipe"], overrides=overrides, source=f"{source.path}/config.yaml")
    return load_recipe(config or "phantom", overrides)


def deploy_run(
    run: "Run", *, target: str, data: Path | None, out: Path | None, runs: Path, overrides: list[str]
) -> Path:
    """Pack a run for a device and return the package folder; the gate judges it on the run's validation cases.

    Raises UsageError for an unknown target, GateRefusedError when the converted model lost too much.
    """
    if target != "openvino":
        raise UsageError(f"target {target!r} is not available; choose openvino")
    from .deploy.recipe import deploy_student
    from .distill.networks import load_network
    from .training.cases import prepare_case
    from .training.inference import patch_function
    from .training.patches import PatchBatches
    from .training.progress import Bar
    from .training.stage import Cohort
    from .volumes.pipeline import segment

    recipe = recipe_for(None, run, overrides)
    settings = recipe.deployment
    dataset = read_dataset(data or Path(run.config["data"]))
    cohort = Cohort.of(dataset, validation=recipe.validation, seed=recipe.seed)
    network, plan = load_network(run), run.plan
    train = [prepare_case(case, dataset, plan, runs / "cache") for case in cohort.train[: settings.calibration]]
    patches = PatchBatches.plain(train, patch=plan.patch, count=settings.calibration, seed=recipe.seed)
    held_out, reference = [], []
    with Bar("held-out scans, torch", len(cohort.validation)) as bar:
        for case in cohort.validation:
            volume, truth = read_labelled_case(case, dataset)
            held_out.append((case.name, volume, truth))
            reference.append(segment(volume, plan, patch_function(network), classes=len(run.labels)))
            bar.advance(case.name)
    name = f"{run.path.name.removeprefix('distill-')}-{target}-{settings.precision}"
    return deploy_student(
        network,
        plan=plan,
        dataset_labels=run.labels,
        in_channels=len(run.config["channels"]),
        calibration=patches,
        held_out=held_out,
        reference=reference,
        precision=settings.precision,
        max_drop=settings.max_drop,
        destination=out or runs / "packages" / name,
        sample=cohort.validation[0].image,
        provenance={
            "run": run.path.name,
            "stage": run.stage,
            "recipe": recipe.name,
            "network": run.config["network"]["name"],
            "objective": run.config["objective"],
            "test": (run.metrics()["test"] or {}).get("summary"),
        },
        description={
            "dataset": dataset.name,
            "text": recipe.description,
            "channels": list(dataset.channels),
        },
    )


def predict(model: Path, scan: Path, out: Path, *, prompts: Request | None = None) -> list[Path]:
    """Write the masks of one scan, or of every NIfTI in a folder; masks keep their scan's file name.

    Raises BadInputError for a scan that cannot be used; a folder is refused before anything is written when a
    scan in it is missing. UsageError for prompts with several scans, or with a network that takes none.
    """
    scans = nifti_files(scan)
    targets = [out] if scan.is_file() else [out / path.name for path in scans]
    if prompts is not None and len(scans) > 1:
        raise UsageError(f"{scan}: {len(scans)} scans, but prompts belong to one; give them with that scan")
    from .volumes.nifti import read_scan, write_labels

    loaded = load_model(model)
    asked = None
    if prompts is not None:
        loaded.accept()
        asked = prompts.resolve(loaded.labels)
        loaded.accept(asked.kinds)
    for source, target in zip(scans, targets, strict=True):
        volume = read_scan(source, channels=loaded.channels)
        write_labels(target, loaded.segment(volume, prompts=asked), volume.geometry, like=source)
    return targets


def nifti_files(path: Path) -> list[Path]:
    """The NIfTI file itself, or all in a folder. Raises BadInputError when there is none."""
    if path.is_file():
        return [path]
    found = sorted(entry for entry in path.glob("*") if entry.name.endswith((".nii", ".nii.gz")))
    if not found:
        raise BadInputError(f"{path}: no NIfTI scan (.nii, .nii.gz) here")
    return found


def evaluate(model: Path, data: Path, *, prompt_from_truth: str | None = None) -> dict[str, Any]:
    """Scores of a model, or of a folder of masks named like the scans, on the labelled test cases of a dataset.

    With `prompt_from_truth` ("point" or "box") the network is shown where each class is: scores of a user who knows,
    and the result says so. UsageError for a network that takes no prompts.
    """
    from .evaluation.scores import score_case, summarise
    from .training.progress import Bar
    from .volumes.nifti import read_labels

    if prompt_from_truth not in (None, "point", "box"):
        raise UsageError(f"--prompt-from-truth {prompt_from_truth!r}: choose point or box")
    dataset = read_dataset(data)
    cases = labelled_test(dataset)
    masks = model.is_dir() and not is_package(model) and not (model / "config.yaml").exists()
    if masks and prompt_from_truth:
        raise UsageError(f"{model}: a folder of masks takes no prompts")
    loaded = None if masks else load_model(model)
    if loaded and prompt_from_truth:
        loaded.accept(frozenset({prompt_from_truth}))
    rows = {}
    with Bar("test scans", len(cases)) as bar:
        for case in cases:
            volume, truth = read_labelled_case(case, dataset)
            if loaded is None:
                found, geometry = read_labels(model / case.image.name)
                if not geometry.same_grid(volume.geometry):
                    raise BadInputError(f"{model / case.image.name}: this mask is not on the grid of {case.image}")
            elif prompt_from_truth:
                found = _prompted_by_truth(loaded, volume, truth, prompt_from_truth)
            else:
                found = loaded.segment(volume)
            rows[case.name] = score_case(found, truth, spacing=volume.geometry.spacing, labels=dataset.labels)
            bar.advance(case.name)
    return {"summary": summarise(rows), "cases": rows, "prompts_from_truth": prompt_from_truth}


def _prompted_by_truth(loaded: Model, volume: "Volume", truth: Any, kind: str) -> Any:
    from .training.prompts import prompts_from_truth

    prompts = prompts_from_truth(kind, truth, labels=loaded.labels, spacing=volume.geometry.spacing)
    return loaded.segment(volume, prompts=prompts)


def write_json(path: Path, values: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def labelled_test(dataset: Dataset) -> list[Case]:
    cases = [case for case in dataset.test if case.label is not None]
    if not cases:
        raise BadInputError(f"{dataset.root}: no labelled test case to score on")
    return cases


@dataclass(frozen=True)
class DeviceRun:
    """What runtime.pyz, in a process of its own, did with some scans."""

    masks: dict[str, Path]
    report: dict[str, Any]


def on_device(package: Path, scans: Sequence[Path], out: Path, *, threads: int | None = None) -> DeviceRun:
    """Segment scans with the package's own runtime, as the device would: another process, no torch in it."""
    report = out / "report.json"
    command = [sys.executable, str(package / "runtime.pyz"), "predict", *map(str, scans)]
    command += ["-o", str(out / "masks"), "--report", str(report)]
    command += ["--threads", str(threads)] if threads else []
    (out / "masks").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SamkdError(f"{package}: its runtime failed with exit {done.returncode}: {done.stderr.strip()}")
    return DeviceRun(
        {path.name: out / "masks" / path.name for path in scans},
        json.loads(report.read_text(encoding="utf-8")),
    )


def bench(package: Path, *, shape: tuple[int, int, int], threads: int | None) -> dict[str, Any]:
    """Segment one generated CT of ``shape`` (slices, rows, columns) with a package's runtime; its run report."""
    from .volumes.nifti import write_scan
    from .volumes.phantom import make_case

    with tempfile.TemporaryDirectory() as scratch:
        scan = Path(scratch) / "scan.nii.gz"
        volume, _ = make_case(0, shape=shape)
        write_scan(scan, volume)
        return on_device(package, [scan], Path(scratch), threads=threads).report


def doctor() -> list[tuple[str, str, str]]:
    """(what, state, what to do) for everything samkd can use on this machine."""
    import importlib.metadata
    import importlib.util
    import os

    rows = [("python", sys.version.split()[0], ""), ("cores", str(os.cpu_count()), "")]
    extras = {
        "torch": "",
        "monai": "",
        "segment-anything": "",
        "openvino": "openvino",
        "nncf": "openvino",
        "onnxruntime": "onnx",
        "torch-tensorrt": "tensorrt",
        "pydicom": "dicom",
    }
    for name, extra in extras.items():
        try:
            rows.append((name, importlib.metadata.version(name), ""))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "missing", f"pip install 'samkd[{extra}]'" if extra else f"pip install {name}"))
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append(("GPU", ", ".join(devices) or "none", "" if devices else "training runs on the CPU"))
    return rows
