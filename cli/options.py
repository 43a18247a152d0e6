"""Options that several verbs share, and the parsers of what a user writes behind an option."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import UsageError

ConfigName = Annotated[
    str | None, typer.Option("--config", "-c", help="The config: a name in configs/ or a YAML file.")
]
Data = Annotated[Path | None, typer.Option(help="The dataset's folder, in any layout that `samkd check` knows.")]
Split = Annotated[
    Path | None, typer.Option(help="Use the cases as this splits.json divides them; every run folder holds one.")
]
Modality = Annotated[
    str | None, typer.Option(help="Use the scans of one modality, CT or MR, of a dataset that holds both (AMOS22).")
]
Trust = Annotated[
    Path | None,
    typer.Option(help="Refuse a package that the owner of this ed25519 public key (PEM) did not sign."),
]
PretrainedPath = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="Where the published file lies that the run adapts, if it was moved; or `litemedsam`."
    ),
]
Runs = Annotated[Path, typer.Option(help="The folder that holds runs, caches and packages.")]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="The run folder to write (default: named after the config).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the config: student.training.steps=50 (repeatable)."),
]
Devices = Annotated[
    int,
    typer.Option(min=1, help="How many devices of each machine train together; torchrun and srun say it themselves."),
]
Nodes = Annotated[
    int,
    typer.Option(
        min=1, help="How many machines train together; each starts the command, with MASTER_ADDR and NODE_RANK set."
    ),
]
Vram = Annotated[
    str | None,
    typer.Option(
        help="Train within so much memory of each device (24G; on a CPU its RAM), or `auto`, all that it has: steps "
        "are measured first, and a batch that does not fit goes through the network in parts, its loss unchanged."
    ),
]
Strategy = Annotated[
    Literal["ddp", "fsdp"],
    typer.Option(
        help="How a network lies on several devices: whole on each (ddp), or with its weights, gradients and the "
        "optimiser's moments divided among them (fsdp), for one that is too large for a device."
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write loss, learning rate, Dice, speed and memory as event files into the run folder, for `tensorboard "
        "--logdir runs`.",
    ),
]
MLflow = Annotated[
    str | None,
    typer.Option("--mlflow", help="Write the same to an MLflow server, or into a folder: its URI (samkd[mlflow])."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def overrides_of(**options: Any) -> list[str]:
    """Config overrides from the options that were given: `teacher__name="masam"` is "teacher.name=masam".

    Options that are None are left out.
    """
    return [f"{key.replace('__', '.')}={value}" for key, value in options.items() if value is not None]


def split_override(path: Path | None) -> list[str]:
    """The config override that fixes the cases to those of a splits.json; none without one. Raises BadInputError."""
    if path is None:
        return []
    from ..volumes.datasets.splits import read_split

    return [f"split={json.dumps({'cases': read_split(path)})}"]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Slices, rows and columns from "200x256x256". Raises UsageError."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--shape {text!r}: expected slices x rows x columns, for example 200x256x256")
    d, h, w = map(int, parts)
    return d, h, w


def parse_vram(text: str | None) -> float | None:
    """Bytes from "24G", infinitely many from "auto"; None from None. Raises UsageError."""
    from ..volumes.byte_sizes import parse_bytes

    if text is None:
        return None
    return float("inf") if text == "auto" else parse_bytes(text, option="--vram")


def parse_lambdas(text: str | None) -> Sequence[float]:
    """Numbers from 0 to 1 from "0,0.2,1"; none from None. Raises UsageError."""
    if text is None:
        return []
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
