"""Every row of every table: its runs have configs that load, networks of the papers' size, and two steps that train."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samkd.configs.paper_tables import PAPERS, PaperTable, Row, paper_datasets, read_paper
from samkd.training import trainer
from samkd.training.run import Run
from samkd.workflows.reproduce import phantom
from samkd.workflows.reproduce.costs import parameters
from samkd.workflows.reproduce.experiments import NOT_GIVEN, Cell, Experiment, cells_of, class_count, experiments_of
from samkd.workflows.reproduce.run import Workplace, trained_run

Place = tuple[str, PaperTable, Row]
ROWS = [(paper, table, row) for paper in PAPERS for table in read_paper(paper).tables for row in table.rows]
OURS = [place for place in ROWS if experiments_of(cells_of(place[1], (place[2],)))]
names = {id(row): f"{paper} {table.number} {row.name}" for paper, table, row in ROWS}
each_row = pytest.mark.parametrize("place", ROWS, ids=lambda place: names[id(place[2])])
each_row_of_ours = pytest.mark.parametrize("place", OURS, ids=lambda place: names[id(place[2])])
load = cache(Experiment.load)


def runs_of(place: Place) -> list[Experiment]:
    return experiments_of(cells_of(place[1], (place[2],)))


def runs_named(paper: str, number: str, row: str | None = None) -> list[Experiment]:
    table = read_paper(paper).table(number)
    return experiments_of(cells_of(table, table.rows_named(row)))


@each_row
def test_a_row_has_runs_with_configs_that_load_or_says_why_not(place: Place):
    _, table, row = place
    cells = cells_of(table, (row,))
    runs = experiments_of(cells)
    for run in runs:
        config = load(run)
        assert run.stage == "teach" or run.trained(config).name.startswith("swinunetr")
    if not runs:
        reasons = {cell.reason for cell in cells if cell.spec.task} - {NOT_GIVEN}
        assert (len(reasons) == 1 and "number only" in str(reasons)) or "no switch" in str(reasons), reasons


def test_most_rows_are_other_methods_and_every_paper_has_rows_of_ours():
    counts = {paper: sum(name == paper for name, _, _ in OURS) for paper in PAPERS}
    assert counts == {"masam": 31, "medsa": 64, "sam3d": 13, "autosam": 9}
    assert len({run for place in OURS for run in runs_of(place)}) == 137


# --- the switches -----------------------------------------------------------------------------------------------------


def options(run: Experiment) -> dict[str, Any]:
    return load(run).teacher.options


def test_the_rows_of_masams_table_9_differ_in_what_learns():
    rows = [(run.weights, options(run)) for run in runs_named("masam", "9")]
    bare = {"adapters": "none", "fact": False}
    assert rows == [
        (False, bare | {"tune": "all"}),
        (True, bare | {"tune": "decoder"}),
        (True, bare | {"tune": "all"}),
        (True, {"adapters": "none"}),
        (True, {"fact": False}),
        (True, {}),
    ]


def test_columns_that_are_settings_of_a_run():
    assert [options(run)["rank"] for run in runs_named("masam", "10")] == [4, 8, 16, 32, 64]
    teacher, *students = runs_named("autosam", "4")
    assert (teacher.stage, teacher.weights, load(teacher).teacher.name) == ("teach", True, "autosam")
    assert [(run.stage, run.lambda_) for run in students] == [
        *(("distill", value) for value in (0, 0.2, 0.5, 0.8)),
        ("control", 1),
    ]
    assert {load(run).student.name for run in students} == {"swinunetr-small"}
    assert all(run.teacher == teacher for run in students[:-1]) and students[-1].teacher is None


def test_a_gain_is_the_taught_student_less_the_same_one_alone():
    table = read_paper("autosam").table("figure 4")
    cell = next(cell for cell in cells_of(table, table.rows[:1]) if cell.column == "gain_of_dice")
    assert cell.experiment and cell.minus
    assert (cell.experiment.stage, cell.minus.stage) == ("distill", "control")
    assert cell.experiment.overrides == cell.minus.overrides == ("student.name=swinunetr-tiny",)


def test_five_shots_start_from_the_run_on_btcv_and_zero_shots_are_scored_elsewhere():
    table = read_paper("masam").table("figure 6")
    cells = {cell.column: cell for cell in cells_of(table, table.rows_named("MA-SAM"))}
    five, zero = cells["ct_5_shot"], cells["mri_0_shot"]
    assert five.experiment and five.experiment.start == zero.experiment
    assert (zero.scoring.config, zero.scoring.data) == ("amos-generalisation-mr", "amos")
    assert len(experiments_of(list(cells.values()))) == 3


def test_prompts_at_test_time():
    def shown(paper: str, number: str, row: str) -> set[tuple[str | None, int]]:
        table = read_paper(paper).table(number)
        return {(c.scoring.shown, c.scoring.repeat) for c in cells_of(table, table.rows_named(row)) if c.wanted}

    assert shown("masam", "4", "MA-SAM (1 relaxed 3D bbx/scan)") == {("box,relax=0.05", 1)}
    assert shown("masam", "4", "3DSAM-adapter (automatic)") == {(None, 1)}
    assert shown("medsa", "10", "Med-SA BBox 0.75") == {("boxes,iou=0.75", 5)}
    assert shown("medsa", "2", "SAM 3 points") == {("points:3,place=random,slices=each", 5)}
    assert shown("sam3d", "1", "Ours (10 pts/volume)") == {("points:10,place=random", 1)}


# --- at full size -----------------------------------------------------------------------------------------------------

# Parameters in millions, ours and the paper's, by paper, table, row and column.
COUNTS = {
    ("medsa", "1", "Med-SA 1 point", "tunable_parameters_m"): (14.23, 13),
    ("medsa", "1", "Med-SA 1 point", "parameters_m"): (649.39, 636),
    ("medsa", "2", "SAM 1 points", "tunable_parameters_m"): (0, 0),
    ("medsa", "2", "SAM 1 points", "parameters_m"): (641.09, 636),
    ("medsa", "7a", "1", "parameters_m"): (0.97, 1.58),
    ("medsa", "7a", "16", "parameters_m"): (3.72, 4.33),
    ("medsa", "7a", "32", "parameters_m"): (6.66, 7.19),
    ("medsa", "7a", "64", "parameters_m"): (12.54, 13.10),
    ("medsa", "7a", "256", "parameters_m"): (47.79, 48.67),
    ("medsa", "7b", "1–16", "parameters_m"): (8.94, 6.55),  # the decoder's adapters stay
    ("medsa", "7b", "17–32", "parameters_m"): (8.94, 6.55),
    ("medsa", "7b", "1–32", "parameters_m"): (14.23, 13.10),
    ("medsa", "8", "Add.", "added_parameters_m"): (0, 0),
    ("medsa", "8", "Concat.", "added_parameters_m"): (0, 0),
    ("medsa", "8", "Cross-Atten.", "added_parameters_m"): (0.40, 28.3),  # no form gives that number
    ("sam3d", "1", "Ours (1 pt/volume)", "tuned_parameters_m"): (25.46, 25.46),
    ("sam3d", "1", "Swin-UNETR", "tuned_parameters_m"): (62.19, 62.19),
    ("sam3d", "2", "Ours", "tuned_parameters_of_the_encoder_m"): (15.21, 15.21),
    ("autosam", "1", "Ours", "tuned_parameters_m"): (26.59, 26.53),
    ("autosam", "1", "SwinUNETR", "tuned_parameters_m"): (62.19, 62.83),
    ("autosam", "figure 4", "SwinUNETR-Tiny", "parameters_m"): (4.08, 4.0),
    ("autosam", "figure 4", "SwinUNETR-Small", "parameters_m"): (15.70, 15.7),
}


@pytest.mark.parametrize(("paper", "number", "row", "column"), COUNTS)
def test_parameters_beside_the_papers(paper: str, number: str, row: str, column: str):
    ours, printed = COUNTS[paper, number, row, column]
    table = read_paper(paper).table(number)
    cell = next(cell for cell in cells_of(table, table.rows_named(row)) if cell.column == column)
    assert cell.experiment and cell.paper == printed
    kind = "all" if cell.spec.count == "added" else str(cell.spec.count)
    count = parameters(cell.experiment, kind) - (parameters(cell.minus, kind) if cell.minus else 0)
    assert count / 1e6 == pytest.approx(ours, abs=0.006)


def test_parameters_of_masam_on_every_backbone():
    """With its 3-D adapters and FacT, 12 organs."""
    full = runs_named("masam", "9", "row 6")[0]
    for backbone, millions in (("vit_b", 30.14), ("vit_l", 64.46), ("vit_h", 96.81)):
        run = Experiment(
            stage="teach", config=full.config, overrides=(f"teacher.backbone={backbone}",), data="btcv", weights=True
        )
        assert parameters(run, "trained") / 1e6 == pytest.approx(millions, abs=0.006)


sizes: dict[str, int] = {}  # by what decides a network's size


@pytest.mark.slow
@each_row_of_ours
def test_its_networks_exist_at_full_size(place: Place):
    for run in runs_of(place):
        config = load(run)
        section = run.trained(config).model_dump(mode="json")
        parts = [section.get(name) for name in ("name", "backbone", "options")] + [section["plan"]["patch"]]
        key = json.dumps([*parts, class_count(run, config), paper_datasets()[run.data].channels])
        if key not in sizes:
            sizes[key] = parameters(run, "all")
        assert sizes[key] > 2e6


# --- at tiny size -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory) -> Workplace:
    overrides = ("phantom.training=2", "phantom.test=1", "teacher.training.steps=2", "student.training.steps=2")
    return Workplace(
        runs=tmp_path_factory.mktemp("tiny"), data={}, weights={}, phantom=True, overrides=(*overrides, *WARM)
    )


WARM = ("teacher.training.warmup=1", "student.training.warmup=1")
shared: dict[str, Run] = {}  # by what decides a run at tiny size


def settings(run: Experiment, work: Workplace) -> str:
    config = work.config_of(run)
    values = run.trained(config).model_dump(mode="json")
    before = [settings(each, work) for each in (run.start, run.teacher) if each]
    return json.dumps([run.stage, run.weights, run.lambda_, values, before])


# Every third row, for all of them take minutes; SAMKD_EVERY_ROW=1 trains them all.
TRAINED = OURS if os.environ.get("SAMKD_EVERY_ROW") else OURS[::3]


@pytest.mark.slow
@pytest.mark.parametrize("place", TRAINED, ids=lambda place: names[id(place[2])])
def test_two_steps_of_its_runs_at_tiny_size(place: Place, tiny_place: Workplace, monkeypatch):
    """Loss, optimiser, prompts and switches are the row's own; rows with equal settings share a run."""
    monkeypatch.setattr(trainer, "score_scans", lambda *_, **__: {})  # what they segment is not looked at here
    monkeypatch.setitem(
        phantom._VOLUMES, "sam3d", {"orientation": "LPS", "spacing": [16.0, 16.0, 16.0], "patch": [24, 24, 16]}
    )
    for run in runs_of(place):
        key = settings(run, tiny_place)
        if key not in shared:
            shared[key] = trained_run(run, tiny_place)
            check_two_steps(shared[key])
        tiny_place.trained[run] = shared[key]


def check_two_steps(run: Run) -> None:
    if run.config.network.name == "published":
        assert run.metrics().steps == 0
        return
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(np.isfinite(row["loss"]) for row in rows)


def test_a_cell_without_a_number_runs_nothing_but_is_filled_by_a_run_that_others_need():
    table = read_paper("masam").table("3")
    cells: list[Cell] = cells_of(table, table.rows_named("MA-SAM"))
    by_column = {cell.column: cell for cell in cells}
    assert by_column["seq2"].reason == NOT_GIVEN and not by_column["seq2"].wanted
    assert by_column["seq2"].experiment == by_column["seq1"].experiment


def test_the_stand_in_for_published_weights_is_the_same_every_time(tmp_path: Path):
    first, second = (phantom.stand_in_weights(tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes() == phantom.stand_in_weights(tmp_path / "a").read_bytes()
