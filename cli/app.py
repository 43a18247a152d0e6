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

from ..errors import SamkdError, UsageError
from ..sam.presets import ENCODERS
from ..teachers import TEACHERS
from .tables import (
    print_cases,
    print_comparison,
    print_dice,
    print_distill_costs,
    print_networks,
    print_package,
    print_recipes,
    print_runtimes,
    print_series,
    print_step_costs,
    print_study,
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
Data = Annotated[Path | None, typer.Option(help="Dataset folder, in any layout that `samkd check` knows.")]
Split = Annotated[Path | None, typer.Option(help="The cases of a splits.json, which every run folder holds.")]
Modality = Annotated[str | None, typer.Option(help="CT or MR, where a dataset holds both (AMOS22).")]
Trust = Annotated[
    Path | None, typer.Option(help="Refuse a package that the owner of this ed25519 public key (PEM) did not sign.")
]
Base = Annotated[
    Path | None, typer.Option("--weights", help="The published file that the run adapts, if it was moved since.")
]
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
    teacher: Annotated[str | None, typer.Option(help=f"One of {', '.join(TEACHERS)}.")] = None,
    backbone: Annotated[str | None, typer.Option(help=f"One of {', '.join(ENCODERS)}.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Published checkpoint of that backbone.")] = None,
    start: Annotated[Path | None, typer.Option(help="Run of the same network whose weights it starts from.")] = None,
    split: Split = None,
    run: RunFolder = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    override: Overrides = None,
) -> None:
    """Fit a SAM-adapter teacher to a dataset."""
    from ..configs.load import load_recipe, recipe_names
    from ..teachers import check_teacher
    from ..workflows import data as datasets

    chosen = [f"teacher.{key}={value}" for key, value in (("name", teacher), ("backbone", backbone)) if value]
    config = config or (f"phantom-{teacher}" if f"phantom-{teacher}" in recipe_names() else "phantom")
    recipe = load_recipe(config, [*chosen, *datasets.split_override(split), *(override or [])])
    check_teacher(recipe.teacher.name, recipe.teacher.backbone)
    dataset = datasets.open_dataset(recipe, data, runs=runs)

    from ..teachers.train import teach as fit_teacher

    done = fit_teacher(recipe, dataset, runs=runs, run=run, weights=weights, start=start, devices=devices)
    print_dice({"teacher": test_summary(done)}, title=str(done.path))


@app.command()
def distill(
    config: Config = None,
    data: Data = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Run that teaches, of any stage (default: the newest teacher); repeat it to average several, "
            "RUN=0.7 for weights."
        ),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="swinunetr-tiny, swinunetr-small, segresnet, mobilesam, efficientsam-ti or -s")
    ] = None,
    lambda_: Annotated[
        str | None,
        typer.Option("--lambda", help="L = lambda * L_seg + (1 - lambda) * L_mse; 0,0.2,0.5,0.8,1 makes a sweep."),
    ] = None,
    control: Annotated[bool, typer.Option(help="Also train the same student with lambda = 1.")] = True,
    labelled: Annotated[
        int | None, typer.Option(min=2, help="Use the masks of so many training cases; the others join without.")
    ] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Folder of scans without masks that join.")] = None,
    split: Split = None,
    base: Base = None,
    student_weights: Annotated[
        Path | None, typer.Option(help="Published MobileSAM or EfficientSAM file that the student starts from.")
    ] = None,
    online: Annotated[bool, typer.Option(help="The teacher sees the student's augmented patch; no cache.")] = False,
    cache_limit: Annotated[str, typer.Option(help="Largest size of the cached teacher targets.")] = "20G",
    run: RunFolder = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    override: Overrides = None,
) -> None:
    """Distil teachers into a student, and train the same student without them as the control."""
    from ..deploy.runtime.memory import parse_bytes
    from ..workflows import data as datasets
    from ..workflows import session

    lambdas = _lambdas(lambda_) if lambda_ is not None else []
    limit = parse_bytes(cache_limit, option="--cache-limit")
    if run is not None and len(lambdas) > 1:
        raise UsageError("--run names one folder; leave it out with several lambdas")
    chosen = [f"student.name={student}"] if student else []
    chosen += [f"labelled={labelled}"] if labelled is not None else []
    lesson = session.lesson(
        config,
        teacher or [],
        lambdas=lambdas,
        data=data,
        unlabelled=unlabelled,
        runs=runs,
        overrides=[*chosen, *datasets.split_override(split), *(override or [])],
    )
    from ..distill.study import study

    print_study(
        study(
            lesson.recipe,
            lesson.dataset,
            teachers=lesson.teachers,
            lambdas=lesson.lambdas,
            runs=runs,
            run=run,
            control=control,
            devices=devices,
            online=online,
            cache_limit=limit,
            base=base,
            weights=student_weights,
        )
    )


