"""The runs behind a table's cells, trained where they are missing, and the scores of what they segment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...configs.load import load_config
from ...configs.paper_tables import PaperDataset, paper_datasets
from ...configs.schema import Config
from ...distill.study import StudentOptions
from ...errors import BadInputError
from ...evaluation.records import CaseScores
from ...evaluation.result_files import read_result, write_result
from ...training.progress import console
from ...training.run import Run
from ...training.run_config import digest
from ...volumes.datasets.registry import read_dataset
from ...volumes.files import file_digest, make_folder
from ..distill import distill
from ..evaluate import evaluate
from ..teach import teach
from .experiments import Cell, Experiment, Scoring
from .phantom import stand_in_weights, tiny

NO_WEIGHTS = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class Workplace:
    """Where a table is run: the folder of each dataset, the published file of each backbone, the run root, and how.

    With `phantom` every run is tiny and none of the folders and files is used; without `pretrained` every network
    starts from random numbers. `overrides` are the user's own, for every run.
    """

    runs: Path
    data: Mapping[str, Path]
    weights: Mapping[str, Path]
    pretrained: bool = True
    phantom: bool = False
    devices: int = 1
    overrides: tuple[str, ...] = ()
    trained: dict[Experiment, Run] = field(default_factory=dict)

    def overrides_of(self, experiment: Experiment) -> list[str]:
        """The overrides of a run: the table's, those of the phantom, and the user's own, in this order."""
        small = tiny(experiment.load()) if self.phantom else []
        return [*experiment.overrides, *small, *self.overrides]

    def config_of(self, experiment: Experiment) -> Config:
        """The config that a run is trained by here."""
        return load_config(experiment.config, self.overrides_of(experiment))

    def folder_of(self, data: str) -> Path | None:
        """The folder of a dataset; None on the phantom."""
        return None if self.phantom else self.data[data]

    def weights_of(self, experiment: Experiment) -> Path | None:
        """The published file that a run starts from, if it starts from one."""
        if not experiment.weights or not self.pretrained:
            return None
        if self.phantom:
            return stand_in_weights(self.runs / "data")
        return self.weights[experiment.load().teacher.backbone]


def parse_places(texts: Sequence[str], names: Sequence[str], *, option: str, known: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH for each of `names`; a path without a name is that of the only one, and names that are not needed are
    allowed, as long as they are `known`. Raises BadInputError.
    """
    places = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals and len(names) == 1:
            places[names[0]] = Path(text)
        elif equals and name in known:
            places[name] = Path(path)
        else:
            example = names[0] if names else known[0]
            raise BadInputError(
                f"{option} {text!r}: expected NAME=PATH, for example {example}=PATH; the names here are "
                f"{', '.join(names or known)}"
            )
    return places


def check_places(experiments: Sequence[Experiment], cells: Sequence[Cell], work: Workplace) -> None:
    """Raises BadInputError before anything is trained: for datasets and published files that nobody named, all of them
    together; for a folder that is no dataset, as read_dataset does; and for a file that is not there.
    """
    if work.phantom:
        return
    datasets = datasets_of(experiments, cells)
    backbones = backbones_of(experiments) if work.pretrained else []
    if absent := [name for name in datasets if name not in work.data]:
        told = "".join(_where(name, paper_datasets()[name]) for name in absent)
        raise BadInputError(
            f"the data of this table is not here; give {' '.join(f'--data {name}=DIR' for name in absent)}, or try the "
            f"machinery with --phantom. It is had there, and samkd reads it so (docs/your-data.md):{told}"
        )
    if absent := [name for name in backbones if name not in work.weights]:
        raise BadInputError(
            f"this table starts from published weights; give {' '.join(f'--weights {name}=FILE' for name in absent)} "
            f"(docs/pretrained-weights.md), or --weights {NO_WEIGHTS} to train from random numbers"
        )
    for name in datasets:
        read_dataset(work.data[name])
    for name in backbones:
        if not work.weights[name].is_file():
            raise BadInputError(f"{work.weights[name]}: no such file; expected the published weights of {name}")


