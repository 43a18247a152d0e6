"""samkd distill: read who teaches and what, then train the control and the students."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..configs.load import load_config
from ..configs.schema import Config
from ..distill.ensemble import read_teacher
from ..distill.prediction_member import PredictionFolder
from ..distill.study import StudentOptions, Study, study
from ..errors import UsageError
from ..sam.packaged_weights import find_weights
from ..training.ranks import main_first
from ..training.run import Run, newest_run
from ..volumes.datasets.registry import Dataset
from .data import config_for, open_dataset, with_prompts, with_unlabelled


@dataclass(frozen=True)
class Lesson:
    """What one `samkd distill` works with: who teaches, each with its weight, the data, the lambdas."""

    config: Config
    dataset: Dataset
    teachers: list[tuple[Run | PredictionFolder, float]]
    lambdas: list[float]


def distill(
    config_name: str | None,
    teachers: Sequence[str],
    *,
    lambdas: Sequence[float],
    data: Path | None,
    unlabelled: Path | None,
    prompts: Path | None = None,
    runs: Path,
    overrides: Sequence[str],
    run: Path | None,
    control: bool,
    pretrained_path: Path | None,
    options: StudentOptions,
) -> Study:
    """Train a student for every lambda, and with `control` the same student without its teachers.

    `config_name`, `teachers`, `lambdas`, `data`, `unlabelled` and `prompts` are those of read_lesson. `run` is the
    folder of the one student (UsageError with several lambdas), `pretrained_path` the published file that the teachers
    adapt where it has moved. The student's weights may be named as in sam.packaged_weights. Raises what find_weights,
    read_lesson and distill.study.study raise.
    """
    if run is not None and len(lambdas) > 1:
        raise UsageError("--run names one folder; leave it out with several lambdas")
    if options.weights:
        options = replace(options, weights=find_weights(options.weights))
    lesson = read_lesson(
        config_name,
        teachers,
        lambdas=lambdas,
        data=data,
        unlabelled=unlabelled,
        prompts=prompts,
        runs=runs,
        overrides=overrides,
    )
    return study(
        lesson.config,
        lesson.dataset,
        teachers=lesson.teachers,
        lambdas=lesson.lambdas,
        runs=runs,
        run=run,
        control=control,
        pretrained_path=pretrained_path,
        options=options,
    )


def read_lesson(
    config_name: str | None,
    teachers: Sequence[str],
    *,
    lambdas: Sequence[float],
    data: Path | None,
    unlabelled: Path | None,
    prompts: Path | None = None,
    runs: Path,
    overrides: Sequence[str],
) -> Lesson:
    """Read the teachers, else the newest one (none for a config with lambda = 1 alone), and open what they teach from.

    Config and dataset are those named, else those of the first run that teaches; `lambdas` default to the config's.
    `prompts` is a folder of CASE.json, which stand for masks. Raises UsageError when nobody teaches `unlabelled` scans
    or from `prompts`, and when folders of predictions alone teach and neither config nor data are named; BadInputError
    for a teacher that is neither a run nor a folder of predictions.
    """
    members: list[tuple[Run | PredictionFolder, float]] = [read_teacher(text) for text in teachers]
    if not members and (config_name is None or list(lambdas) != [1]):
        members = [(newest_run(runs, "teach", config=load_config(config_name, []).name if config_name else None), 1.0)]
    source = next((teacher for teacher, _ in members if isinstance(teacher, Run)), None)
    if members and source is None and config_name is None and data is None:
        raise UsageError(
            f"--teacher {teachers[0]}: a folder of predictions names neither config nor data; give --config NAME, and "
            "--data DIR if the config does not name its dataset"
        )
    first_lambda = [f"lambda={lambdas[0]}"] if lambdas else []
    config = config_for(config_name, source, [*first_lambda, *overrides])
    lambdas = list(lambdas) or [config.lambda_]
    if unlabelled is not None and min(lambdas) == 1:
        raise UsageError("--unlabelled: with lambda = 1 there is no teacher, and scans without masks teach nothing")
    if prompts is not None and min(lambdas) == 1:
        raise UsageError("--prompts: with lambda = 1 there is no teacher, and prompts teach nothing")
    with main_first():
        dataset = open_dataset(config, data or (Path(source.config.data) if source else None), runs=runs)
    if unlabelled is not None:
        dataset = with_unlabelled(dataset, unlabelled)
    if prompts is not None:
        dataset = with_prompts(dataset, prompts)
    return Lesson(config, dataset, members, lambdas)
