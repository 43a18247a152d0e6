"""The report's sections from scores and runs: tables, box plots, volumes, the sweep of lambda, packages, curves."""

from collections.abc import Mapping, Sequence

from ...evaluation.bland_altman import agreement_table, bland_altman_plot, volume_pairs
from ...evaluation.box_plot import box_plot, case_values
from ...evaluation.chart import line_chart
from ...evaluation.html_report import Section, html_charts, html_table, html_tables
from ...evaluation.lambda_plot import lambda_plot
from ...evaluation.overlay import colours
from ...evaluation.package_plot import MeasuredPackage, package_plot, package_table
from ...evaluation.records import CaseScores
from ...evaluation.score_tables import cases_worst_first
from ...evaluation.statistics import metric_statistics
from ...evaluation.text_table import TextTable
from ...training.run import Run
from .calibration import Calibration
from .runs import points, smoothed


def score_section(
    scores: Mapping[str, CaseScores],
    tables: Sequence[TextTable],
    class_names: Mapping[int, str],
    *,
    by: str,
    runs: Sequence[str],
) -> Section:
    """The tables, and the cases by the Dice of the model `by`; those of the `runs` without test scores are named."""
    rules = scores[by].rules
    names = [name for value, name in class_names.items() if value]
    swatches = dict(zip(names, colours(len(names)), strict=True))
    tolerances = {f"{tolerance:g} mm" for tolerance in map(rules.tolerance_of, names)}
    note = (
        f"Means over whole volumes, empty slices included. {rules.absent_rule} NSD: the share of both surfaces within "
        f"{', '.join(sorted(tolerances))} of each other."
    )
    if unscored := [name for name in runs if name not in scores]:
        note += f" Not measured, for the run has no test scores: {', '.join(unscored)}."
    cases = cases_worst_first(scores, by=by, title=f"Mean Dice of every case, the worst of the {by} first")
    shown = [html_table(table, swatches=swatches) for table in tables]
    return Section("Scores on the test scans", note, [html_tables([*shown, html_table(cases)])])


def box_section(scores: Mapping[str, CaseScores], class_names: Mapping[int, str]) -> Section:
    """A box plot of Dice for each class."""
    plots = [
        box_plot(name, {model: case_values(each, name) for model, each in scores.items()}, x_label="Dice")
        for value, name in class_names.items()
        if value
    ]
    note = (
        "A circle is a case, a cross a case in which the class was missed. The box holds the middle half of the cases, "
        "its line is the median, the whiskers reach to the last case within 1.5 times the box's length."
    )
    return Section("Dice of every case", note, [html_charts(plots)])


def volume_section(title: str, scores: CaseScores, voxel_ml: Mapping[str, float]) -> list[Section]:
    """A package's volumes in ml against the truth's; nothing where no case is a volume."""
    pairs = volume_pairs(scores, voxel_ml)
    if not pairs:
        return []
    note = (
        "Prediction minus truth over the mean of both (Bland and Altman 1986), a point for each case. The limits of "
        "agreement, mean -+ 1.96 standard deviations, hold 95 % of the differences if these are normally distributed; "
        "of few cases they are rough."
    )
    table = agreement_table(pairs, title=f"Volume, {title} minus truth")
    plots = [bland_altman_plot(name, each) for name, each in pairs.items()]
    return [Section("Volumes", note, [html_table(table), html_charts(plots)])]


def lambda_section(sweep: Mapping[float, Run], control: Run | None) -> list[Section]:
    """The students that differ in lambda alone; nothing for fewer than two that have test scores."""
    scores = {value: test for value, run in sweep.items() if (test := run.metrics().test)}
    if len(scores) < 2:
        return []
    against = control.metrics().test if control else None
    chart = lambda_plot(
        "Mean Dice over lambda",
        {value: metric_statistics(each, "dice")["mean"] for value, each in scores.items()},
        metric_statistics(against, "dice")["mean"] if against else None,
    )
    note = "Students that differ in lambda alone. Intervals: bootstrap over the test cases; one seed of training each."
    return [Section("The sweep of lambda", note, [html_charts([chart])])]


def package_section(packages: Sequence[MeasuredPackage]) -> list[Section]:
    """Size, time and accuracy of several packages; nothing for fewer than two."""
    if len(packages) < 2:
        return []
    note = (
        "Measured for this report on this machine: the median time of a test scan from file to mask, without the start "
        "of the process. The area of a disc is the package's size."
    )
    table = package_table(packages, title="Packages on the test scans")
    return [Section("Packages", note, [html_table(table), html_charts([package_plot("Packages", packages)])])]


def calibration_section(calibrations: Mapping[str, Calibration]) -> list[Section]:
    """The expected calibration error of each model, and its accuracy over its confidence; nothing without any."""
    rows = tuple(
        (name, _fraction(each.plain.error), f"{each.temperature:.2f}", _fraction(each.scaled.error))
        for name, each in calibrations.items()
    )
    if not rows:
        return []
    columns = ("model", "ECE", "temperature", "ECE at that temperature")
    curves = {name: each.plain.curve() for name, each in calibrations.items()}
    lines = {"calibrated": [(0, 0), (1, 1)], **curves}
    chart = line_chart("Accuracy", lines, x_label="confidence, the largest probability")
    note = (
        "ECE: the mean over the voxels of |accuracy - confidence| of their bin, of 15 (Guo et al. 2017). The voxels "
        "are those of the test scans, on the network's grid, that truth or prediction say are not background. The "
        "temperature is fitted to the validation cases; the logits are divided by it, and no voxel changes its class."
    )
    table = html_table(TextTable("Expected calibration error", columns, rows))
    return [Section("Calibration", note, [table, html_charts([chart])])]


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def training_section(stages: Mapping[str, Run]) -> Section:
    """The curves of every run."""
    curves = {
        "training loss": {name: smoothed(run, "loss") for name, run in stages.items()},
        "validation Dice": {name: points(run, "dice") for name, run in stages.items()},
    }
    charts = [line_chart(name, series, x_label="step") for name, series in curves.items()]
    return Section("Training", "", [html_charts(charts)])


def picture_section(title: str, note: str, pictures: Sequence[str]) -> list[Section]:
    """Pictures, as html_picture or html_planes gave them; nothing without any."""
    return [Section(title, note, pictures)] if pictures else []
