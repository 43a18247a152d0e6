"""The verbs. Each imports what it needs inside its body, so that `samkd --help` answers at once."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from typer.core import TyperGroup

from .errors import SamkdError, UsageError
from .screen import (
    print_cases,
    print_comparison,
    print_dice,
    print_networks,
    print_package,
    print_runtimes,
    print_step_costs,
    show,
    test_summary,
)


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
    from .teachers import check_teacher

    chosen = [f"teacher.{key}={value}" for key, value in (("name", teacher), ("backbone", backbone)) if value]
    recipe = load_recipe(config or "phantom", [*chosen, *(override or [])])
    check_teacher(recipe.teacher.name, recipe.teacher.backbone)
    dataset = session.open_dataset(recipe, data, runs=runs)

    from .teachers.recipe import teach as fit_teacher

    done = fit_teacher(recipe, dataset, runs=runs, run=run, weights=weights, devices=devices)
    print_dice({"teacher": test_summary(done)}, title=str(done.path))


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
    from .training.run import Run, newest_run

    chosen = [f"student.name={student}"] if student else []
    chosen += [f"lambda={lambda_}"] if lambda_ is not None else []
    source = Run.read(teacher) if teacher else None
    if source is None and (config is None or lambda_ != 1):
        source = newest_run(runs, "teach", recipe=load_recipe(config, []).name if config else None)
    recipe = session.recipe_for(config, source, [*chosen, *(override or [])])
    dataset = session.open_dataset(recipe, data or (Path(source.config["data"]) if source else None), runs=runs)
    from .distill.recipe import distill as fit_student

    done = {"teacher": source} if source else {}
    if recipe.lambda_ == 1 or control:
        alone = run if recipe.lambda_ == 1 else None
        done["student without teacher"] = fit_student(
            recipe, dataset, teacher=None, runs=runs, run=alone, lambda_=1.0, devices=devices
        )
    if recipe.lambda_ < 1:
        done["student with teacher"] = fit_student(recipe, dataset, teacher=source, runs=runs, run=run, devices=devices)
    print_dice({name: test_summary(made) for name, made in done.items()}, title=str(list(done.values())[-1].path))


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
    print_package(package)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Package (folder or zip) or run folder.")],
    scan: Annotated[Path, typer.Option("--input", "-i", help="A NIfTI scan, or a folder of them.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The mask, or a folder for the masks.")],
    point: Annotated[list[str] | None, typer.Option(help="x,y,z or x,y,z,label (1 inside, 0 outside).")] = None,
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,z0,x1,y1,z1")] = None,
    name: Annotated[str | None, typer.Option("--class", help="The class that --point and --box mean.")] = None,
    space: Annotated[str, typer.Option(help="Of --point and --box: mm (RAS+) or voxel (i, j, k of the file).")] = "mm",
    prompts: Annotated[Path | None, typer.Option(help="JSON file of prompts, for one class or several.")] = None,
) -> None:
    """Segment scans. Masks lie on the scan's own grid. Promptable teachers also take points and boxes."""
    from . import session
    from .volumes.prompt_input import Request

    asked = Request(point or [], box or [], name, space, prompts)
    for path in session.predict(model, scan, out, prompts=asked if asked.given else None):
        typer.echo(path)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Package, run folder, or a folder of masks named like the scans.")],
    data: Annotated[Path, typer.Option(help="Dataset folder with labelled test cases.")],
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Also write every score as JSON.")] = None,
    truth: Annotated[
        str | None, typer.Option("--prompt-from-truth", help="Show it each class by a point or a box from its mask.")
    ] = None,
) -> None:
    """Score a model on the labelled test cases: whole volumes, empty slices included."""
    from . import session

    scores = session.evaluate(model, data, prompt_from_truth=truth)
    if out is not None:
        session.write_json(out, scores)
    shown = f", shown a {truth} from the truth for every class" if truth else ""
    print_dice({model.name: scores["summary"]}, title=f"{model} on {len(scores['cases'])} test scans{shown}")


@app.command()
def report(
    package: Annotated[Path | None, typer.Argument(help="Package (default: the newest).")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file (default: RUNS/report.html).")] = None,
    data: Data = None,
    runs: Runs = Path("runs"),
) -> None:
    """Compare teacher, control, student and package in one offline HTML file."""
    from . import comparison

    print_comparison(comparison.report(package, out=out or runs / "report.html", data=data, runs=runs))


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Dataset folder.")],
) -> None:
    """Read every case of a dataset strictly and print what it holds and every fault."""
    from .errors import BadInputError
    from .volumes.dataset import check_dataset, read_dataset

    dataset = read_dataset(data)
    rows = check_dataset(dataset)
    print_cases(dataset, rows)
    faults = [row for row in rows if row["fault"]]
    if faults:
        raise BadInputError(f"{data}: {len(faults)} of {len(rows)} cases cannot be used (see the list above)")
    typer.echo(f"{len(rows)} cases, no fault")


@app.command()
def bench(
    packages: Annotated[list[str], typer.Argument(help="Packages to measure; or the word teacher.")],
    shape: Annotated[
        str | None,
        typer.Option(
            help="Slices x rows x columns: of a generated CT (200x256x256), of a teacher's patch (5x512x512)."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for the network (default: all).")] = None,
    teacher: Annotated[str, typer.Option(help="Which teacher, for `bench teacher`.")] = "masam",
    backbone: Annotated[str, typer.Option(help="Its backbone.")] = "vit_b",
) -> None:
    """Time and peak memory: of packages on the device, or (`bench teacher`) of a teacher's training step."""
    if packages == ["teacher"]:
        from .teachers import check_teacher
        from .teachers.bench import bench_teacher

        check_teacher(teacher, backbone)
        patch = _voxels(shape or "5x512x512")
        rows = bench_teacher(name=teacher, backbone=backbone, patch=patch, classes=13, steps=2)
        print_step_costs(rows, title=f"one training step of {teacher}, {backbone}, patch {patch}, batch 1")
        return
    from . import session

    size = _voxels(shape or "200x256x256")
    made = [(Path(name).name, session.bench(Path(name), shape=size, threads=threads)) for name in packages]
    print_runtimes(made, title=f"generated CT of {size} voxels")


@app.command()
def info(
    classes: Annotated[int, typer.Option(min=2, help="Classes, the background included.")] = 13,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List teachers, backbones and students with their parameters."""
    from .inventory import networks

    rows = networks(classes=classes)
    if as_json:
        typer.echo(json.dumps(list(rows), indent=1))
    else:
        print_networks(rows, classes=classes)


@app.command()
def doctor() -> None:
    """Say what works on this machine and how to get the rest."""
    from . import session

    table = Table("part", "state", "to do")
    for row in session.doctor():
        table.add_row(*row)
    show(table)


@app.command()
def demo(
    runs: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo"),
    override: Overrides = None,
) -> None:
    """The whole job on the built-in phantom: teach, distill, deploy, predict, report."""
    from . import comparison

    print_comparison(comparison.demo(runs, override or []))


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


def main() -> None:
    # Before PyTorch is loaded: threads that wait for each other soon sleep. Spinning for as long as libgomp does by
    # default, two threads on two cores slow each other down four times and more when another program wants a core.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that nothing half-written stays behind
    app(prog_name="samkd")


if __name__ == "__main__":
    sys.exit(main())
