"""The verbs of runtime.pyz: predict, prompt, verify, info."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ...errors import SamkdError, UsageError
from ...volumes.files import atomic_path, make_folder
from ...volumes.io.scans import Source, mask_paths, sources
from ...volumes.prompt_parsing import Request
from .memory import Budget, parse_bytes
from .package import Package
from .predict import predict
from .prompt import answers
from .report import run_report
from .verify import verify_sample


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
        (_verify, "check every file, run the sample"),
        (_info, "describe"),
    ):
        each = verbs.add_parser(verb.__name__.strip("_"), help=text, description=text)
        each.set_defaults(verb=verb)
        each.add_argument("--package", type=Path, help="folder or zip (default: the folder that holds runtime.pyz)")
        each.add_argument("--trust", type=Path, metavar="PUBKEY", help="refuse what this key (PEM) did not sign")
        each.add_argument("--threads", type=_positive, help="threads for the network (default: all cores)")
        if verb is _prompt:
            each.add_argument("scan", type=Path, metavar="SCAN", help="NIfTI or DICOM scan")
            each.add_argument("-o", "--output", required=True, type=Path, help="the mask, written anew for every line")
        if verb is _predict:
            each.add_argument(
                "--point", action="append", default=[], metavar="X,Y,Z[,LABEL]", help="1 inside, 0 outside"
            )
            each.add_argument("--box", action="append", default=[], metavar="X0,Y0,Z0,X1,Y1,Z1")
            each.add_argument("--class", dest="name", help="the class that --point and --box mean")
            each.add_argument("--space", default="mm", help="of --point and --box: mm (RAS+, the default) or voxel")
            each.add_argument("--prompts", type=Path, metavar="FILE", help="JSON file of prompts")
            each.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help="NIfTI or DICOM scan, or a folder")
            each.add_argument("-o", "--output", required=True, type=Path, help="the mask, or a folder for the masks")
            each.add_argument("--report", type=Path, help="JSON file: seconds by stage, memory, organ volumes, flags")
            each.add_argument("--fast", action="store_true", help="patches overlap by a quarter: fewer of them")
            each.add_argument("--ram", metavar="SIZE", help="keep the whole process below this, for example 2G")
            each.add_argument(
                "--largest-component", action="store_true", help="keep the largest component of each class only"
            )
    return parser


def _predict(options: argparse.Namespace) -> int:
    jobs = _jobs(options.scans, options.output)
    limit = parse_bytes(options.ram) if options.ram else None
    asked = Request(options.point, options.box, options.name, options.space, options.prompts)
    if asked.given and len(jobs) > 1:
        raise UsageError(f"{len(jobs)} scans, but prompts belong to one; give them with that scan")
    started = time.perf_counter()
    package = _open(options)
    prompts = asked.accepted(package.folder, labels=package.labels, takes=package.takes) if asked.given else None
    if options.fast:
        package = package.faster()
    budget = Budget(limit, package) if limit else None
    seconds_load = time.perf_counter() - started
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    code = 0
    for scan, mask in jobs:
        # One bad scan does not keep the others of a folder from being segmented.
        try:
            made = predict(
                package, scan, mask, budget=budget, largest_component=options.largest_component, prompts=prompts
            )
            done.append(made)
            print(mask, flush=True)
            for flag in made["flags"]:
                print(f"warning: {scan.place}: {flag}", file=sys.stderr, flush=True)
        except SamkdError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed.append({"scan": str(scan.place), "error": str(error)})
            code = code or error.exit_code
    if options.report:
        report = run_report(package, seconds_load=seconds_load, scans=done, failed=failed)
        with atomic_path(options.report) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return code


def _prompt(options: argparse.Namespace) -> int:
    ((scan, mask), *others) = _jobs([options.scan], options.output)
    if others:
        raise UsageError(f"{options.scan}: {1 + len(others)} scans, but prompts belong to one")
    for answer in answers(_open(options), scan, mask, sys.stdin.buffer):
        print(json.dumps(answer), flush=True)
    return 0


def _verify(options: argparse.Namespace) -> int:
    package = _open(options)
    print(f"files: all {len(package.manifest.files)} are what was packed")
    print(verify_sample(package))
    return 0


def _info(options: argparse.Namespace) -> int:
    package = _open(options)
    manifest = package.manifest
    print(f"{manifest.name}: samkd {manifest.samkd}, {manifest.precision}, {manifest.target}")
    if manifest.signer is not None:
        print(f"signed by {manifest.signer}" + ("" if options.trust else " (not checked: give --trust PUBKEY)"))
    print(f"classes: {', '.join(name for value, name in package.labels.items() if value)}")
    print(f"input: {package.in_channels} channel(s), patch {'x'.join(map(str, package.plan.patch))}")
    if package.takes:
        print(f"prompts: {', '.join(sorted(package.takes))}")
    print(f"computes in {package.engine.precision} with {package.engine.threads} threads ({package.engine.version})")
    for drop in manifest.scores:
        if drop.cases:
            print(
                f"Dice of {drop.name}: {drop.converted:.4f} on {drop.cases} validation scans (torch: {drop.torch:.4f})"
            )
    return 0


def _open(options: argparse.Namespace) -> Package:
    here = Path(sys.argv[0])
    if options.package is None and here.suffix != ".pyz":
        raise UsageError("no package named; give --package DIR")
    return Package.open(options.package or here.resolve().parent, threads=options.threads, trust=options.trust)


def _jobs(scans: list[Path], output: Path) -> list[tuple[Source, Path]]:
    """(scan, mask) pairs; nothing is overwritten that is itself to be read. Raises BadInputError, UsageError."""
    found = [source for scan in scans for source in sources(scan)]
    masks = mask_paths(found, output)
    if masks != [output]:
        make_folder(output)
    targets = {str(mask.resolve()).casefold() for mask in masks}
    if len(targets) < len(masks):
        raise UsageError(f"-o {output}: two scans have the same file name; segment them into different folders")
    clash = [file for source in found for file in source.files if str(file.resolve()).casefold() in targets]
    if clash:
        raise UsageError(f"-o {output}: the mask would overwrite the scan {clash[0]}; choose another place")
    return list(zip(found, masks, strict=True))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected 1 or more")
    return value
