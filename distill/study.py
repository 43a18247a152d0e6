"""samkd distill: the teachers measured, the control, a student for each lambda, and what the teachers were worth."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..configs.schema import Config
from ..evaluation.chart import line_chart, svg_file
from ..evaluation.paired_comparison import PairedDifference, paired_difference
from ..training.progress import console
from ..training.ranks import is_main
from ..training.run import CACHE, Run
from ..training.run_config import digest
from ..training.split import DataSplit
from ..volumes.datasets.registry import Dataset
from ..volumes.files import atomic_path
from .case_prompts import check_prompts
from .ensemble import Ensemble, EnsembleMember, Member, check_teachers
from .prediction_member import PredictionFolder, PredictionMember
from .soft_targets import member_names, validation_dice
from .train import CACHE_LIMIT, always_boxed, distill, student_plan


@dataclass(frozen=True)
class Study:
    """What one `samkd distill` made: runs, and for each lambda below 1 the student against the control.

    ``teachers`` are the runs among them: a folder of predictions has no scores of its own.
    """

    teachers: tuple[Run, ...]
    control: Run | None
    students: dict[float, Run]  # by lambda, ascending; the control is among them where lambda = 1 was asked for
    effects: dict[float, dict[str, PairedDifference]]  # by lambda, then by class name or "mean"
    curve: Path | None


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """How each student is trained, besides its config.

    `devices` is a count. The teachers see the student's very patches with `online`; else their soft targets are cached,
    in at most `cache_limit` bytes. `weights` is the published file that a student of SAM's kind starts from.
    `vram` is a budget of memory in bytes.
    """

    devices: int = 1
    online: bool = False
    cache_limit: float = CACHE_LIMIT
    weights: Path | None = None
    vram: float | None = None


def study(
    config: Config,
    dataset: Dataset,
    *,
    teachers: Sequence[tuple[Run | PredictionFolder, float]],
    lambdas: Sequence[float],
    runs: Path,
    run: Path | None = None,
    control: bool = True,
    pretrained_path: Path | None = None,
    options: StudentOptions = StudentOptions(),
) -> Study:
    """Measure the teachers on the student's validation cases, then train the control and a student per lambda.

    Runs that are there already are reused. `run` is the folder of the one student, `pretrained_path` the published file
    that the teachers adapt, where it has moved. Each distilled run gets a ``comparison.json``; several lambdas also
    leave the curve of their test Dice (the paper's Table 4) as an SVG in the run root. Raises what `distill` raises,
    and BadInputError for teachers of other classes or channels and for predictions that cannot be used, and what
    check_prompts raises.
    """
    runs_that_teach = [teacher for teacher, _ in teachers if isinstance(teacher, Run)]
    check_teachers(runs_that_teach, dataset)
    members = [
        _member(teacher, dataset, weight=weight, pretrained_path=pretrained_path)
        for teacher, weight in teachers
        if min(lambdas) < 1
    ]
    ensemble = Ensemble(members) if members else None
    if ensemble:
        check_prompts(ensemble, dataset.training, dataset, online=options.online)
    teacher_dice = _measure(ensemble, config, dataset, cache=runs / CACHE, online=options.online) if ensemble else {}
    folders = {lambdas[0]: run} if len(lambdas) == 1 else {}

    def train(value: float) -> Run:
        return distill(
            config,
            dataset,
            teachers=ensemble,
            runs=runs,
            run=folders.get(value),
            lambda_=value,
            devices=options.devices,
            online=options.online,
            cache_limit=options.cache_limit,
            weights=options.weights,
            vram=options.vram,
        )

    control_run = train(1.0) if control or 1.0 in lambdas else None
    students, effects = {}, {}
    for value in sorted(set(lambdas)):
        student = students[value] = control_run if control_run and value == 1.0 else train(value)
        if control_run and student is not control_run and (effect := _compare(student, control_run, teacher_dice)):
            effects[value] = effect
    curve = _draw(students, runs, config) if len(students) > 1 else None
    return Study(tuple(runs_that_teach), control_run, students, effects, curve)


def _member(
    teacher: Run | PredictionFolder, dataset: Dataset, *, weight: float, pretrained_path: Path | None
) -> Member:
    if isinstance(teacher, Run):
        return EnsembleMember.of(teacher, weight=weight, pretrained_path=pretrained_path)
    return PredictionMember.of(teacher, dataset, weight=weight)


def _measure(
    ensemble: Ensemble, config: Config, dataset: Dataset, *, cache: Path, online: bool
) -> dict[str, dict[str, float]]:
    """The Dice of each teacher on the student's validation cases; said first, for one no better than its student
    teaches little. Without validation cases nothing is measured. Raises UsageError for teachers that cannot be asked
    `online`.
    """
    plan = student_plan(config)
    if online:
        ensemble.check_online(plan, prompted=always_boxed(config))
    split = DataSplit.of(dataset, validation=config.validation, seed=config.seed)
    for member in ensemble.teachers:
        if isinstance(member, PredictionMember):
            member.check((*split.train, *split.unlabelled), dataset)
    if not split.validation:
        return {}
    dice = validation_dice(ensemble, split.validation, dataset, plan=plan, cache=cache)
    validation = {case.name for case in split.validation}
    seen = {name: len(validation & member.trained_on) for name, member in member_names(ensemble).items()}
    for name, scores in dice.items():
        known = seen.get(name, max(seen.values()))
        warning = f", {known} of which it was trained on" if known else ""
        _say(f"teacher {name}: Dice {scores['mean']:.3f} on the student's {len(validation)} validation cases{warning}")
    for name, member in member_names(ensemble).items():
        if absent := member.lacks(split.validation):
            _say(
                f"teacher {name}: not measured, for it has no prediction of {len(absent)} of the student's "
                f"{len(validation)} validation cases ({', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''})"
            )
    return dice


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _compare(
    student: Run, control: Run, teacher_dice: dict[str, dict[str, float]]
) -> dict[str, PairedDifference] | None:
    """The student against its control, also as its comparison.json; None where one of them has no test scores."""
    one, other = student.metrics().test, control.metrics().test
    if one is None or other is None:
        return None
    effect = paired_difference(one.dice(), other.dice())
    classes = {name: asdict(difference) for name, difference in effect.items()}
    values = {"control": control.path.name, "teachers": teacher_dice, "classes": classes}
    if is_main():
        student.write_json("comparison.json", values)
    return effect


def _draw(students: dict[float, Run], runs: Path, config: Config) -> Path | None:
    """Test Dice over lambda, per class and mean; named after the runs in it, so that no sweep overwrites another."""
    scores = {value: test for value, student in students.items() if (test := student.metrics().test)}
    if len(scores) < 2:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for value, test in scores.items():
        for name, dice in test.summary.dice_by_class().items():
            if dice is not None:
                lines.setdefault(name, []).append((value, dice))
    chart = line_chart("Dice on the test scans", lines, x_label="lambda (1: no teacher)")
    names = digest({"runs": [student.path.name for student in students.values()]})[:8]
    path = runs / f"lambda-{config.name}-{config.student.name}-{names}.svg"
    if is_main():
        with atomic_path(path) as temporary:
            temporary.write_text(svg_file(chart), encoding="utf-8")
    return path
