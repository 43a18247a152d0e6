"""The verbs that only look: info, doctor, report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import AsJson, Data, PretrainedPath, Runs, Trust
from .tables import print_comparison, print_configs, print_doctor, print_networks


def info(
    what: Annotated[
        str,
        typer.Argument(
            help="What to list: networks, configs (the configs that samkd ships), or config (the keys of one)."
        ),
    ] = "networks",
    classes: Annotated[
        int, typer.Option(min=2, help="Count parameters for so many classes, the background included.")
    ] = 13,
    as_json: AsJson = False,
) -> None:
    """List teachers, backbones and students with their parameters; or the configs; or every key of a config."""
    if what == "networks":
        from ..workflows.catalogue import networks

        rows = networks(classes=classes)
        if as_json:
            typer.echo(json.dumps(list(rows), indent=1))
        else:
            print_networks(rows, classes=classes)
    elif what in ("configs", "recipes"):  # the second is what configs were called first
        from ..configs.load import configs

        values = [config.model_dump(mode="json", by_alias=True) for config in configs()]
        if as_json:
            typer.echo(json.dumps(values, indent=1))
        else:
            print_configs(values)
    elif what == "config":
        from ..configs.describe import config_text, json_schema

        typer.echo(json.dumps(json_schema(), indent=1) if as_json else config_text())
    else:
        raise UsageError(f"samkd info {what}: choose networks, configs or config")


def doctor() -> None:
    """Say what works on this machine and how to get the rest."""
    from ..workflows.doctor import examine

    print_doctor(examine())


def report(
    packages: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The package (default: the newest), or several to compare: the first one's student is shown."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file to write (default: RUNS/report.html).")
    ] = None,
    data: Data = None,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration",
            help="Also measure how well the probabilities of student and packages are calibrated (ECE), and the "
            "temperature that the validation cases say; both segment all of these and the test scans once more.",
        ),
    ] = False,
    pretrained_path: PretrainedPath = None,
    runs: Runs = Path("runs"),
    trust: Trust = None,
) -> None:
    """Compare teacher, control, student and packages in one offline HTML file."""
    from ..workflows.report.report import report as compare

    print_comparison(
        compare(
            packages or [],
            out=out or runs / "report.html",
            data=data,
            runs=runs,
            pretrained_path=pretrained_path,
            trust=trust,
            calibration=calibration,
        )
    )
