"""What the verbs print: tables and one-line facts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from ..deploy.runtime.manifest import Manifest
    from ..distill.study import Study
    from ..evaluation.records import CaseScores
    from ..evaluation.text_table import TextTable
    from ..volumes.datasets.registry import Dataset
    from ..workflows.bench.distillation import DistillationCosts
    from ..workflows.bench.serve import ServeCosts
    from ..workflows.report.report import Comparison
    from ..workflows.runs import RunSummary, Spare


def show(table: Table) -> None:
    """Print a table as wide as the terminal allows."""
    Console().print(table)


def show_text(table: "TextTable") -> None:
    """Print a table of texts."""
    shown = Table(*_folded(table.columns), title=table.title)
    for row in table.rows:
        shown.add_row(*row)
    show(shown)


def _folded(columns: Sequence[str]) -> list[Column]:
    """Columns whose texts are folded where they are too long: the name of a run that is cut cannot be copied."""
    return [Column(name, overflow="fold") for name in columns]


def print_scores(results: "Mapping[str, CaseScores | None]", *, title: str) -> None:
    """A table for every metric that the config names: a row per class and their mean, a column per model."""
    from ..evaluation.rules import TITLES
    from ..evaluation.score_tables import side_by_side

    known = {name: scores for name, scores in results.items() if scores}
    if not known:
        print(f"{title}: done; the dataset has no labelled test case to score on")
        return
    for metric in next(iter(known.values())).rules.metrics:
        show_text(side_by_side(known, metric, title=f"{TITLES[metric]}, {title}"))


def print_comparison(comparison: "Comparison") -> None:
    """The scores of every model in a report, its facts, and where it lies."""
    for table in comparison.tables:
        show_text(table)
    for name, value in comparison.facts.items():
        print(f"{name}: {value}")
    print(f"report: {comparison.html}")


def print_study(study: "Study") -> None:
    """Scores of teachers, control and students; then, per lambda, student minus control with its interval and p."""
    from ..evaluation.score_tables import comparison_tables

    runs = {
        "teacher" if len(study.teachers) == 1 else f"teacher {number}": run
        for number, run in enumerate(study.teachers, start=1)
    }
    if study.control:
        runs["control"] = study.control
    runs |= {f"lambda {value:g}": run for value, run in study.students.items() if run is not study.control}
    if scores := {name: test for name, run in runs.items() if (test := run.metrics().test)}:
        for table in comparison_tables(scores, title="test scans"):
            show_text(table)
    else:
        print("test scans: done; the dataset has no labelled test case to score on")
    for value, effect in study.effects.items():
        table = Table(
            "class", "difference", "95 % interval", "p", "cases", title=f"Dice, lambda {value:g} minus the control"
        )
        for name, row in effect.items():
            low_to_high = "-" if row.low is None else f"{row.low:+.4f} to {row.high:+.4f}"
            p = "-" if row.p is None else f"{row.p:.3g}"
            difference = "-" if row.difference is None else f"{row.difference:+.4f}"
            table.add_row(name, difference, low_to_high, p, str(row.cases))
        show(table)
    for name, run in runs.items():
        print(f"{name}: {run.path}")
    if study.curve:
        print(f"curve: {study.curve}")


def print_distill_costs(costs: "DistillationCosts") -> None:
    """Seconds per training step by where the soft targets come from, and what the cache of them costs."""
    steps = costs.steps
    size = " x ".join(map(str, steps.patch))
    table = Table(
        "step",
        "seconds",
        "to the one alone",
        title=f"{steps.student}, patch {size}, batch {steps.batch}, {steps.device}",
    )
    names = {"alone": "without a teacher", "cached": "cached targets", "online": "online"}
    for kind, seconds in steps.seconds.items():
        table.add_row(names[kind], f"{seconds:.3f}", f"{seconds / steps.seconds['alone']:.2f}")
    show(table)
    if steps.refused:
        print(steps.refused)
    of_float16 = costs.bytes_per_case / costs.float16_bytes
    print(
        f"cache: {costs.bytes_per_case / 1e3:.1f} kB per case, {100 * of_float16:.1f} % of float16; "
        f"a patch is read in {costs.read_ms:.2f} ms"
    )
    print(
        f"Dice of the teacher's targets: {costs.exact_dice:.5f} as float32, {costs.cached_dice:.5f} cached; "
        f"{costs.changed_voxels} voxels changed their class"
    )


def print_package(package: Path) -> None:
    """How every candidate was judged on the way to the package, and what the package is."""
    from ..deploy.runtime.judgement import timed_precisions
    from ..deploy.runtime.manifest import Manifest
    from ..volumes.files import size_of

    manifest = Manifest.read(package)
    before = {drop.name: drop.torch for drop in manifest.scores if drop.torch is not None}
    prompted = manifest.prompts is not None
    more = ("same class, prompted",) if prompted else ()
    table = Table("candidate", "SNR, dB", "same class", "largest loss of Dice", *more, "")
    for result in manifest.candidates:
        scores = result.per_class
        losses = {name: dice - (scores[name].dice or 0) for name, dice in before.items() if scores}
        worst = max(losses, key=losses.__getitem__, default=None)
        row = (
            result.title,
            "" if result.snr_db is None else f"{result.snr_db:.1f}",
            "" if result.agreement is None else f"{result.agreement:.5f}",
            "" if worst is None else f"{losses[worst]:.4f} ({worst})",
        )
        with_prompts = result.prompted
        shown = ("" if with_prompts is None else f"{with_prompts.agreement:.5f}",) if prompted else ()
        table.add_row(*row, *shown, "passed" if result.refusal is None else "refused")
    show(table)
    if manifest.geometries:
        show(_geometries(manifest))
    if manifest.processor:
        print(f"Chosen for processors of the class {manifest.processor}.")
    if manifest.geometries or manifest.processor:
        print(timed_precisions(manifest.candidates))
    print(f"{package}: {size_of(package) / 1e6:.1f} MB, {manifest.target}, {manifest.precision}")


def _geometries(manifest: "Manifest") -> Table:
    """What every patch and overlap did that was tried, the training's first."""
    table = Table("patch", "overlap", "voxels computed for each", "Dice", "HD95, mm", "CPU seconds a scan", "")
    for each in manifest.geometries:
        measured = (each.dice, each.hd95_mm, each.cpu_seconds)
        numbers = ("" if value is None else f"{value:.4g}" for value in measured)
        patch, overlap = " x ".join(map(str, each.patch)), each.overlap_text
        plan = manifest.plan
        packed = (each.patch, each.overlap, each.blending, each.crop) == (
            *(plan.patch, plan.overlap, plan.blending, plan.crop),
        )
        verdict = "packed" if packed else "refused" if each.refusal else "passed"
        table.add_row(patch, overlap, f"{each.work:.2f}", *numbers, verdict)
    return table


