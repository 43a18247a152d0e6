"""The verbs. Each imports what it needs inside its body, so that `samkd --help` answers at once."""

import signal
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from .errors import SamkdError, UsageError

if TYPE_CHECKING:
    from .volumes.dataset import Dataset


class _Verbs(TyperGroup):
    """Ends a verb's SamkdError as one clear message and the error's own exit code."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except SamkdError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil SAM-adapter teachers into small students and package them for the machine beside the patient.",
)

Config = Annotated[str | None, typer.Option("--config", "-c", help="Recipe: a name in configs/ or a YAML file.")]
Data = Annotated[Path | None, typer.Option(help="Dataset folder (Medical Segmentation Decathlon layout).")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs, caches and packages.")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Run folder to write (default: named after its recipe).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe key: student.training.steps=50 (repeatable)."),
]
Devices = Annotated[int, typer.Option(min=1, help="Devices that train together.")]


@app.command()
def teach(
    config: Config = None,
    data: Data = None,
    teacher: Annotated[str | None, typer.Option(help="masam")] = None,
    backbone: Annotated[str | None, typer.Option(help="vit_tiny, vit_tiny_p8, vit_b, vit_l or vit_h")] = None,
    weights: Annotated[Path | None, typer.Option(help="Published SAM checkpoint of that backbone.")] = None,
    run: RunFolder = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    override: Overrides = None,
) -> None:
    """Fit a SAM-adapter teacher to a dataset."""
    from . import session
    from .config import load_recipe

    chosen = [f"teacher.{key}={value}" for key, value in (("name", teacher), ("backbone", backbone)) if value]
    recipe = load_recipe(config or "phantom", [*chosen, *(override or [])])
    dataset = session.open_dataset(recipe, data, runs=runs)

    from .teachers.recipe import teach as fit_teacher

    done = fit_teacher(recipe, dataset, runs=runs, run=run, weights=weights, devices=devices)
    _print_dice({"teacher": _test_summary(done)}, title=str(done.path))


@app.command()
def distill(
    config: Config = None,
    data: Data = None,
    teacher: Annotated[Path | None, typer.Option(help="Run that teaches (default: the newest teacher).")] = None,
    student: Annotated[str | None, typer.Option(help="swinunetr-tiny or swinunetr-small")] = None,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", min=0, max=1, help="L = lambda * L_seg + (1 - lambda) * L_mse")
    ] = None,
    control: Annotated[bool, typer.Option(help="Also train the same student with lambda = 1.")] = True,
    run: RunFolder = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    override: Overrides = None,
) -> None:
    """Distil a teacher into a student, and train the same student without it as the control."""
    from . import session
    from .config import load_recipe
    from .distill.recipe import distill as fit_student
    from .training.run import Run, newest_run

    chosen = [f"student.name={student}"] if student else []
    chosen += [f"lambda={lambda_}"] if lambda_ is not None else []
    source = Run.read(teacher) if teacher else None
    if source is None and (config is None or lambda_ != 1):
        source = newest_run(runs, "teach", recipe=load_recipe(config, []).name if config else None)
    recipe = session.recipe_for(config, source, [*chosen, *(override or [])])
    dataset = session.open_dataset(recipe, data or (Path(source.config["data"]) if source else None), runs=runs)
    done = {"teacher": source} if source else {}
    if recipe.lambda_ == 1 or control:
        alone = run if recipe.lambda_ == 1 else None
        done["student without teacher"] = fit_student(
            recipe, dataset, teacher=None, runs=runs, run=alone, lambda_=1.0, devices=devices
        )
    if recipe.lambda_ < 1:
        done["student with teacher"] = fit_student(recipe, dataset, teacher=source, runs=runs, run=run, devices=devices)
    _print_dice({name: _test_summary(made) for name, made in done.items()}, title=str(list(done.values())[-1].path))


@app.command()
def deploy(
    run: Annotated[Path | None, typer.Argument(help="Student run (default: the newest distilled one).")] = None,
    target: Annotated[str, typer.Option(help="openvino")] = "openvino",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8")] = None,
    max_drop: Annotated[float | None, typer.Option(min=0, max=1, help="Largest loss of Dice per class.")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Package folder (default: RUNS/packages/...).")] = None,
    runs: Runs = Path("runs"),
    override: Overrides = None,
) -> None:
    """Convert, quantize, prove that nothing was lost, and pack a student for the device."""
    from . import session
    from .training.run import Run, newest_run

    chosen = [f"deployment.precision={precision}"] if precision else []
    chosen += [f"deployment.max_drop={max_drop}"] if max_drop is not None else []
    source = Run.read(run) if run else newest_run(runs, "distill")
    package = session.deploy_run(
        source, target=target, data=data, out=out, runs=runs, overrides=[*chosen, *(override or [])]
    )
    _print_package(package)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Package (folder or zip) or run folder.")],
    scan: Annotated[Path, typer.Option("--input", "-i", help="A NIfTI scan, or a folder of them.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The mask, or a folder for the masks.")],
) -> None:
    """Segment scans. Masks lie on the scan's own grid."""
    from . import session

    for path in session.predict(model, scan, out):
        typer.echo(path)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Package, run folder, or a folder of masks named like the scans.")],
    data: Annotated[Path, typer.Option(help="Dataset folder with labelled test cases.")],
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Also write every score as JSON.")] = None,
) -> None:
    """Score a model on the labelled test cases: whole volumes, empty slices included."""
    from . import session

    scores = session.evaluate(model, data)
    if out is not None:
        session.write_json(out, scores)
    _print_dice({model.name: scores["summary"]}, title=f"{model} on {len(scores['cases'])} test scans")


