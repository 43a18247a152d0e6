"""The verbs of runtime.pyz: predict, prompt, serve, verify, info."""

import argparse
import json
import sys
from pathlib import Path

from ...errors import UsageError
from ...volumes.files import make_folder
from ...volumes.io.scans import find_scans, group_channels, mask_paths
from ...volumes.prompt_parsing import Request
from .compiled_cache import CompiledCache
from .package import Package, warn_unchecked
from .predict import PredictOptions, predict
from .prompt import answers
from .verify import verify_package

_DEFAULT = "default: the folder that holds runtime.pyz"


def run(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit code. Raises SamkdError."""
    options = _parser().parse_args(arguments)
    return options.verb(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runtime.pyz", description="Segment scans with the package beside this file.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb, text in (
        (_predict, "segment scans"),
        (_prompt, "segment one scan again for every line of prompts on standard input"),
        (_serve, "serve a page, or segment what comes into a folder or over the network, until a signal ends it"),
        (_verify, "check every file, run the sample"),
        (_info, "describe"),
    ):
        each = verbs.add_parser(verb.__name__.strip("_"), help=text, description=text)
        each.set_defaults(verb=verb)
        if verb is not _serve:
            each.add_argument("--package", type=Path, help=f"folder or zip ({_DEFAULT})")
        each.add_argument("--trust", type=Path, metavar="PUBKEY", help="refuse what this key (PEM) did not sign")
        each.add_argument("--threads", type=_positive, help="threads for the network (default: all cores)")
        if verb in (_predict, _prompt):
            each.add_argument("--cache", type=Path, metavar="DIR", help="keep compiled models there: a quicker start")
        if verb is _prompt:
            each.add_argument("scan", type=Path, metavar="SCAN", help="NIfTI or DICOM scan")
            each.add_argument("-o", "--output", required=True, type=Path, help="the mask, written anew for every line")
        if verb is _predict:
            _add_predict_options(each)
        if verb is _serve:
            _add_serve_options(each)
    return parser


def _add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Those of `samkd predict`, which tests/cli/test_both_doors.py compares with them."""
    add = parser.add_argument
    add("scans", nargs="*", type=Path, metavar="SCAN", help="a scan (NIfTI, DICOM, picture), or a folder")
    add("-i", "--input", action="append", default=[], type=Path, metavar="SCAN", help="the same, as an option")
    add("-o", "--output", required=True, type=Path, help="the mask (*.dcm: DICOM-SEG), or a folder for the masks")
    add("--point", action="append", default=[], metavar="X,Y,Z[,LABEL]", help="label 1: inside, 0: outside")
    add("--box", action="append", default=[], metavar="X0,Y0,Z0,X1,Y1,Z1")
    add("--class", dest="name", help="the class that --point and --box mean")
    add("--space", default="mm", help="of --point and --box: mm (RAS+, the default) or voxel (i, j, k of the file)")
    add("--prompts", type=Path, metavar="FILE", help="JSON file of prompts, for one class or several")
    add("--seg-type", default="binary", help="of a DICOM-SEG: binary (the default) or labelmap")
    add("--report", type=Path, metavar="FILE", help="JSON file: seconds by stage, memory, organ volumes, flags")
    add("--fast", action="store_true", help="patches overlap by a quarter: fewer of them")
    add("--ram", metavar="SIZE", help="keep the whole process below this, for example 2G")
    add("--largest-component", action="store_true", help="keep the largest component of each class only")


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Those of `samkd serve`, which tests/deploy/runtime/serve/test_server.py compares with them."""
    add = parser.add_argument
    add("packages", nargs="*", type=Path, metavar="PACKAGE", help=f"folders or zips ({_DEFAULT})")
    add("--folder", type=Path, metavar="IN", help="segment every scan that is put into this folder")
    add("--out", type=Path, metavar="OUT", help="the folder for the masks of those scans")
    add("--dicom", metavar="AET:PORT", help="receive studies as this DICOM node")
    add("--send", action="append", default=[], metavar="AET@HOST:PORT", help="send DICOM-SEGs there (repeatable)")
    add("--allow", metavar="AET,...", help="accept studies from these calling AE titles alone")
    add("--allow-address", metavar="IP,...", help="accept studies from these addresses alone")
    add("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    add("--spool", default=Path("samkd-spool"), type=Path, help="the folder for jobs (default: samkd-spool)")
    add("--quiet", default=10.0, type=float, help="take a scan or a study after so many seconds without a change")
    add("--reserve", default="1G", metavar="SIZE", help="refuse objects when the disk has less left (default: 1G)")
    add("--largest-object", default="1G", metavar="SIZE", help="break off what sends more than this at once (1G)")
    add("--http", type=int, metavar="PORT", help="serve the page there (default: 8080, where no other door is open)")
    add("--names", metavar="HOST,...", help="names by which browsers may call the page, beside --host")
    add("--token-file", type=Path, metavar="FILE", help="the token that lets people in (default: none on this machine)")
    add("--cert", type=Path, metavar="PEM", help="the certificate of the page (TLS)")
    add("--key", type=Path, metavar="PEM", help="the key of that certificate")
    add("--plain-http", action="store_true", help="let others reach the page without TLS: behind a proxy that does it")
    add("--keep", default="1h", metavar="TIME", help="remove uploaded scans and masks so long after the last use")
    add("--max-upload", default="2G", metavar="SIZE", help="refuse larger uploads")
    add(
        "--max-expanded",
        default="8G",
        metavar="SIZE",
        help="refuse archives that unpack to more, and scans that need it",
    )
    add("--max-files", default=10_000, type=_positive, help="refuse uploads of more files")
    add("--max-uploads", default=8, type=_positive, help="refuse uploads while so many are under way")
    add("--max-waiting", default=64, type=_positive, help="refuse jobs while so many wait")
    add("--session-memory", default="2G", metavar="SIZE", help="for scans that are clicked into shape")
    add("--patience", default="30s", metavar="TIME", help="hang up on uploads that send nothing for so long")


def _predict(options: argparse.Namespace) -> int:
    scans = [*options.scans, *options.input]
    if not scans:
        raise UsageError("no scan named; give a file or a folder")
    return predict(
        PredictOptions(
            scans=scans,
            output=options.output,
            prompts=Request(options.point, options.box, options.name, options.space, options.prompts),
            seg_type=options.seg_type,
            report=options.report,
            ram=options.ram,
            fast=options.fast,
            largest_component=options.largest_component,
        ),
        lambda: _open(options),
    )


def _prompt(options: argparse.Namespace) -> int:
    sources = find_scans([options.scan])
    package = _open(options)
    warn_unchecked(package)
    scans = group_channels(sources, channels=package.in_channels)
    if len(scans) > 1:
        raise UsageError(f"{options.scan}: {len(scans)} scans, but prompts belong to one")
    (mask,) = mask_paths(scans, options.output)
    if mask != options.output:
        make_folder(options.output)
    for answer in answers(package, scans[0], mask, sys.stdin.buffer):
        print(json.dumps(answer), flush=True)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .serve.server import ServeOptions, serve

    paths = options.packages or [_beside()]
    return serve(
        ServeOptions(
            folder=options.folder,
            out=options.out,
            dicom=options.dicom,
            send=options.send,
            allow=options.allow,
            allow_address=options.allow_address,
            host=options.host,
            spool=options.spool,
            quiet=options.quiet,
            reserve=options.reserve,
            largest_object=options.largest_object,
            http=options.http,
            names=options.names,
            token_file=options.token_file,
            cert=options.cert,
            key=options.key,
            plain_http=options.plain_http,
            keep=options.keep,
            max_upload=options.max_upload,
            max_expanded=options.max_expanded,
            max_files=options.max_files,
            max_uploads=options.max_uploads,
            max_waiting=options.max_waiting,
            session_memory=options.session_memory,
            patience=options.patience,
        ),
        lambda: [Package.open(path, threads=options.threads, trust=options.trust) for path in paths],
    )


def _verify(options: argparse.Namespace) -> int:
    for line in verify_package(_open(options)):
        print(line, flush=True)
    return 0


def _info(options: argparse.Namespace) -> int:
    package = _open(options)
    manifest = package.manifest
    print(f"{manifest.name}: samkd {manifest.samkd}, {manifest.precision}, {manifest.target}")
    if manifest.signer is not None:
        print(f"signed by {manifest.signer}" + ("" if options.trust else " (not checked: give --trust PUBKEY)"))
    print(f"classes: {', '.join(name for value, name in package.class_names.items() if value)}")
    print(f"input: {package.in_channels} channel(s), patch {'x'.join(map(str, package.plan.patch))}")
    if package.prompt_kinds:
        print(f"prompts: {', '.join(sorted(package.prompt_kinds))}")
    print(f"computes in {package.engine.precision} with {package.engine.threads} threads ({package.engine.version})")
    for drop in manifest.scores:
        if drop.cases:
            print(
                f"Dice of {drop.name}: {drop.converted:.4f} on {drop.cases} validation scans (torch: {drop.torch:.4f})"
            )
    return 0


def _open(options: argparse.Namespace) -> Package:
    path, cache = options.package or _beside(), getattr(options, "cache", None)
    cache = CompiledCache(cache) if cache else None
    return Package.open(path, threads=options.threads, trust=options.trust, cache=cache)


def _beside() -> Path:
    """The folder that holds runtime.pyz. Raises UsageError when this is not runtime.pyz."""
    here = Path(sys.argv[0])
    if here.suffix != ".pyz":
        raise UsageError("no package named; give --package DIR")
    return here.resolve().parent


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected 1 or more")
    return value