def print_cases(dataset: "Dataset", rows: list[dict]) -> None:
    """What a dataset holds, as ranges over its readable cases, and then every fault."""
    from ..volumes.datasets.survey import absent_classes, ranges

    print(
        f"{dataset.root}: {dataset.layout} layout, {dataset.name}, {len(dataset.training)} training and "
        f"{len(dataset.test)} test cases"
    )
    print(f"channels: {', '.join(dataset.channels)}; classes: {', '.join(dataset.labels.values())}")
    table = Table("over all cases", "lowest", "median", "highest")
    for title, values in ranges(dataset, rows):
        table.add_row(title, f"{min(values):.4g}", f"{median(values):.4g}", f"{max(values):.4g}")
    show(table)
    codes = Counter(row["axis_codes"] for row in rows if row["shape"])
    print("axes: " + ", ".join(f"{code} {count}" for code, count in codes.most_common()))
    for row in rows:
        if row["fault"]:
            print(f"{row['name']}: {row['fault']}")
    if absent := absent_classes(dataset, rows):
        print(f"warning: in no training mask: {', '.join(absent)}; no network can learn what it is never shown")


def print_series(rows: list[dict]) -> None:
    """DICOM series one by one, the readable ones in a table, and then every fault."""
    table = Table("series", "voxels", "spacing, mm", "axes", "p0.5", "median", "p99.5")
    for row in rows:
        if row["shape"]:
            sizes = (" x ".join(f"{value:.4g}" for value in row[key]) for key in ("shape", "spacing"))
            table.add_row(
                row["name"], *sizes, row["axis_codes"], *(f"{v:.4g}" for v in row["intensity"]["scan"].values())
            )
    show(table)
    for row in rows:
        if row["fault"]:
            print(f"{row['name']}: {row['fault']}")


def print_networks(rows: Iterable[dict[str, Any]], *, classes: int) -> None:
    """Every teacher, with every backbone it adapts, and every student, with its number of parameters."""
    table = Table(
        "kind", "network", "backbone", "patch", "parameters", "tuned on SAM's weights", title=f"{classes} classes"
    )
    for row in rows:
        tuned = f"{row['tuned'] / 1e6:.2f} M" if row["kind"] == "teacher" else ""
        size = " x ".join(map(str, row["patch"]))
        table.add_row(row["kind"], row["name"], row["backbone"], size, f"{row['parameters'] / 1e6:.2f} M", tuned)
    show(table)


