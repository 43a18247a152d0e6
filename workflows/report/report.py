"""The report from its packages to the HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...evaluation.html_report import Section, html_picture, html_planes, write_report
from ...evaluation.records import CaseScores
from ...evaluation.rules import DEFAULT_RULES, ScoringRules
from ...evaluation.score_tables import comparison_tables
from ...evaluation.text_table import TextTable
from ...evaluation.worst_cases import worst_first, worst_of_each_class
from ...training.run import Run, sweep_of
from ...training.split import DataSplit
from ...volumes.datasets.registry import Case, Dataset
from ...volumes.files import make_folder, temporary_folder
from ..data import config_for, labelled_test, open_dataset
from ..models import checked_manifest
from .calibration import calibrations
from .packages import PackageRun, newest_package, package_titles, require_classes, run_package
from .pictures import comparison_pictures, organ_pictures
from .runs import origin, runs_before, training_cost
from .sections import (
    box_section,
    calibration_section,
    lambda_section,
    package_section,
    picture_section,
    score_section,
    training_section,
    volume_section,
)

PICTURED_CASES = 3
PICTURED_ORGANS = 8


@dataclass(frozen=True)
class Comparison:
    """Teacher, control, student and packages side by side on the test scans."""

    scores: dict[str, CaseScores]  # by model: teacher, control, student, packages
    tables: list[TextTable]
    html: Path
    facts: dict[str, str]


def report(
    packages: Sequence[Path],
    *,
    out: Path,
    data: Path | None,
    runs: Path,
    pretrained_path: Path | None = None,
    trust: Path | None = None,
    calibration: bool = False,
) -> Comparison:
    """Compare packages with the first one's student, its control (if it was trained) and teacher in one HTML file.

    Without any it is the newest package in `runs`. They are checked before anything of them is read, with `trust`, a
    public key (PEM), their signatures, too; then their masks are made in a process of their own. `pretrained_path` is
    the published file that a run adapts, where it has moved. With `calibration` student and packages also segment all
    validation and test scans in this process, for the calibration of their probabilities.

    Raises what deploy.runtime.package.Package.open raises, and BadInputError when the run that the first comes from is
    not in `runs`, and for packages of other classes.
    """
    manifests = {package: checked_manifest(package, trust=trust) for package in packages or [newest_package(runs)]}
    first, manifest = next(iter(manifests.items()))
    student = Run.read(origin(first, manifest, runs))
    stages = runs_before(student, runs)
    config = config_for(None, student, [])
    dataset = open_dataset(config, data or Path(student.config.data), runs=runs)
    require_classes(manifests, dataset)
    cases = labelled_test(dataset)
    with temporary_folder() as scratch:
        shown = {}
        for number, (package, title) in enumerate(package_titles(manifests).items()):
            out_of_it = make_folder(Path(scratch) / str(number))
            shown[title] = run_package(
                package,
                manifests[package],
                cases=cases,
                dataset=dataset,
                rules=_rules_of(student),
                out=out_of_it,
                trust=trust,
            )
        scores = {name: test for name, run in stages.items() if (test := run.metrics().test)}
        scores |= {title: package.scores for title, package in shown.items()}
        calibrated = {}
        if calibration:
            models = {name: run.path for name, run in stages.items() if run.path == student.path}
            models |= {title: package.package for title, package in shown.items()}
            split = DataSplit.of(dataset, validation=config.validation, seed=config.seed)
            calibrated = calibrations(models, validation=split.validation, test=cases, dataset=dataset, trust=trust)
        tables = comparison_tables(scores, title="test scans")
        sections = [
            score_section(scores, tables, dataset.labels, by=next(iter(shown)), runs=list(stages)),
            box_section(scores, dataset.labels),
            *_worst_organs(cases, dataset, package=next(iter(shown.values()))),
            *_volumes(shown),
            *lambda_section(sweep_of(student, runs), stages.get("student without teacher")),
            *package_section([each for title, run in shown.items() if (each := run.measured(title))]),
            *calibration_section(calibrated),
            training_section(stages),
            *_worst_scans(stages, cases, dataset, packages=shown, pretrained_path=pretrained_path),
        ]
    config_name = str(manifest.provenance.get("recipe", ""))
    facts = {
        "config": config_name,
        "dataset": f"{dataset.name}: {len(cases)} test scans",
        **_package_facts(shown),
        **{f"{name} run": training_cost(run) for name, run in stages.items()},
    }
    write_report(out, title=f"samkd: {config_name}", facts=facts, sections=sections)
    return Comparison(scores, tables, out, facts)


def _rules_of(student: Run) -> ScoringRules:
    """The rules by which the student's own masks were scored, so that its packages' are, too."""
    test = student.metrics().test
    return test.rules if test else DEFAULT_RULES


def _worst_organs(cases: Sequence[Case], dataset: Dataset, *, package: PackageRun) -> list[Section]:
    """The package's worst case of each class in three planes; none where nothing was scored."""
    worst = worst_of_each_class(package.scores)[:PICTURED_ORGANS]
    pictures = organ_pictures(worst, {case.name: case for case in cases}, dataset, package=package)
    note = (
        "Solid yellow: the truth. Dashed blue: the package. The planes cross in the middle of the organ and show 40 mm "
        "around it: axial from the feet, coronal from the front, sagittal from the patient's left."
    )
    return picture_section("The worst case of each class", note, [html_planes(*each) for each in pictures.items()])


def _volumes(packages: Mapping[str, PackageRun]) -> list[Section]:
    title, package = next(iter(packages.items()))
    return volume_section(title, package.scores, package.voxel_ml())


def _worst_scans(
    stages: Mapping[str, Run],
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    packages: Mapping[str, PackageRun],
    pretrained_path: Path | None,
) -> list[Section]:
    """The first package's worst scans, by the masks of every model; the first scans where nothing was scored."""
    by_name = {case.name: case for case in cases}
    order = dict.fromkeys([*worst_first(next(iter(packages.values())).scores), *by_name])
    pictured = [by_name[name] for name in list(order)[:PICTURED_CASES]]
    pictures = comparison_pictures(stages, pictured, dataset, packages=packages, pretrained_path=pretrained_path)
    note = "Seen from the feet: the patient's right is on the left. Colours as in the tables above."
    return picture_section("Test scans, the worst first", note, [html_picture(*each) for each in pictures.items()])


def _package_facts(packages: Mapping[str, PackageRun]) -> dict[str, str]:
    """The facts of a package; of several, each under its title."""
    if len(packages) == 1:
        return next(iter(packages.values())).facts()
    return {title: "; ".join(package.facts().values()) for title, package in packages.items()}
