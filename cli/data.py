"""The verbs for datasets: check, convert."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInputError
from .options import Modality
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