def datasets_of(experiments: Sequence[Experiment], cells: Sequence[Cell]) -> list[str]:
    """The names of the datasets that runs are trained and scored on."""
    scored = (cell.scoring.data for cell in cells if cell.wanted)
    return list(dict.fromkeys(name for name in (*(each.data for each in experiments), *scored) if name))


def backbones_of(experiments: Sequence[Experiment]) -> list[str]:
    """The backbones whose published files the runs start from."""
    return list(dict.fromkeys(each.load().teacher.backbone for each in experiments if each.weights))


def _where(name: str, dataset: PaperDataset) -> str:
    return f"\n  {name}: {dataset.title}, {dataset.where}\n    {dataset.layout}; `samkd check DIR` reads every case"


def trained_run(experiment: Experiment, work: Workplace) -> Run:
    """The finished run of an experiment: one that lies in the run root, else it is trained there.

    Raises what the workflows teach and distill raise.
    """
    if experiment not in work.trained:
        work.trained[experiment] = _train(experiment, work)
    return work.trained[experiment]


def _train(experiment: Experiment, work: Workplace) -> Run:
    weights = work.weights_of(experiment)
    data = work.folder_of(experiment.data)
    if experiment.stage == "teach":
        start = trained_run(experiment.start, work).path if experiment.start else None
        config = work.config_of(experiment)
        return teach(config, data=data, runs=work.runs, weights=weights, start=start, devices=work.devices)
    teacher = trained_run(experiment.teacher, work) if experiment.teacher else None
    study = distill(
        experiment.config,
        [str(teacher.path)] if teacher else [],
        lambdas=[experiment.lambda_],
        data=data,
        unlabelled=None,
        runs=work.runs,
        overrides=work.overrides_of(experiment),
        run=None,
        control=False,
        pretrained_path=work.weights_of(experiment.teacher) if experiment.teacher else None,
        options=StudentOptions(devices=work.devices),
    )
    return study.students[experiment.lambda_]


def scores_of(experiment: Experiment, scoring: Scoring, work: Workplace) -> list[CaseScores]:
    """The scores of a run, one for each draw of what it is shown; none where it has no labelled test case.

    Those on its own data without prompts stand in most runs; others are computed once and kept in the run root, under
    `reproduce`.
    """
    run = trained_run(experiment, work)
    metrics = run.metrics()
    if scoring.shown is None and (scoring.data is None or work.phantom) and metrics.test_prompts is None:
        return [] if metrics.test is None else [metrics.test]
    weights = work.weights_of(experiment)
    return [_scored(run, scoring, work, weights=weights, repetition=number) for number in range(scoring.repeat)]


def _scored(run: Run, scoring: Scoring, work: Workplace, *, weights: Path | None, repetition: int) -> CaseScores:
    elsewhere = None if work.phantom else scoring.data
    data = work.data[elsewhere] if elsewhere else Path(run.config.data)
    key = {
        "weights": file_digest(run.weights),
        "shown": scoring.shown,
        "repetition": repetition,
        "config": scoring.config if elsewhere else None,
        "data": str(data.resolve()),
        "evaluation": run.config.user_config.get("evaluation"),
    }
    path = make_folder(work.runs / "reproduce") / f"{run.path.name}-{digest(key)[:12]}.json"
    if path.exists():
        return read_result(path)
    console.print(f"{run.path}: scored, {scoring.shown or 'without prompts'}, draw {repetition + 1}", markup=False)
    scores = evaluate(
        run.path,
        data,
        prompt_from_truth=scoring.shown,
        split=None if elsewhere else run.path / "splits.json",
        modality=run.config.user_config.get("modality"),
        pretrained_path=weights,
        config_name=scoring.config if elsewhere else None,
        repetition=repetition,
    )
    write_result(path, scores, title=path.stem, more=key)
    return scores
