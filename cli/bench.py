"""The verb that measures: bench packages, bench serve, bench teacher, bench student, bench distill."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..students import STUDENTS
from ..teachers import TEACHERS, check_teacher
from ..training.registry import check_registered
from .options import AsJson, Trust, parse_shape
from .tables import print_distill_costs, print_runtimes, print_serve_costs, print_step_costs

StepBatch = Annotated[int, typer.Option(min=1, help="The number of patches in one batch.")]
Steps = Annotated[int, typer.Option(min=1, help="How many steps are measured after one to warm up.")]
StepSettings = Annotated[
    list[str] | None,
    typer.Option(
        help="A row of the table: plain, or some of published-attention, checkpointing, bf16 and compile joined by +; "
        "repeat it (default: a list of them)."
    ),
]


class _PackagesByDefault(TyperGroup):
    """`samkd bench PACKAGE...` is `samkd bench packages PACKAGE...`; a sub-command may also follow its options."""

    def parse_args(self, ctx, args):
        if args and args != ["--help"] and args[0] not in self.commands:
            options_first = args[0].startswith("-")
            name = next((arg for arg in args if options_first and arg in self.commands), None)
            if name is not None:
                args.remove(name)
            args = [name or "packages", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_PackagesByDefault,
    no_args_is_help=True,
    help="Measure time and peak memory. `samkd bench PACKAGE...` is short for `samkd bench packages PACKAGE...`.",
)


@app.command()
def packages(
    packages: Annotated[list[Path], typer.Argument(help="Packages (folders or zips) to measure.", show_default=False)],
    shape: Annotated[str, typer.Option(help="The generated CT's size: slices x rows x columns.")] = "200x256x256",
    threads: Annotated[
        int | None, typer.Option(min=1, help="How many threads the network may use (default: all).")
    ] = None,
    torch: Annotated[
        Path | None,
        typer.Option(help="A run to measure beside the packages (default: the one each package came from)."),
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Measure packages on a generated CT, each as the device runs it, beside the torch networks they came from."""
    size = parse_shape(shape)

    from ..workflows.bench.packages import bench_packages

    rows = bench_packages(packages, shape=size, threads=threads, torch=torch, trust=trust)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        print_runtimes(rows, title=f"generated CT of {size} voxels")


@app.command()
def serve(
    package: Annotated[Path, typer.Argument(help="The package (folder or zip) to serve.", show_default=False)],
    scan: Annotated[Path, typer.Argument(help="The file that everybody uploads.", show_default=False)],
    clients: Annotated[int, typer.Option(min=1, help="How many people upload at once.")] = 8,
    uploads: Annotated[int, typer.Option(min=1, help="How many uploads there are in all.")] = 200,
    threads: Annotated[
        int | None, typer.Option(min=1, help="How many threads the network may use (default: all).")
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Measure a server under load: uploads answered, refused (503) and lost, seconds to a mask, peak memory."""
    from ..workflows.bench.serve import bench_serve

    costs = bench_serve(package, scan, clients=clients, uploads=uploads, threads=threads, trust=trust)
    if as_json:
        typer.echo(json.dumps(asdict(costs), indent=1))
    else:
        print_serve_costs(costs, title=f"{uploads} uploads of {scan.name} from {clients} clients")


@app.command()
def teacher(
    teacher: Annotated[str, typer.Option(help=f"The teacher: one of {', '.join(TEACHERS)}.")] = "masam",
    backbone: Annotated[str, typer.Option(help="Its image encoder; `samkd info` lists them.")] = "vit_b",
    shape: Annotated[str, typer.Option(help="The patch's size: slices x rows x columns.")] = "5x512x512",
    batch: StepBatch = 1,
    steps: Steps = 2,
    setting: StepSettings = None,
    as_json: AsJson = False,
) -> None:
    """Measure a teacher's training step, settings side by side: speed, waiting, memory, share of the peak FLOP/s."""
    check_teacher(teacher, backbone)
    patch = parse_shape(shape)

    from ..workflows.bench.training_step import TEACHER_SETTINGS, StepJob, bench_steps

    job = StepJob(name=teacher, backbone=backbone, patch=patch, batch=batch, steps=steps)
    rows = bench_steps(job, setting or TEACHER_SETTINGS)
    title = f"one training step of {teacher}, {backbone}, patch {patch}, batch {batch}"
    _print_steps(rows, title=title, as_json=as_json)


@app.command()
def student(
    student: Annotated[str, typer.Option(help=f"The student: one of {', '.join(STUDENTS)}.")] = "swinunetr-tiny",
    shape: Annotated[str, typer.Option(help="The patch's size: slices x rows x columns.")] = "96x96x96",
    batch: StepBatch = 1,
    steps: Steps = 2,
    setting: StepSettings = None,
    as_json: AsJson = False,
) -> None:
    """Measure a student's training step, settings side by side: speed, waiting, memory, share of the peak FLOP/s."""
    check_registered(STUDENTS, student, kind="student")
    patch = parse_shape(shape)

    from ..workflows.bench.training_step import STUDENT_SETTINGS, StepJob, bench_steps

    job = StepJob(name=student, backbone=None, patch=patch, batch=batch, steps=steps)
    rows = bench_steps(job, setting or STUDENT_SETTINGS)
    _print_steps(rows, title=f"one training step of {student}, patch {patch}, batch {batch}", as_json=as_json)


def _print_steps(rows: Iterable[dict[str, Any]], *, title: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(list(rows), indent=1))
    else:
        print_step_costs(rows, title=title)


@app.command()
def distill(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Finished runs that teach; RUN=0.7 gives one a weight.")
    ] = None,
) -> None:
    """Measure what distilling from finished runs costs, with cached soft targets and online."""
    from ..workflows.bench.distillation import bench_distill

    print_distill_costs(bench_distill(runs or []))
