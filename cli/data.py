"""The verbs for datasets: check, convert, prompts."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInputError
from .options import ConfigName, Modality
from .tables import print_cases, print_series


def check(
    data: Annotated[Path, typer.Argument(help="The dataset's folder, in any layout, or a folder of DICOM series.")],
    pictures: Annotated[Path | None, typer.Option(help="Also draw a few cases with their masks, in a PNG.")] = None,
    modality: Modality = None,
) -> None:
    """Read every case of a dataset strictly and print what it holds and every fault. Nothing is changed."""
    from ..workflows.check import DICOM, dataset_or_series, draw_cases
    from ..workflows.check import check as check_cases

    dataset = dataset_or_series(data, modality=modality)
    rows = check_cases(dataset)
    if dataset.layout == DICOM:
        print_series(rows)
    else:
        print_cases(dataset, rows)
    if pictures is not None:
        draw_cases(dataset, rows, pictures)
        typer.echo(f"pictures: {pictures}")
    faults = [row for row in rows if row["fault"]]
    if faults:
        raise BadInputError(f"{data}: {len(faults)} of {len(rows)} cases cannot be used (see the list above)")
    typer.echo(f"{len(rows)} cases, no fault")


def convert(
    data: Annotated[Path, typer.Argument(help="The dataset's folder, in any layout.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist, or be empty.")],
    modality: Modality = None,
    fix_affine: Annotated[
        bool,
        typer.Option("--fix-affine", help="Give a mask that has its scan's shape but another affine the scan's."),
    ] = False,
) -> None:
    """Write a dataset of any layout as nnU-Net v2 raw."""
    from ..workflows.convert import convert as write_dataset

    dataset = write_dataset(data, out, modality=modality, fix_affine=fix_affine)
    typer.echo(f"{out}: {dataset.layout} layout, now nnU-Net v2 raw")


def prompts(
    data: Annotated[Path, typer.Argument(help="The dataset's folder, in any layout.")],
    kind: Annotated[
        str,
        typer.Option(help="box: one around each class; boxes: one on every slice that holds it; point: deepest voxel."),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The folder for the files CASE.json.")] = Path("prompts"),
    jitter: Annotated[
        int, typer.Option(min=0, help="Move every edge of a box by up to so many pixels in its slice, in or out.")
    ] = 0,
    margin: Annotated[int, typer.Option(min=0, help="Then move every edge outwards by so many pixels.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="What the moves are drawn from, with the case's name.")] = 0,
    cases: Annotated[
        str | None, typer.Option(help="Training cases by name, joined by commas (default: all that have a mask).")
    ] = None,
    config_name: ConfigName = None,
    modality: Modality = None,
) -> None:
    """Draw prompts from masks, for experiments with prompts in place of masks (distill --prompts)."""
    from ..workflows.prompts import write_prompts

    paths = write_prompts(
        data,
        out,
        kind=kind,
        jitter=jitter,
        margin=margin,
        seed=seed,
        cases=[name.strip() for name in cases.split(",")] if cases else [],
        modality=modality,
        config_name=config_name,
    )
    typer.echo(f"{out}: {len(paths)} files of prompts, drawn from masks, as each of them says")
