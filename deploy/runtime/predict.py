"""From scans on disk to their masks: what `samkd predict` and `runtime.pyz predict` both run.

`predict_scan` is the one way of a scan from file to file; `predict` is the verb around it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import SamkdError, UsageError, about
from ...volumes.byte_sizes import parse_bytes
from ...volumes.components import largest_components
from ...volumes.files import make_folder, write_json
from ...volumes.geometry import Volume
from ...volumes.io.nifti import read_geometry
from ...volumes.io.scans import (
    Source,
    find_scans,
    group_channels,
    is_nifti,
    mask_paths,
    memory_to_read_files,
    read_source,
    same_file,
    write_mask,
)
from ...volumes.pipeline import Model
from ...volumes.plan import grid
from ...volumes.prompt_parsing import Request
from ...volumes.prompts import ScanPrompts
from ...volumes.sliding_window import patch_count
from .clock import Clock
from .memory import Budget
from .package import warn_before_use
from .quality import scan_flags
from .report import run_report, volumes_ml

Watch = Callable[[str, float], None]  # a stage (reading, preparing, network, writing) and how much of it is done


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What a user can say to `predict`, on either command line; strings are taken for paths, too."""

    scans: Sequence[Path]  # files and folders
    output: Path  # the mask, or a folder for the masks
    prompts: Request = field(default_factory=Request)
    seg_type: str = "binary"  # of a DICOM-SEG: binary or labelmap
    report: Path | None = None  # JSON file to write
    ram: str | None = None  # limit for the whole process, such as "2G"
    fast: bool = False  # patches overlap less
    largest_component: bool = False  # of each class

    def __post_init__(self) -> None:
        object.__setattr__(self, "scans", [Path(scan) for scan in self.scans])
        object.__setattr__(self, "output", Path(self.output))
        object.__setattr__(self, "report", self.report and Path(self.report))


def predict(options: PredictOptions, open_model: Callable[[], Model]) -> int:
    """Segment scans, print the path of each mask as it is written, and return the exit code.

    Warnings and the errors of single scans go to stderr. One bad scan does not keep the others from being segmented:
    a last line then names those without a mask, and the exit code is that of the first error. Raises SamkdError for
    what stops all of them, before anything is written: no scan, masks that would be written over scans, prompts that
    cannot be used, a model that cannot be opened.
    """
    limit = parse_bytes(options.ram) if options.ram else None
    sources = find_scans(options.scans)
    started = time.perf_counter()
    model = open_model()
    warn_before_use(model)
    if options.fast:
        model = model.faster()
    seconds_load = time.perf_counter() - started
    scans = group_channels(sources, channels=model.in_channels)
    masks = mask_paths(scans, options.output, seg_type=options.seg_type)
    _refuse_places(options, scans, masks)
    prompts = _prompts_for(model, options.prompts, scans)
    budget = Budget(limit, model)
    if masks != [options.output]:
        make_folder(options.output)
    done: list[dict[str, Any]] = []
    failed: list[tuple[Source, SamkdError]] = []
    for scan, mask in zip(scans, masks, strict=True):
        try:
            row = predict_scan(
                model,
                scan,
                mask,
                prompts=prompts,
                budget=budget,
                largest_component=options.largest_component,
                seg_type=options.seg_type,
            )
        except SamkdError as error:
            _tell(f"error: {error}")
            failed.append((scan, error))
            continue
        print(mask, flush=True)
        for flag in row["flags"]:
            _tell(f"warning: {scan.place}: {flag}")
        done.append(row)
    if failed and len(scans) > 1:
        names = ", ".join(scan.place.name for scan, _ in failed)
        _tell(f"error: {len(failed)} of {len(scans)} scans have no mask: {names}")
    if options.report:
        errors = [{"scan": str(scan.place), "error": str(error)} for scan, error in failed]
        report = run_report(model, seconds_load=seconds_load, scans=done, failed=errors)
        write_json(options.report, report)
    return failed[0][1].exit_code if failed else 0


