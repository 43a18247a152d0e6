"""The verbs that use a model: predict, serve, evaluate, verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import Modality, PretrainedPath, Split, Trust
from .tables import show_text

if TYPE_CHECKING:
    from ..evaluation.records import CaseScores


def predict(
    model: Annotated[Path, typer.Argument(help="Package (folder or zip) or run folder.")],
    scans: Annotated[
        list[Path],
        typer.Option("--input", "-i", help="A scan (NIfTI, PNG, JPEG, TIFF, DICOM), or a folder (repeatable)."),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="The mask (*.dcm: DICOM-SEG), or a folder for the masks.")
    ],
    point: Annotated[
        list[str] | None, typer.Option(help="A point x,y,z or x,y,z,label; label 1 is inside the class, 0 outside.")
    ] = None,
    box: Annotated[list[str] | None, typer.Option(help="A box around the class: x0,y0,z0,x1,y1,z1.")] = None,
    name: Annotated[str | None, typer.Option("--class", help="The class that --point and --box mean.")] = None,
    space: Annotated[
        str, typer.Option(help="What the numbers of --point and --box are: mm (RAS+) or voxel (i, j, k of the file).")
    ] = "mm",
    prompts: Annotated[Path | None, typer.Option(help="A JSON file of prompts, for one class or several.")] = None,
    pretrained_path: PretrainedPath = None,
    seg_type: Annotated[str, typer.Option(help="The type of a DICOM-SEG: binary or labelmap.")] = "binary",
    report: Annotated[
        Path | None, typer.Option(help="Write seconds by stage, memory, organ volumes and warnings to this JSON file.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Let patches overlap by a quarter only: fewer of them.")] = False,
    ram: Annotated[str | None, typer.Option(help="Keep the whole process below this, for example 2G.")] = None,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep the largest component of each class only.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for the network (default: all cores).")] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep compiled models of packages there: a quicker start.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Segment scans. Masks lie on the scan's own grid. Promptable networks also take points and boxes."""
    from ..volumes.prompt_parsing import Request
    from ..workflows.predict import PredictOptions
    from ..workflows.predict import predict as predict_scans

    options = PredictOptions(
        scans=scans,
        output=out,
        prompts=Request(point or [], box or [], name, space, prompts),
        seg_type=seg_type,
        report=report,
        ram=ram,
        fast=fast,
        largest_component=largest_component,
    )
    raise typer.Exit(
        predict_scans(model, options, pretrained_path=pretrained_path, trust=trust, threads=threads, cache=cache)
    )


