"""What the verbs print: tables and one-line facts."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .volumes.dataset import Dataset


def show(table: Table) -> None:
    Console().print(table)


def test_summary(run) -> dict | None:
    """The scores of a run on its test scans, if it had any."""
    return (run.metrics()["test"] or {}).get("summary")


def print_dice(summaries: dict[str, dict | None], *, title: str) -> None:
    """One row per class and the mean over classes, one column per model; absent organs as the scores' rule says."""
    known = {name: summary for name, summary in summaries.items() if summary}
    if not known:
        print(f"{title}: done; the dataset has no labelled test case to score on")
        return
    columns = {
        name: {
            **{label: row["dice"] for label, row in summary["per_class"].items()},
            "mean": summary["mean"]["dice"],
        }
        for name, summary in known.items()
    }
    show(_dice_table(columns, title=f"Dice, {title}"))


def _dice_table(columns: dict[str, dict[str, float]], *, title: str) -> Table:
    table = Table("class", *columns, title=title)
    for label in next(iter(columns.values())):
        values = [column.get(label) for column in columns.values()]
        table.add_row(label, *("-" if value is None else f"{value:.3f}" for value in values))
    return table


def print_comparison(made) -> None:
    show(_dice_table(made.columns, title="Dice on the test scans"))
    for name, value in made.facts.items():
        print(f"{name}: {value}")
    print(f"report: {made.html}")


def print_package(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    print(f"{package}: {size / 1e6:.1f} MB, {manifest['precision']}")


def print_cases(dataset: "Dataset", rows: list[dict]) -> None:
    """What a dataset holds, as ranges over its readable cases, and then every fault."""
    from .volumes.dataset import ranges

    print(
        f"{dataset.root}: Medical Segmentation Decathlon layout, {dataset.name}, "
        f"{len(dataset.training)} training and {len(dataset.test)} test cases"
    )
    table = Table("over all cases", "lowest", "median", "highest")
    for title, values in ranges(dataset, rows):
        table.add_row(title, f"{min(values):.4g}", f"{median(values):.4g}", f"{max(values):.4g}")
    show(table)
    codes = Counter(row["axis_codes"] for row in rows if row["shape"])
    print("axes: " + ", ".join(f"{code} {count}" for code, count in codes.most_common()))
    for row in rows:
        if row["fault"]:
            print(f"{row['name']}: {row['fault']}")


def print_networks(rows: Iterable[dict[str, Any]], *, classes: int) -> None:
    table = Table(
        "kind", "network", "backbone", "patch", "parameters", "tuned on SAM's weights", title=f"{classes} classes"
    )
    for row in rows:
        tuned = f"{row['tuned'] / 1e6:.2f} M" if row["kind"] == "teacher" else ""
        size = " x ".join(map(str, row["patch"]))
        table.add_row(row["kind"], row["name"], row["backbone"], size, f"{row['parameters'] / 1e6:.2f} M", tuned)
    show(table)


def print_step_costs(rows: Iterable[dict[str, Any]], *, title: str) -> None:
    table = Table("attention", "checkpointing", "seconds per step", "peak memory", "on", title=title)
    for row in rows:
        measured = (
            (row["fault"], "", "")
            if "fault" in row
            else (f"{row['seconds']:.2f}", f"{row['peak_mb']:.0f} MB", row["device"])
        )
        table.add_row(row["attention"], "yes" if row["checkpointing"] else "no", *measured)
    show(table)


def print_runtimes(rows: Iterable[tuple[str, dict[str, Any]]], *, title: str) -> None:
    table = Table("package", "seconds", "peak memory", "precision", title=title)
    for name, made in rows:
        table.add_row(name, f"{made['seconds_per_scan']:.1f}", f"{made['peak_memory_mb']:.0f} MB", made["precision"])
    show(table)