def print_configs(configs: Iterable[dict[str, Any]]) -> None:
    """The configs of configs/, each as configs.schema.Config dumps it."""
    table = Table("config", "what", "teacher", "student")
    for config in configs:
        networks = (config["teacher"], config["student"])
        sides = (f"{side['name']}, {' x '.join(map(str, side['plan']['patch']))}" for side in networks)
        table.add_row(config["name"], config["description"], *sides)
    show(table)


def print_step_costs(rows: Iterable[dict[str, Any]], *, title: str) -> None:
    """Speed, waiting, peak memory and the share of the device's peak of a training step, by setting."""
    heads = ("seconds", "samples/s", "waiting", "peak memory", "GFLOP/s", "of the peak", "on")
    table = Table("setting", *heads, title=title)
    for row in rows:
        measured = (
            (row["fault"], *[""] * (len(heads) - 1))
            if "fault" in row
            else (
                f"{row['seconds']:.2f}",
                f"{row['samples_per_second']:.3g}",
                f"{row['waiting']:.1%}",
                f"{row['peak_mb']:.0f} MB",
                f"{row['flops_per_second'] / 1e9:.3g}",
                f"{row['share_of_peak']:.0%}",
                row["device"],
            )
        )
        table.add_row(row["setting"], *measured)
    show(table)


def print_runtimes(rows: Sequence[dict[str, Any]], *, title: str) -> None:
    """Seconds by stage and peak memory, a column per package and per torch network."""
    table = Table("seconds", *(row["model"] for row in rows), title=title)
    table.add_row("precision", *(row["precision"] for row in rows))
    for stage in rows[0]["seconds"]:
        table.add_row(stage, *(f"{row['seconds'][stage]:.2f}" for row in rows))
    table.add_row("whole process", *(f"{row['process']:.2f}" for row in rows))
    peaks = (row["peak_memory_mb"] for row in rows)
    table.add_row("peak memory", *("-" if peak is None else f"{peak:.0f} MB" for peak in peaks))
    show(table)


def print_serve_costs(costs: "ServeCosts", *, title: str) -> None:
    """What became of the uploads, how long a mask took, and the server's peak memory."""
    table = Table("uploads", "", title=title)
    for state, count in costs.counts.items():
        table.add_row(state, str(count))
    table.add_row("seconds to a mask, p50", f"{costs.p50:.2f}")
    table.add_row("seconds to a mask, p95", f"{costs.p95:.2f}")
    table.add_row("seconds for all", f"{costs.seconds:.1f}")
    peak = costs.peak_memory_mb
    table.add_row("server's peak memory", "-" if peak is None else f"{peak:.0f} MB")
    show(table)
    for fault in costs.faults:
        print(f"lost: {fault}")


def print_doctor(rows: Iterable[tuple[str, str, str]]) -> None:
    """What works on this machine: a row per part, its state, and what to do about it."""
    table = Table("part", "state", "to do")
    for row in rows:
        table.add_row(*row)
    show(table)


def print_runs(rows: "Sequence[RunSummary]", *, root: Path) -> None:
    """One row per run: its state, its test Dice (else the best validation Dice), which runs taught it, and the packages
    that were made from it; then what is wrong with those that cannot be read.
    """
    if not rows:
        print(f"{root}: holds no run; `samkd teach` makes one")
        return
    columns = ("run", "network", "state", "Dice", "MB", "from", "into")
    table = Table(*_folded(columns))
    for row in rows:
        steps = f"{row.step} steps" if row.steps in (None, row.step) else f"{row.step} of {row.steps} steps"
        dice = row.validation_dice if row.test_dice is None else row.test_dice
        scored = "" if dice is None else f"{dice:.3f}{' (validation)' if row.test_dice is None else ''}"
        made_of = (", ".join(names) for names in (row.teachers, row.packages))
        state = row.state if row.fault else f"{row.state}, {steps}"
        table.add_row(row.name, row.network, state, scored, f"{row.bytes / 1e6:.1f}", *made_of)
    show(table)
    for row in rows:
        if row.fault:
            print(row.fault)


def print_spare(spared: "Sequence[Spare]", *, removed: bool) -> None:
    """What was, or could be, removed, and how many bytes that is."""
    for each in spared:
        print(f"{each.path}: {each.bytes / 1e6:.1f} MB ({each.reason})")
    total = f"{sum(each.bytes for each in spared) / 1e6:.1f} MB"
    print(f"{total} removed" if removed else f"{total} in all; `samkd runs clean --yes` removes them")
