"""The verb that looks after run folders: runs, runs clean."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Runs
from .tables import print_runs, print_spare

app = typer.Typer(
    help="List the runs in a folder: state, scores, sizes, who taught them and what was packed from them."
)


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, runs: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs in a folder: state, scores, sizes, who taught them and what was packed from them."""
    if context.invoked_subcommand is not None:
        return
    from ..workflows.runs import list_runs

    rows = list_runs(runs)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print_runs(rows, root=runs)


@app.command()
def clean(
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed; without it nothing is removed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, also with --yes.")] = False,
    caches: Annotated[
        bool, typer.Option("--caches", help="Also the preprocessed cases and soft targets, which are made again.")
    ] = False,
) -> None:
    """List runs that were stopped, and what finished ones kept to be resumed; with --yes remove them."""
    from ..workflows.runs import remove, spare

    yes = yes and not dry_run
    spared = spare(runs, caches=caches)
    if yes:
        remove(spared)
    print_spare(spared, removed=yes)
