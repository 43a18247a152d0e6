"""The verb reproduce: a table of one of the four papers."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Devices, Nodes, Overrides, Runs
from .tables import show_text


def reproduce(
    paper: Annotated[str, typer.Argument(help="The paper: masam, medsa, sam3d or autosam.")],
    table: Annotated[str, typer.Argument(help="The number of its table, such as 9 or 7a.")],
    row: Annotated[str | None, typer.Argument(help="A row by its name (default: all).")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="The dataset's folder; NAME=DIR where a table needs several (repeatable)."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="The published file of the backbone; NAME=FILE where a table needs several (repeatable), or `none` to "
            "train from random numbers."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: runs, overrides, steps, prompts, estimated GPU hours.")
    ] = False,
    phantom: Annotated[
        bool,
        typer.Option(
            "--phantom", help="Run the table at tiny size on the generated phantom: the machinery, no reproduction."
        ),
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="Also write the tables as .json, .csv, .md or .tex (repeatable)."),
    ] = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    nodes: Nodes = 1,
    override: Overrides = None,
) -> None:
    """Run a table of a paper, what is finished already taken up again, and print its numbers beside the paper's."""
    from ..evaluation.result_files import check_ending, write_tables

    for path in out or []:
        check_ending(path)
    from ..workflows.reproduce.reproduce import ReproduceOptions, plan
    from ..workflows.reproduce.reproduce import reproduce as run_table

    if dry_run:
        tables = plan(paper, table, row)
    else:
        from ..training.ranks import is_main
        from ..training.together import Layout, together

        with together(Layout(devices, nodes)) as count:
            options = ReproduceOptions(
                data=data or (),
                weights=weights or (),
                runs=runs,
                phantom=phantom,
                devices=count,
                overrides=override or (),
            )
            tables = run_table(paper, table, row, options)
        if not is_main():
            return
    for path in out or []:
        write_tables(path, tables)
    for each in tables:
        show_text(each)