def serve(
    packages: Annotated[list[Path], typer.Argument(metavar="PACKAGE...", help="Packages (folders or zips).")],
    folder: Annotated[Path | None, typer.Option(help="Segment every scan that is put into this folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the masks of those scans.")] = None,
    dicom: Annotated[str | None, typer.Option(help="Receive studies as this DICOM node: AET:PORT.")] = None,
    send: Annotated[
        list[str] | None, typer.Option(help="Send the DICOM-SEGs of studies to AET@HOST:PORT (repeatable).")
    ] = None,
    allow: Annotated[
        str | None, typer.Option(help="Accept studies from these calling AE titles alone, separated by commas.")
    ] = None,
    allow_address: Annotated[
        str | None, typer.Option(help="Accept studies from these addresses alone, separated by commas.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    spool: Annotated[Path, typer.Option(help="The folder for jobs.")] = Path("samkd-spool"),
    quiet: Annotated[
        float, typer.Option(min=0, help="Take a scan or a study after so many seconds without a change.")
    ] = 10.0,
    reserve: Annotated[str, typer.Option(help="Refuse objects when the disk has less left.")] = "1G",
    largest_object: Annotated[
        str, typer.Option(help="Break off what sends DICOM objects of more than this at the same time.")
    ] = "1G",
    http: Annotated[
        int | None, typer.Option(help="Serve the page on this port; 8080 where no other door is open.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Names by which browsers may call the page, beside --host, separated by commas.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="The token that lets people in; on this machine alone none is needed.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="The certificate of the page (TLS), as PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="The key of that certificate, as PEM.")] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Let others reach the page without TLS: behind a proxy that does it.")
    ] = False,
    keep: Annotated[str, typer.Option(help="Remove uploaded scans and masks so long after their last use.")] = "1h",
    max_upload: Annotated[str, typer.Option(help="Refuse larger uploads.")] = "2G",
    max_expanded: Annotated[
        str, typer.Option(help="Refuse archives that unpack to more, and scans that need it.")
    ] = "8G",
    max_files: Annotated[int, typer.Option(min=1, help="Refuse uploads of more files.")] = 10_000,
    max_uploads: Annotated[int, typer.Option(min=1, help="Refuse uploads while so many are under way.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=1, help="Refuse jobs while so many wait.")] = 64,
    session_memory: Annotated[str, typer.Option(help="Memory for scans that are clicked into shape.")] = "2G",
    patience: Annotated[str, typer.Option(help="Hang up on uploads that send nothing for so long.")] = "30s",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for the network (default: all cores).")] = None,
    trust: Trust = None,
) -> None:
    """Serve a page, or segment what comes into a folder or over the network (DICOM), until a signal ends it."""
    from ..deploy.runtime.package import Package
    from ..deploy.runtime.serve.server import ServeOptions
    from ..deploy.runtime.serve.server import serve as serve_packages

    options = ServeOptions(
        folder=folder,
        out=out,
        dicom=dicom,
        send=send or [],
        allow=allow,
        allow_address=allow_address,
        host=host,
        spool=spool,
        quiet=quiet,
        reserve=reserve,
        largest_object=largest_object,
        http=http,
        names=names,
        token_file=token_file,
        cert=cert,
        key=key,
        plain_http=plain_http,
        keep=keep,
        max_upload=max_upload,
        max_expanded=max_expanded,
        max_files=max_files,
        max_uploads=max_uploads,
        max_waiting=max_waiting,
        session_memory=session_memory,
        patience=patience,
    )
    raise typer.Exit(
        serve_packages(options, lambda: [Package.open(path, threads=threads, trust=trust) for path in packages])
    )


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL", help="A package, a run folder, or a folder of masks named like the scans; see --compare."
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="The dataset's folder, with labelled test cases.")] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="Also write the result (repeatable): every score as .json or .csv, the table of means as .md or .tex.",
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--prompt-from-truth",
            help="Show each class by prompts from its true mask: point, points:3, box, boxes (one a slice) or "
            "everything:16, then key=value pairs (docs/prompts.md): points:3,slices=each,place=random,wrong=1.",
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Score so many draws of the prompts: mean and deviation over the repetitions.")
    ] = 1,
    split: Split = None,
    modality: Modality = None,
    pretrained_path: PretrainedPath = None,
    config_name: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            help="The config whose `classes` say how the model's classes are made of the dataset's, and whose "
            "`evaluation` how masks are scored.",
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a rule of scoring: evaluation.tolerance_mm=5 (repeatable)."),
    ] = None,
    cases: Annotated[bool, typer.Option("--cases", help="Also print a row for every case.")] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Compare finished results, each a run folder or a JSON file of -o, by paired differences; no --data.",
        ),
    ] = False,
    trust: Trust = None,
) -> None:
    """Score a model on the labelled test cases: whole volumes, empty slices included; or --compare results."""
    from ..evaluation.result_files import check_ending

    for path in out or []:
        check_ending(path)
    if compare:
        if any((data, truth, split, modality, pretrained_path, config_name, cases, trust)):
            raise UsageError("--compare takes results, --set and -o alone; they are scored already")
        _compare(models, out or [], override)
        return
    if data is None or len(models) != 1:
        raise UsageError("give one model and --data, the folder of the dataset to score it on")
    if repeat > 1 and truth is None:
        raise UsageError("--repeat needs --prompt-from-truth: nothing else is drawn at random")
    from ..workflows.evaluate import evaluate as score

    repetitions = [
        score(
            models[0],
            data,
            prompt_from_truth=truth,
            split=split,
            modality=modality,
            pretrained_path=pretrained_path,
            config_name=config_name,
            trust=trust,
            overrides=override,
            repetition=repetition,
        )
        for repetition in range(repeat)
    ]
    prompted = f", shown {truth} from the truth for every class" if truth else ""
    title = f"{models[0]} on {len(repetitions[0].cases)} test scans{prompted}"
    _tell(repetitions, out or [], title=title, truth=truth, cases=cases)


def _compare(results: list[Path], out: list[Path], override: list[str] | None) -> None:
    """Print and write the tables of a comparison."""
    from ..evaluation.result_files import write_tables
    from ..workflows.compare import compare

    tables = compare(results, overrides=override)
    for path in out:
        write_tables(path, tables)
    for table in tables:
        show_text(table)


def _tell(repetitions: "list[CaseScores]", out: list[Path], *, title: str, truth: str | None, cases: bool) -> None:
    """Print and write the scores of one draw of prompts or of several, and on demand those of every case."""
    from ..evaluation.result_files import write_repetitions, write_result
    from ..evaluation.score_tables import repetition_table, score_table, unit_table

    more = {"prompts_from_truth": truth}
    if len(repetitions) > 1:
        table = repetition_table(repetitions, title=title)
        for path in out:
            write_repetitions(path, repetitions, table, more=more)
    else:
        table = score_table(repetitions[0], title=title)
        for path in out:
            write_result(path, repetitions[0], title=title, more=more)
    show_text(table)
    if cases:
        for number, scores in enumerate(repetitions, start=1):
            show_text(unit_table(scores, title=title if len(repetitions) == 1 else f"{title}, draw {number}"))


def verify(package: Annotated[Path, typer.Argument(help="A package (folder or zip).")], trust: Trust = None) -> None:
    """Check every file of a package and its signature, and that this machine gives the sample's mask."""
    from ..deploy.runtime.package import Package
    from ..deploy.runtime.verify import verify_package

    opened = Package.open(package, trust=trust)
    if trust is not None:
        typer.echo(f"signature: that of {trust}")
    for line in verify_package(opened):
        typer.echo(line)