@app.command()
def report(
    package: Annotated[Path | None, typer.Argument(help="Package (default: the newest).")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file (default: RUNS/report.html).")] = None,
    data: Data = None,
    runs: Runs = Path("runs"),
) -> None:
    """Compare teacher, control, student and package in one offline HTML file."""
    from . import comparison

    _print_comparison(comparison.report(package, out=out or runs / "report.html", data=data, runs=runs))


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Dataset folder.")],
) -> None:
    """Read every case of a dataset strictly and print what it holds and every fault."""
    from .errors import BadInputError
    from .volumes.dataset import check_dataset, read_dataset

    dataset = read_dataset(data)
    rows = check_dataset(dataset)
    _print_cases(dataset, rows)
    faults = [row for row in rows if row["fault"]]
    if faults:
        raise BadInputError(f"{data}: {len(faults)} of {len(rows)} cases cannot be used (see the list above)")
    typer.echo(f"{len(rows)} cases, no fault")


@app.command()
def bench(
    packages: Annotated[list[Path], typer.Argument(help="Packages to measure.")],
    shape: Annotated[str, typer.Option(help="Voxels of the generated CT: slices x rows x columns.")] = "200x256x256",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for the network (default: all).")] = None,
) -> None:
    """Time and peak memory of the device runtime on one generated CT."""
    from . import session

    size = _voxels(shape)
    table = Table(title=f"generated CT of {shape} voxels")
    for heading in ("package", "seconds", "peak memory", "precision"):
        table.add_column(heading)
    for package in packages:
        made = session.bench(package, shape=size, threads=threads)
        table.add_row(
            package.name,
            f"{made['seconds_per_scan']:.1f}",
            f"{made['peak_memory_mb']:.0f} MB",
            made["precision"],
        )
    _show(table)


@app.command()
def doctor() -> None:
    """Say what works on this machine and how to get the rest."""
    from . import session

    table = Table("part", "state", "to do")
    for row in session.doctor():
        table.add_row(*row)
    _show(table)


@app.command()
def demo(
    runs: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo"),
    override: Overrides = None,
) -> None:
    """The whole job on the built-in phantom: teach, distill, deploy, predict, report."""
    from . import comparison

    _print_comparison(comparison.demo(runs, override or []))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


def _voxels(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--shape {text!r}: expected slices x rows x columns, for example 200x256x256")
    d, h, w = map(int, parts)
    return d, h, w


def _show(table: Table) -> None:
    Console().print(table)


def _test_summary(run) -> dict | None:
    return (run.metrics()["test"] or {}).get("summary")


def _print_dice(summaries: dict[str, dict | None], *, title: str) -> None:
    """One row per class and the mean over classes, one column per model; absent organs as the scores' rule says."""
    known = {name: summary for name, summary in summaries.items() if summary}
    if not known:
        typer.echo(f"{title}: done; the dataset has no labelled test case to score on")
        return
    columns = {
        name: {
            **{label: row["dice"] for label, row in summary["per_class"].items()},
            "mean": summary["mean"]["dice"],
        }
        for name, summary in known.items()
    }
    _show(_dice_table(columns, title=f"Dice, {title}"))


def _dice_table(columns: dict[str, dict[str, float]], *, title: str) -> Table:
    table = Table("class", *columns, title=title)
    for label in next(iter(columns.values())):
        values = [column.get(label) for column in columns.values()]
        table.add_row(label, *("-" if value is None else f"{value:.3f}" for value in values))
    return table


def _print_comparison(made) -> None:
    _show(_dice_table(made.columns, title="Dice on the test scans"))
    for name, value in made.facts.items():
        typer.echo(f"{name}: {value}")
    typer.echo(f"report: {made.html}")


def _print_package(package: Path) -> None:
    import json

    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    typer.echo(f"{package}: {size / 1e6:.1f} MB, {manifest['precision']}")


def _print_cases(dataset: "Dataset", rows: list[dict]) -> None:
    """What a dataset holds, as ranges over its readable cases, and then every fault."""
    typer.echo(
        f"{dataset.root}: Medical Segmentation Decathlon layout, {dataset.name}, "
        f"{len(dataset.training)} training and {len(dataset.test)} test cases"
    )
    table = Table("over all cases", "lowest", "median", "highest")
    read = [row for row in rows if row["shape"]]
    for title, key in (("voxels", "shape"), ("spacing, mm", "spacing")):
        for axis, name in enumerate("dhw"):
            _add_range(table, f"{title}, {name}", [row[key][axis] for row in read])
    for channel in dataset.channels:
        for level in ("p0.5", "p50", "p99.5"):
            _add_range(table, f"{channel}, {level} of intensity", [row["intensity"][channel][level] for row in read])
    counted = [row["label_voxels"] for row in rows if row["label_voxels"]]
    for name in list(dataset.labels.values())[1:]:
        present = [voxels[name] for voxels in counted if voxels[name]]
        _add_range(table, f"{name}, voxels ({len(present)} of {len(counted)} masks)", present)
    _show(table)
    codes = Counter(row["axis_codes"] for row in read)
    typer.echo("axes: " + ", ".join(f"{code} {count}" for code, count in codes.most_common()))
    for row in rows:
        if row["fault"]:
            typer.echo(f"{row['name']}: {row['fault']}")


def _add_range(table: Table, title: str, values: list[float]) -> None:
    if values:
        table.add_row(title, f"{min(values):.4g}", f"{median(values):.4g}", f"{max(values):.4g}")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that nothing half-written stays behind
    app(prog_name="samkd")


if __name__ == "__main__":
    sys.exit(main())
