"""The command line: the verbs put together, how their errors end, and the script's entry `main`.

A verb reads its options, calls one workflow, which it imports inside its body, and prints the result. So
`samkd --help` answers at once, and PyTorch is loaded only by verbs that need it.
"""

import os
import signal
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import SamkdError
from . import bench, data, deploy, inspect, reproduce, runs, train, use


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
app.command()(train.teach)
app.command()(train.distill)
app.command()(deploy.deploy)
app.command()(use.predict)
app.command()(use.serve)
app.command()(use.verify)
app.command()(use.evaluate)
app.command()(reproduce.reproduce)
app.command()(inspect.report)
app.command()(data.check)
app.command()(data.convert)
app.command()(data.prompts)
app.add_typer(bench.app, name="bench")
app.add_typer(runs.app, name="runs")
app.command()(inspect.info)
app.command()(inspect.doctor)
app.command()(train.demo)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the verb on the command line and exit with its code."""
    # Before PyTorch is loaded: threads that wait for each other soon sleep. Spinning for as long as libgomp does by
    # default, two threads on two cores slow each other down four times and more when another program wants a core.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each of several processes would say the same
    for name in {"SIGTERM", "SIGUSR1"} & {*dir(signal)}:  # SLURM sends the second before it takes a machine away
        signal.signal(getattr(signal, name), lambda *_: sys.exit(143))  # unwinds: nothing half-written stays behind
    app(prog_name="samkd")


if __name__ == "__main__":
    sys.exit(main())