def predict_scan(
    model: Model,
    scan: Source,
    mask: Path,
    *,
    prompts: ScanPrompts | None = None,
    budget: Budget | None = None,
    largest_component: bool = False,
    seg_type: str = "binary",
    seg_identity: str | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Read, preprocess, segment, restore and write one scan; its part of the run report, seconds by stage included.

    "network" is the time spent waiting for the network, "postprocess" that of averaging and resampling, most of it
    while the network works on the next patch. `seg_identity` is what the UIDs of a DICOM-SEG are made of. `watch` is
    called at the start of every stage and before every patch; what it raises ends the scan, and no mask is written.
    Raises BadInputError for a scan that cannot be used or does not fit the budget, UsageError for more prompts than the
    network takes, OutputError.
    """
    clock, watch = Clock(), watch or _unwatched
    watch("reading", 0.0)
    with about(scan.place):
        with clock.stage("read"):
            if budget is not None and is_nifti(scan.files[0]):  # from the header, before the voxels take any memory
                reading = memory_to_read_files(scan, channels=model.in_channels)
                budget.choose(read_geometry(scan.files[0]), components=largest_component, reading=reading)
            volume = read_source(scan, channels=model.in_channels)
            source = volume.geometry
            if budget is not None:
                model, at_once = budget.choose(source, components=largest_component)
            else:
                model = model.fitting(grid(model.plan, source).shape)
                at_once = model.at_once
        watch("preparing", 0.0)
        with clock.stage("preprocess"):
            preprocessed = model.preprocess(volume)
        del volume  # the network sees the preprocessed scan only
        with clock.stage("segment"):
            infer = _watched(clock.waiting("network", model.infer), watch, preprocessed, model)
            labels = model.segment_preprocessed(preprocessed, source, prompts=prompts, infer=infer, at_once=at_once)
            if largest_component:
                labels = largest_components(labels)
    watch("writing", 0.0)
    with clock.stage("save"):
        write_mask(
            mask,
            labels,
            source,
            source=scan,
            names=model.class_names,
            seg_type=seg_type,
            seg_identity=seg_identity,
        )
    seconds = clock.seconds
    return {
        "scan": str(scan.place),
        "mask": str(mask),
        "shape": list(source.shape),
        "spacing_mm": list(source.spacing),
        "patch": list(model.plan.patch),
        "seconds": {
            "read": seconds["read"],
            "preprocess": seconds["preprocess"],
            "network": seconds["network"],
            "postprocess": seconds["segment"] - seconds["network"],
            "save": seconds["save"],
        },
        "volumes_ml": volumes_ml(labels, source, model.class_names),
        "flags": scan_flags(model, scan, preprocessed, labels, source),
    }


def _unwatched(stage: str, fraction: float) -> None:
    pass


def _watched(infer: Callable[..., Any], watch: Watch, preprocessed: Volume, model: Model) -> Callable[..., Any]:
    """`infer` for one patch after the other, with `watch` told before each how many of them are begun."""
    patches = patch_count(preprocessed.geometry.shape, model.plan.patch, model.plan.overlap)
    begun = count()

    def inferring(*inputs: Any) -> Any:
        watch("network", next(begun) / patches)
        return infer(*inputs)

    return inferring


def _refuse_places(options: PredictOptions, scans: Sequence[Source], masks: Sequence[Path]) -> None:
    """UsageError for masks among the scans of a folder, which would be scans the next time, and for a report that would
    be written over a scan, a mask or the prompts.
    """
    if any(path.is_dir() and path.resolve() == options.output.resolve() for path in options.scans):
        raise UsageError(f"-o {options.output}: the masks would lie among the scans; choose another folder")
    if options.report is None:
        return
    files = [*(file for scan in scans for file in scan.files), *masks, options.output]
    if options.prompts.file is not None:
        files.append(options.prompts.file)
    if any(same_file(options.report, file) for file in files):
        raise UsageError(f"--report {options.report}: is a scan, a mask or the prompts; choose another place")


def _prompts_for(model: Model, request: Request, scans: Sequence[Source]) -> ScanPrompts | None:
    """The prompts of a request for the one scan; None without any. Raises UsageError, BadInputError."""
    if not request.given:
        model.require_prompts(None)
        return None
    if len(scans) > 1:
        raise UsageError(f"{len(scans)} scans, but prompts belong to one; give them with that scan")
    return request.prompts_for(model.path, class_names=model.class_names, prompt_kinds=model.prompt_kinds)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