@app.command()
def deploy(
    run: Annotated[Path | None, typer.Argument(help="Student run (default: the newest distilled one).")] = None,
    target: Annotated[str, typer.Option(help="openvino, onnx or tensorrt")] = "openvino",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16 or int8")] = None,
    max_drop: Annotated[float | None, typer.Option(min=0, max=1, help="Largest loss of Dice.")] = None,
    per_class: Annotated[
        bool | None, typer.Option(help="Of every class (as it is without either), or of their mean.")
    ] = None,
    data: Data = None,
    sign: Annotated[Path | None, typer.Option(help="Sign it with this ed25519 private key (PEM).")] = None,
    out: Annotated[Path | None, typer.Option(help="Package folder (default: RUNS/packages/...).")] = None,
    runs: Runs = Path("runs"),
    override: Overrides = None,
) -> None:
    """Convert, quantize, prove that nothing was lost, and pack a student for the device."""
    from ..training.run import Run, newest_run
    from ..workflows import session

    chosen = [f"deployment.precision={precision}"] if precision else []
    chosen += [f"deployment.max_drop={max_drop}"] if max_drop is not None else []
    chosen += [f"deployment.per_class={per_class}"] if per_class is not None else []
    source = Run.read(run) if run else newest_run(runs, "distill")
    package = session.deploy_run(
        source, target=target, data=data, out=out, runs=runs, overrides=[*chosen, *(override or [])], sign=sign
    )
    print_package(package)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Package (folder or zip) or run folder.")],
    scan: Annotated[Path, typer.Option("--input", "-i", help="A scan (NIfTI, PNG, JPEG, TIFF, DICOM), or a folder.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="The mask (*.dcm: DICOM-SEG), or a folder for the masks.")
    ],
    point: Annotated[list[str] | None, typer.Option(help="x,y,z or x,y,z,label (1 inside, 0 outside).")] = None,
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,z0,x1,y1,z1")] = None,
    name: Annotated[str | None, typer.Option("--class", help="The class that --point and --box mean.")] = None,
    space: Annotated[str, typer.Option(help="Of --point and --box: mm (RAS+) or voxel (i, j, k of the file).")] = "mm",
    prompts: Annotated[Path | None, typer.Option(help="JSON file of prompts, for one class or several.")] = None,
    base: Base = None,
    seg_type: Annotated[str, typer.Option(help="Of a DICOM-SEG: binary or labelmap.")] = "binary",
    trust: Trust = None,
) -> None:
    """Segment scans. Masks lie on the scan's own grid. Promptable teachers also take points and boxes."""
    from ..volumes.prompt_parsing import Request
    from ..workflows import session

    asked = Request(point or [], box or [], name, space, prompts)
    given = asked if asked.given else None
    for path in session.predict(model, scan, out, prompts=given, base=base, seg_type=seg_type, trust=trust):
        typer.echo(path)


@app.command()
def verify(package: Annotated[Path, typer.Argument(help="Package (folder or zip).")], trust: Trust = None) -> None:
    """Check every file of a package and its signature, and that this machine gives the sample's mask."""
    from ..deploy.runtime.package import Package
    from ..deploy.runtime.verify import verify_sample

    opened = Package.open(package, trust=trust)
    typer.echo(f"files: all {len(opened.manifest.files)} are what was packed")
    if trust is not None:
        typer.echo(f"signature: that of {trust}")
    typer.echo(verify_sample(opened))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Package, run folder, or a folder of masks named like the scans.")],
    data: Annotated[Path, typer.Option(help="Dataset folder with labelled test cases.")],
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Also write every score as JSON.")] = None,
    truth: Annotated[
        str | None, typer.Option("--prompt-from-truth", help="Show it each class by a point or a box from its mask.")
    ] = None,
    split: Split = None,
    modality: Modality = None,
    base: Base = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Recipe whose classes of the dataset the model's are.")
    ] = None,
) -> None:
    """Score a model on the labelled test cases: whole volumes, empty slices included."""
    from ..workflows import session

    scores = session.evaluate(
        model, data, prompt_from_truth=truth, split=split, modality=modality, base=base, config=config
    )
    if out is not None:
        session.write_json(out, scores)
    shown = f", shown a {truth} from the truth for every class" if truth else ""
    print_dice({model.name: scores["summary"]}, title=f"{model} on {len(scores['cases'])} test scans{shown}")


@app.command()
def report(
    package: Annotated[Path | None, typer.Argument(help="Package (default: the newest).")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file (default: RUNS/report.html).")] = None,
    data: Data = None,
    base: Base = None,
    runs: Runs = Path("runs"),
) -> None:
    """Compare teacher, control, student and package in one offline HTML file."""
    from ..workflows import report as comparison

    print_comparison(comparison.report(package, out=out or runs / "report.html", data=data, runs=runs, base=base))


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Dataset folder, in any layout, or a folder of DICOM series.")],
    pictures: Annotated[Path | None, typer.Option(help="Also draw a few cases with their masks: a PNG file.")] = None,
    modality: Modality = None,
) -> None:
    """Read every case of a dataset strictly and print what it holds and every fault. Nothing is changed."""
    from ..errors import BadInputError
    from ..workflows import data as datasets

    dataset = datasets.dataset_or_series(data, modality=modality)
    rows = datasets.check(dataset)
    if dataset.layout == datasets.DICOM:
        print_series(rows)
    else:
        print_cases(dataset, rows)
    if pictures is not None:
        datasets.draw_cases(dataset, rows, pictures)
        typer.echo(f"pictures: {pictures}")
    faults = [row for row in rows if row["fault"]]
    if faults:
        raise BadInputError(f"{data}: {len(faults)} of {len(rows)} cases cannot be used (see the list above)")
    typer.echo(f"{len(rows)} cases, no fault")


