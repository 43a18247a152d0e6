"""The verb that packs a student: deploy."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Overrides, Runs, overrides_of
from .tables import print_package


def deploy(
    run: Annotated[Path | None, typer.Argument(help="The student's run (default: the newest distilled one).")] = None,
    target: Annotated[str, typer.Option(help="The engine that runs it: openvino, onnx or tensorrt.")] = "openvino",
    precision: Annotated[
        str | None, typer.Option(help="The numbers it computes with: fp32, fp16, bf16 or int8.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="The largest loss of Dice on the validation scans that is accepted."),
    ] = None,
    per_class: Annotated[
        bool | None,
        typer.Option(
            help="Whether --max-drop holds for every class by itself or only for the mean of all classes "
            "(default: for every class)."
        ),
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(
            help="The patches on the device: those of the training, or the fastest that lose no more than --max-drop "
            "(larger, overlapping less)."
        ),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            help="Judge for processors of this class (avx2, avx512, avx512_vnni, avx512_bf16 or amx), and pack fp32 "
            "where --precision is not faster there (default: this machine's)."
        ),
    ] = None,
    temperature: Annotated[
        bool | None,
        typer.Option(
            help="Whether a temperature that is fitted to the validation scans scales the probabilities that the "
            "package gives to programs; masks stay the same (default: no)."
        ),
    ] = None,
    data: Data = None,
    sign: Annotated[Path | None, typer.Option(help="Sign the package with this ed25519 private key (PEM).")] = None,
    out: Annotated[Path | None, typer.Option(help="The package folder to write (default: RUNS/packages/...).")] = None,
    runs: Runs = Path("runs"),
    override: Overrides = None,
) -> None:
    """Convert, quantize, prove that nothing was lost, and pack a student for the device."""
    from ..training.run import Run, newest_run

    student = Run.read(run) if run else newest_run(runs, "distill")
    settings = {"precision": precision, "max_drop": max_drop, "per_class": per_class, "geometry": geometry}
    settings |= {"temperature": temperature, "cpu": cpu}
    overrides = overrides_of(**{f"deployment__{key}": value for key, value in settings.items()})

    from ..workflows.deploy import deploy as pack

    overrides += override or []
    print_package(pack(student, target=target, data=data, out=out, runs=runs, overrides=overrides, sign=sign))
