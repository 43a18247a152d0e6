"""The verbs that train: teach, distill, demo."""

from pathlib import Path
from typing import Annotated

import typer

from ..sam.presets import ENCODERS
from ..students import STUDENTS
from ..teachers import PUBLISHED, TEACHERS
from .options import (
    ConfigName,
    Data,
    Devices,
    MLflow,
    Nodes,
    Overrides,
    PretrainedPath,
    RunFolder,
    Runs,
    Split,
    Strategy,
    TensorBoard,
    Vram,
    overrides_of,
    parse_lambdas,
    parse_vram,
    split_override,
)
from .tables import print_comparison, print_scores, print_study


def teach(
    config_name: ConfigName = None,
    data: Data = None,
    teacher: Annotated[str | None, typer.Option(help=f"The teacher: one of {', '.join(TEACHERS)}.")] = None,
    backbone: Annotated[str | None, typer.Option(help=f"Its image encoder: one of {', '.join(ENCODERS)}.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A published checkpoint of that image encoder: a file, or `litemedsam` (samkd[litemedsam])."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="A run of the same network; training starts from its weights.")
    ] = None,
    split: Split = None,
    run: RunFolder = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    vram: Vram = None,
    tensorboard: TensorBoard = False,
    mlflow: MLflow = None,
    override: Overrides = None,
) -> None:
    """Fit a SAM-adapter teacher to a dataset."""
    from ..configs.load import config_names, load_config
    from ..teachers import check_teacher

    budget = parse_vram(vram)
    overrides = overrides_of(teacher__name=teacher, teacher__backbone=backbone)
    config_name = config_name or (f"phantom-{teacher}" if f"phantom-{teacher}" in config_names() else "phantom")
    config = load_config(config_name, [*overrides, *split_override(split), *(override or [])])
    check_teacher(config.teacher.name, config.teacher.backbone)  # before PyTorch is loaded

    from ..training.ranks import is_main
    from ..training.scalars import Destinations, shown_in
    from ..training.together import Layout, together
    from ..workflows.teach import teach as train_teacher

    with shown_in(Destinations(tensorboard, mlflow)), together(Layout(devices, nodes, strategy)) as count:
        trained = train_teacher(
            config, data=data, runs=runs, run=run, weights=weights, start=start, devices=count, vram=budget
        )
    if not is_main():
        return
    if config.teacher.name == PUBLISHED:
        typer.echo(f"{trained.path}: the published model as it is; predict, evaluate and deploy show it prompts")
    else:
        print_scores({"teacher": trained.metrics().test}, title=str(trained.path))


def distill(
    config_name: ConfigName = None,
    data: Data = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Who teaches: a run of any stage (default: the newest teacher), or a folder of predictions by any "
            "tool, named like the cases; repeat it to average several, FOLDER=0.7 gives one a weight."
        ),
    ] = None,
    student: Annotated[str | None, typer.Option(help=f"The student: one of {', '.join(STUDENTS)}.")] = None,
    lambda_: Annotated[
        str | None,
        typer.Option(
            "--lambda",
            help="The labels' part of the loss, L = lambda * L_seg + (1 - lambda) * L_KD; 0,0.2,0.5,0.8,1 makes a "
            "sweep.",
        ),
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Also train the same student without its teachers (lambda = 1), to compare with.")
    ] = True,
    labelled: Annotated[
        int | None,
        typer.Option(min=2, help="Use the masks of only so many training cases; the others join without theirs."),
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="A folder of scans without masks, which join the training cases.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A folder of prompts, CASE.json, which stand for masks: they are shown to the teacher."),
    ] = None,
    split: Split = None,
    pretrained_path: PretrainedPath = None,
    student_weights: Annotated[
        Path | None,
        typer.Option(help="The published file that the student starts from, or `litemedsam`."),
    ] = None,
    online: Annotated[
        bool, typer.Option(help="Run the teacher on the very patches that the student sees, without a cache.")
    ] = False,
    cache_limit: Annotated[
        str, typer.Option(help="How much disk the cached soft targets may take: a number and M, G or T.")
    ] = "20G",
    run: RunFolder = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    vram: Vram = None,
    tensorboard: TensorBoard = False,
    mlflow: MLflow = None,
    override: Overrides = None,
) -> None:
    """Distil teachers into a student, and train the same student without them as the control."""
    from ..volumes.byte_sizes import parse_bytes

    lambdas, budget = parse_lambdas(lambda_), parse_vram(vram)
    limit = parse_bytes(cache_limit, option="--cache-limit")
    overrides = [*overrides_of(student__name=student, labelled=labelled), *split_override(split), *(override or [])]

    from ..training.ranks import is_main
    from ..training.scalars import Destinations, shown_in
    from ..training.together import Layout, together
    from ..workflows.distill import StudentOptions
    from ..workflows.distill import distill as distill_students

    with shown_in(Destinations(tensorboard, mlflow)), together(Layout(devices, nodes, strategy)) as count:
        study = distill_students(
            config_name,
            teacher or [],
            lambdas=lambdas,
            data=data,
            unlabelled=unlabelled,
            prompts=prompts,
            runs=runs,
            overrides=overrides,
            run=run,
            control=control,
            pretrained_path=pretrained_path,
            options=StudentOptions(
                devices=count, online=online, cache_limit=limit, weights=student_weights, vram=budget
            ),
        )
    if is_main():
        print_study(study)


def demo(
    runs: Annotated[Path, typer.Option(help="The folder to work in.")] = Path("runs/demo"),
    override: Overrides = None,
) -> None:
    """Do the whole job on the built-in phantom: teach, distill, deploy, predict, report."""
    from ..workflows.demo import demo as run_demo

    print_comparison(run_demo(runs, override or []))