@app.command()
def convert(
    data: Annotated[Path, typer.Argument(help="Dataset folder, in any layout.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    modality: Modality = None,
    fix_affine: Annotated[
        bool, typer.Option("--fix-affine", help="Masks of their scans' shape take their scans' affine.")
    ] = False,
) -> None:
    """Write a dataset of any layout as nnU-Net v2 raw."""
    from ..volumes.datasets.registry import read_dataset
    from ..workflows import data as datasets

    dataset = read_dataset(data, modality=modality)
    datasets.convert(dataset, out, fix_affine=fix_affine)
    typer.echo(f"{out}: {dataset.layout} layout, now nnU-Net v2 raw")


@app.command()
def bench(
    packages: Annotated[
        list[str], typer.Argument(help="Packages to measure; or `teacher`; or `distill` and the runs that teach.")
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            help="Slices x rows x columns: of a generated CT (200x256x256), of a teacher's patch (5x512x512)."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for the network (default: all).")] = None,
    teacher: Annotated[str, typer.Option(help="Which teacher, for `bench teacher`.")] = "masam",
    backbone: Annotated[str, typer.Option(help="Its backbone.")] = "vit_b",
    torch: Annotated[
        Path | None, typer.Option(help="Run to measure beside packages (default: the one each came from).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON (packages).")] = False,
) -> None:
    """Time and peak memory: of packages on the device beside their torch networks, of a teacher's training step
    (`bench teacher`), or what distilling from finished runs costs, cached and online (`bench distill RUN`)."""
    if packages == ["teacher"]:
        from ..teachers import check_teacher
        from ..workflows.bench.training_step import bench_teacher

        check_teacher(teacher, backbone)
        patch = _voxels(shape or "5x512x512")
        rows = bench_teacher(name=teacher, backbone=backbone, patch=patch, classes=13, steps=2)
        print_step_costs(rows, title=f"one training step of {teacher}, {backbone}, patch {patch}, batch 1")
        return
    if packages[0] == "distill":
        from ..workflows.session import bench_distill

        print_distill_costs(bench_distill(packages[1:]))
        return
    from ..workflows.bench.packages import bench_packages

    size = _voxels(shape or "200x256x256")
    measured = bench_packages([Path(name) for name in packages], shape=size, threads=threads, torch=torch)
    if as_json:
        typer.echo(json.dumps(measured, indent=1))
    else:
        print_runtimes(measured, title=f"generated CT of {size} voxels")


@app.command()
def info(
    what: Annotated[str, typer.Argument(help="networks or recipes")] = "networks",
    classes: Annotated[int, typer.Option(min=2, help="Classes, the background included.")] = 13,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List teachers, backbones and students with their parameters; or the recipes."""
    if what not in ("networks", "recipes"):
        raise UsageError(f"samkd info {what}: choose networks or recipes")
    if what == "recipes":
        from ..configs.load import recipes

        found = [recipe.model_dump(mode="json", by_alias=True) for recipe in recipes()]
        if as_json:
            typer.echo(json.dumps(found, indent=1))
        else:
            print_recipes(found)
        return
    from ..workflows.catalogue import networks

    rows = networks(classes=classes)
    if as_json:
        typer.echo(json.dumps(list(rows), indent=1))
    else:
        print_networks(rows, classes=classes)


@app.command()
def doctor() -> None:
    """Say what works on this machine and how to get the rest."""
    from ..workflows.doctor import examine

    table = Table("part", "state", "to do")
    for row in examine():
        table.add_row(*row)
    show(table)


@app.command()
def demo(
    runs: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo"),
    override: Overrides = None,
) -> None:
    """The whole job on the built-in phantom: teach, distill, deploy, predict, report."""
    from ..workflows import report as comparison

    print_comparison(comparison.demo(runs, override or []))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


def _voxels(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--shape {text!r}: expected slices x rows x columns, for example 200x256x256")
    d, h, w = map(int, parts)
    return d, h, w


def _lambdas(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 1 for value in values):
        raise UsageError(
            f"--lambda {text!r}: each value must be greater than or equal to 0 and less than or equal to 1, "
            "for example 0.5 or 0,0.2,0.5,0.8,1"
        )
    return values


def main() -> None:
    # Before PyTorch is loaded: threads that wait for each other soon sleep. Spinning for as long as libgomp does by
    # default, two threads on two cores slow each other down four times and more when another program wants a core.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that nothing half-written stays behind
    app(prog_name="samkd")


if __name__ == "__main__":
    sys.exit(main())
