"""samkd distill: the teachers measured, the control, a student for each lambda, and what the teachers were worth."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..configs.schema import Config
from ..evaluation.chart import line_chart
from ..training.progress import console
from ..training.run import Run
from ..training.run_config import digest
from ..training.split import DataSplit
from ..volumes.datasets.registry import Dataset
from ..volumes.files import atomic_path
from .ensemble import Ensemble, EnsembleMember, check_teachers
from .paired_comparison import PairedDifference, paired_difference
from .soft_targets import validation_dice
from .train import CACHE_LIMIT, distill, student_plan

STYLE = (
    "<style>svg{background:#fff;font:12px sans-serif}.title{font-weight:bold}.grid{stroke:#ddd}"
    ".axis{stroke:#333;fill:none}polyline{fill:none;stroke-width:2}</style>"
)


@dataclass(frozen=True)
class Study:
    """What one `samkd distill` made: runs, and for each lambda below 1 the student against the control."""

    teachers: tuple[Run, ...]
    control: Run | None
    students: dict[float, Run]  # by lambda, ascending; the control is among them where lambda = 1 was asked for
    effects: dict[float, dict[str, PairedDifference]]  # by lambda, then by class name or "mean"
    curve: Path | None


def study(
    config: Config,
    dataset: Dataset,
    *,
    teachers: Sequence[tuple[Run, float]],
    lambdas: Sequence[float],
    runs: Path,
    run: Path | None = None,
    control: bool = True,
    devices: int = 1,
    online: bool = False,
    cache_limit: float = CACHE_LIMIT,
    base: Path | None = None,
    weights: Path | None = None,
) -> Study:
    """Measure the teachers on the student's validation cases, then train the control and a student per lambda.

    Runs that are there already are reused; `base` as in networks.load_network, `weights` as in `distill`. Each
    distilled run gets a ``comparison.json``; several lambdas also leave the curve of their test Dice (the paper's Table
    4) as an SVG in the run root. Raises what `distill` raises, and BadInputError for teachers of other classes or
    channels.
    """
    check_teachers([taught for taught, _ in teachers], dataset)
    needed = any(value < 1 for value in lambdas)
    ensemble = (
        Ensemble([EnsembleMember.of(taught, weight=weight, base=base) for taught, weight in teachers])
        if needed and teachers
        else None
    )
    plan = student_plan(config)
    measured: dict[str, dict[str, float]] = {}
    if ensemble:
        if online:
            ensemble.check_online(plan)
        split = DataSplit.of(dataset, validation=config.validation, seed=config.seed)
        measured = validation_dice(ensemble, split.validation, dataset, plan=plan, cache=runs / "cache")
        _tell(measured, ensemble, split)

    def train(value: float) -> Run:
        return distill(
            config,
            dataset,
            teachers=ensemble,
            runs=runs,
            run=run if len(lambdas) == 1 and value == lambdas[0] else None,
            lambda_=value,
            devices=devices,
            online=online,
            cache_limit=cache_limit,
            weights=weights,
        )

    alone = train(1.0) if control or 1.0 in lambdas else None
    students, effects = {}, {}
    for value in sorted(set(lambdas)):
        made = alone if value == 1.0 and alone else train(value)
        students[value] = made
        if alone and made is not alone and (effect := _effect(made, alone)):
            effects[value] = effect
            classes = {name: asdict(difference) for name, difference in effect.items()}
            made.write_json("comparison.json", {"control": alone.path.name, "teachers": measured, "classes": classes})
    curve = _draw(students, runs, config) if len(students) > 1 else None
    return Study(tuple(taught for taught, _ in teachers), alone, students, effects, curve)


def _tell(measured: dict[str, dict[str, float]], ensemble: Ensemble, split: DataSplit) -> None:
    """A teacher no better than its student teaches little: say first how good each is."""
    held_out = {case.name for case in split.validation}
    seen = [len(held_out & teacher.trained_on) for teacher in ensemble.teachers]
    for index, (name, scores) in enumerate(measured.items()):
        known = seen[index] if index < len(seen) else max(seen)
        warning = f", {known} of which it was trained on" if known else ""
        console.print(
            f"teacher {name}: Dice {scores['mean']:.3f} on the student's {len(held_out)} validation cases{warning}",
            highlight=False,
            soft_wrap=True,
        )


def _effect(student: Run, control: Run) -> dict[str, PairedDifference] | None:
    one, other = student.metrics().test, control.metrics().test
    return paired_difference(one.dice(), other.dice()) if one and other else None


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
    svg = line_chart("Dice on the test scans", lines, x_label="lambda (1: no teacher)")
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1)
    made = digest({"runs": [student.path.name for student in students.values()]})[:8]
    path = runs / f"lambda-{config.name}-{config.student.name}-{made}.svg"
    with atomic_path(path) as temporary:
        temporary.write_text(svg + "\n", encoding="utf-8")
    return path
