"""Teacher, control, student and package side by side: the report, and the demo that ends with one."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..configs.load import load_recipe
from ..errors import BadInputError
from ..volumes.datasets.registry import read_labelled_case
from .data import labelled_test, open_dataset
from .session import deploy_run, on_device, recipe_for

if TYPE_CHECKING:
    from ..training.run import Run


@dataclass(frozen=True)
class Comparison:
    """Teacher, control, student and package side by side on the test scans."""

    columns: dict[str, dict[str, float | None]]  # teacher, control, student, package -> class or "mean" -> Dice
    package: Path
    html: Path
    facts: dict[str, str]


def report(package: Path | None, *, out: Path, data: Path | None, runs: Path, base: Path | None = None) -> Comparison:
    """Compare a package with its student, the student's control (if it was trained) and teacher in one HTML file.

    The package's masks are made by its own runtime in a process of its own. `base` as in networks.load_network. Raises
    BadInputError when the runs that the package comes from are not in ``runs``.
    """
    from ..distill.networks import load_network
    from ..evaluation.html_report import write_report
    from ..evaluation.overlay import comparison_png
    from ..evaluation.scores import score_case, summarise
    from ..training.predictor import make_predictor
    from ..training.run import Run, control_of
    from ..volumes.geometry import reorient
    from ..volumes.io.nifti import read_labels
    from ..volumes.io.scans import as_nifti
    from ..volumes.pipeline import segment

    package = package or newest_package(runs)
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    origin = manifest["provenance"]
    student = Run.read(runs / origin["run"])
    stages: dict[str, Run] = {}
    if student.stage == "distill":
        taught = student.config.objective.teachers
        for number, teacher in enumerate(taught, start=1):
            stages["teacher" if len(taught) == 1 else f"teacher {number}"] = Run.read(runs / teacher.run)
    if control := control_of(student, runs):
        stages["student without teacher"] = control
    if student.stage == "distill":
        stages["student with teacher"] = student

    dataset = open_dataset(recipe_for(None, student, []), data or Path(student.config.data), runs=runs)
    cases = labelled_test(dataset)
    with tempfile.TemporaryDirectory() as scratch:
        scans = {case.name: as_nifti(case.image, Path(scratch), channels=len(dataset.channels)) for case in cases}
        device = on_device(package, list(scans.values()), Path(scratch))
        rows, masks = {}, {}
        for case in cases:
            volume, truth = read_labelled_case(case, dataset)
            masks[case.name] = read_labels(device.masks[scans[case.name].name])[0]
            rows[case.name] = score_case(
                masks[case.name], truth, spacing=volume.geometry.spacing, labels=dataset.labels
            )
    summaries = {name: (run.metrics()["test"] or {}).get("summary") for name, run in stages.items()}
    summaries["package"] = summarise(rows)

    networks = {name: (run.plan, make_predictor(load_network(run, base=base))) for name, run in stages.items()}
    pictures = {}
    for case in cases[:3]:
        volume, truth = read_labelled_case(case, dataset)
        upright = volume.geometry.oriented("SPL")
        labels = {"truth": truth}
        for name, (plan, infer) in networks.items():
            labels[name] = segment(volume, plan, infer, classes=len(dataset.labels))
        labels["package"] = masks[case.name]
        pictures[case.name] = comparison_png(
            reorient(volume.array[0], volume.geometry, upright),
            {name: reorient(mask, volume.geometry, upright) for name, mask in labels.items()},
            spacing=upright.spacing,
        )
    columns = {
        name: {
            **{label: scores["dice"] for label, scores in summary["per_class"].items()},
            "mean": summary["mean"]["dice"],
        }
        for name, summary in summaries.items()
        if summary
    }
    facts = {
        "recipe": origin["recipe"],
        "dataset": f"{dataset.name}: {len(cases)} test scans",
        "package": f"{package.name}, {size_of(package) / 1e6:.1f} MB, {manifest['precision']}",
        "device": (
            f"{device.report['seconds_per_scan']:.2f} s and {device.report['peak_memory_mb']:.0f} MB per scan "
            f"(median time, peak memory of the whole process)"
        ),
        **{
            f"{name} run": f"{run.path.name}, {run.metrics()['steps']} steps, {run.metrics()['seconds']:.0f} s, "
            f"{run.metrics()['parameters'] / 1e6:.2f} M parameters"
            for name, run in stages.items()
        },
    }
    curves = {
        "training loss": {name: smoothed(run, "loss") for name, run in stages.items()},
        "validation Dice": {name: points(run, "dice") for name, run in stages.items()},
    }
    write_report(
        out,
        title=f"samkd: {origin['recipe']}",
        facts=facts,
        curves=curves,
        columns=columns,
        pictures=pictures,
    )
    return Comparison(columns, package, out, facts)


def newest_package(runs: Path) -> Path:
    found = sorted((runs / "packages").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise BadInputError(f"{runs}: no package here; run `samkd deploy` first or name one")
    return found[-1].parent


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def points(run: "Run", key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in run.history() if key in entry]


def smoothed(run: "Run", key: str, window: int = 10) -> list[tuple[float, float]]:
    """Mean over ``window`` steps, one point per window, so that a curve can be read."""
    raw = points(run, key)
    chunks = [raw[start : start + window] for start in range(0, len(raw), window)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]


def demo(runs: Path, overrides: list[str]) -> Comparison:
    """Teach, distil (with the control), deploy and report on the built-in phantom."""
    from ..distill.study import study
    from ..teachers.train import teach

    recipe = load_recipe("phantom", overrides)
    dataset = open_dataset(recipe, None, runs=runs)
    teacher = teach(recipe, dataset, runs=runs)
    made = study(recipe, dataset, teachers=[(teacher, 1.0)], lambdas=[recipe.lambda_], runs=runs)
    student = made.students[recipe.lambda_]
    package = deploy_run(student, target="openvino", data=None, out=None, runs=runs, overrides=overrides)
    return report(package, out=runs / "report.html", data=None, runs=runs)
