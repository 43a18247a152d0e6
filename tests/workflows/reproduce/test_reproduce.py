"""samkd reproduce: the plan, tables on the phantom and on data, and what is told when something is missing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import run_cli
from helpers.dataset_layouts import btcv

from samkd.configs.paper_tables import read_paper
from samkd.errors import BadInputError
from samkd.evaluation.records import CaseScores, ClassScore
from samkd.evaluation.scores import case_scores
from samkd.training.run import Run
from samkd.workflows.reproduce import values
from samkd.workflows.reproduce.experiments import Cell, cells_of
from samkd.workflows.reproduce.run import Workplace, parse_places
from samkd.workflows.reproduce.tables import result_tables

TINY = ("phantom.training=2", "phantom.test=1", "teacher.training.steps=2", "student.training.steps=2")
SETS = [word for override in TINY for word in ("--set", override)]


def reproduce(*words: object, runs: Path):
    return run_cli("reproduce", *words, "--runs", runs, in_process=True)


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plan_names_runs_overrides_prompts_cost_and_what_is_not_run(tmp_path: Path):
    done = reproduce("masam", "4", "--dry-run", "-o", tmp_path / "plan.json", runs=tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "runs").exists()
    runs, rows, others, differs = json.loads((tmp_path / "plan.json").read_text())
    assert "an NVIDIA A100 in float32 with 9.75 TFLOP/s sustained" in runs["title"]
    boxed = runs["rows"][4]
    assert (boxed["network"], boxed["config"], boxed["from"]) == ("masam", "msd-pancreas", "weights of vit_h")
    assert boxed["steps x patches"] == "50400 x 24" and 900 < float(boxed["GPU hours"]) < 1000
    assert runs["rows"][3]["overrides"] == "--set teacher.prompts={kind: none}"
    total = sum(float(row["GPU hours"]) for row in runs["rows"][:-1])
    assert runs["rows"][-1]["run"] == "all" and float(runs["rows"][-1]["GPU hours"]) == pytest.approx(total, abs=0.3)
    relaxed = next(row for row in rows["rows"] if "relaxed" in row["row"])
    assert (relaxed["run"], relaxed["shown of the truth"], relaxed["columns"]) == ("5", "box,relax=0.05", "dice, nsd")
    assert others["rows"][0]["rows"] == "nnU-Net, 3D UX-Net, nnFormer"
    assert "not a samkd network" in others["rows"][0]["why"]
    assert "the 70/10/20 are drawn by samkd's seed" in [row["here"] for row in differs["rows"]]


def test_the_plan_of_a_row_that_is_not_ours_has_no_runs(tmp_path: Path):
    done = reproduce("autosam", "1", "nnformer", "--dry-run", runs=tmp_path)
    assert done.exit_code == 0 and "not a samkd network" in done.text


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "messages"),
    [
        (("masm", "9"), 2, ["no paper 'masm' (did you mean 'masam'?)", "sam3d"]),
        (("masam", "12"), 2, ["no table '12'", "9: What each part contributes"]),
        (("masam", "9", "row 7"), 2, ["no row 'row 7'", "'row 6'"]),
        (("masam", "9", "-o", "table.docx"), 2, [".json, .csv, .md or .tex"]),
        (("masam", "9", "--phantom", "--data", "DIR"), 2, ["--phantom takes neither --data nor --weights"]),
        (("masam", "9", "--phantom", "--set", "teacher.trainin.steps=2"), 2, ["did you mean 'training'?"]),
        (
            ("masam", "9"),
            3,
            ["--data btcv=DIR", "--phantom", "syn3193805", "Training/img/imgNNNN", "samkd check"],
        ),
        (
            ("sam3d", "1"),
            3,
            ["--data kits21=DIR --data msd-pancreas=DIR", "kits-challenge.org", "decathlon.com"],
        ),
        (("masam", "figure 6"), 3, ["--data btcv=DIR --data amos=DIR", "amos22.grand-challenge.org"]),
        (("sam3d", "1", "--data", "DIR"), 3, ["expected NAME=PATH, for example kits21=PATH"]),
        (("masam", "9", "--data", "kits=DIR"), 3, ["--data 'kits=DIR'", "the names here are btcv"]),
        (("masam", "7", "--data", "DIR"), 3, ["--weights vit_b=FILE --weights vit_l=FILE --weights vit_h=FILE"]),
        (("masam", "9", "4", "--data", "DIR", "--weights", "none"), 3, ["DIR: is no folder. Looked for:", "BTCV"]),
    ],
)
def test_what_is_missing_is_one_clear_error(words, code, messages, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = reproduce(*words, runs=tmp_path / "runs")
    assert (done.exit_code, "Traceback" in done.output) == (code, False), done.output
    assert all(message in done.text for message in messages), done.text
    assert not list((tmp_path / "runs").glob("*/config.yaml"))


def test_published_weights_that_are_not_there_are_told_before_anything_is_trained(tmp_path: Path):
    words = ("masam", "7", "--data", btcv(tmp_path / "btcv"), "--weights", "vit_b=b.pth", "--weights", "vit_l=l.pth")
    done = reproduce(*words, "--weights", "vit_h=h.pth", runs=tmp_path / "runs")
    assert done.exit_code == 3 and "b.pth: no such file; expected the published weights of vit_b" in done.text
    assert not (tmp_path / "runs").exists()


def test_places_by_name():
    two = parse_places(["a=x", "b=y=z"], ["a", "b"], option="--data", known=["a", "b"])
    assert two == {"a": Path("x"), "b": Path("y=z")}
    assert parse_places(["x"], ["a"], option="--data", known=["a", "b"]) == {"a": Path("x")}
    assert parse_places(["b=x"], ["a"], option="--data", known=["a", "b"]) == {"b": Path("x")}
    with pytest.raises(BadInputError, match="the names here are a, b"):
        parse_places(["x"], ["a", "b"], option="--data", known=["a", "b"])


# --- a table on the phantom -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_prompted_row_on_the_phantom_and_its_runs_are_taken_up_again(tmp_path: Path):
    words = ("masam", "4", "MA-SAM (1 relaxed 3D bbx/scan)", "--phantom", *SETS)
    done = reproduce(*words, "-o", tmp_path / "first.json", "-o", tmp_path / "table.tex", runs=tmp_path)
    assert done.exit_code == 0, done.output
    table, differs = json.loads((tmp_path / "first.json").read_text())
    assert "NO REPRODUCTION" in table["title"] and "NO REPRODUCTION" in (tmp_path / "table.tex").read_text()
    paper, ours = table["rows"]
    assert (paper["of"], paper["dice"], ours["of"]) == ("paper", "74.7", "phantom")
    assert 0 <= float(ours["dice"]) < 100
    told = {row["what"]: (row["paper"], row["here"]) for row in differs["rows"]}
    assert told["steps, masam"] == ("50400", "2") and told["network"][0] == "masam on vit_h"
    assert told["data"][1] == "phantom, 2 training cases" and "random" in told["published weights"][1]
    assert told["overrides of your own"][1].startswith("--set phantom.training=2")

    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = reproduce(*words, "-o", tmp_path / "second.json", runs=tmp_path)
    assert again.exit_code == 0 and (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()
    assert all(path.stat().st_mtime_ns == before for path, before in files.items() if path.parent.name != ".")


@pytest.mark.slow
def test_a_run_that_was_stopped_is_finished_and_one_that_is_broken_is_told(tmp_path: Path):
    words = ("masam", "9", "4", "--phantom", *SETS)
    assert reproduce(*words, runs=tmp_path).exit_code == 0
    (run,) = (path.parent for path in tmp_path.glob("teach-*/config.yaml"))
    scored = (run / "metrics.json").read_text()
    (run / "metrics.json").unlink()
    assert not Run.read(run).finished
    assert reproduce(*words, runs=tmp_path).exit_code == 0
    assert json.loads((run / "metrics.json").read_text())["test"] == json.loads(scored)["test"]
    (run / "config.yaml").write_text("stage: teach\n")
    done = reproduce(*words, runs=tmp_path)
    assert (done.exit_code, "Traceback" in done.output) == (3, False) and run.name in done.text


@pytest.mark.slow
def test_students_of_a_teacher_on_the_phantom(tmp_path: Path):
    done = reproduce(
        "autosam", "figure 4", "swinunetr-tiny", "--phantom", *SETS, "-o", tmp_path / "t.json", runs=tmp_path
    )
    assert done.exit_code == 0, done.output
    table, _ = json.loads((tmp_path / "t.json").read_text())
    ours = table["rows"][1]
    assert ours["parameters_m"] == "4.1"  # counted at full size
    stages = {Run.read(path.parent).stage: Run.read(path.parent) for path in tmp_path.glob("*/config.yaml")}
    assert stages.keys() == {"teach", "control", "distill"}
    taught, alone = (stages[stage].metrics().test for stage in ("distill", "control"))
    assert taught and alone
    gain = 100 * ((taught.summary.mean.dice or 0) - (alone.summary.mean.dice or 0))
    assert float(ours["gain_of_dice"]) == pytest.approx(gain, abs=0.051)


@pytest.mark.slow
def test_a_row_on_data_of_its_layout_names_what_differs(tmp_path: Path):
    small = [
        *("teacher.backbone=vit_tiny_p8", "split={test: 0.2}", "teacher.training.steps=2", "teacher.training.batch=1"),
        *("teacher.training.accumulate=1", "teacher.plan.size=[null, 32, 32]", "teacher.plan.patch=[5, 32, 32]"),
    ]
    done = reproduce(
        *("masam", "9", "6", "--data", btcv(tmp_path / "btcv", training=5), "--weights", "none"),
        *(word for override in small for word in ("--set", override)),
        *("-o", tmp_path / "t.json"),
        runs=tmp_path / "runs",
    )
    assert done.exit_code == 0, done.output
    table, differs = json.loads((tmp_path / "t.json").read_text())
    assert "REPRODUCTION" not in table["title"] and [row["of"] for row in table["rows"]] == ["paper", "samkd"]
    told = {row["what"]: row["here"] for row in differs["rows"]}
    assert told["data"].endswith("4 training cases") and told["steps, masam"] == "2"
    assert told["published weights"] == "none: everything learns from random numbers"


# --- the number of a cell ---------------------------------------------------------------------------------------------


def scores(**dice: float) -> CaseScores:
    """The scores of cases A_00 and B_00 with a liver and a spleen: case A's as given, B's half of them."""

    def row(number: int, name: str, value: float) -> ClassScore:
        return ClassScore(
            number=number,
            name=name,
            dice=value,
            iou=value,
            hd95_mm=10 * value,
            nsd=value,
            truth_voxels=1,
            predicted_voxels=1,
        )

    cases = {
        case: [row(number, name, part * value) for number, (name, value) in enumerate(dice.items(), start=1)]
        for case, part in (("A_00", 1), ("B_00", 0.5))
    }
    return case_scores(cases)


def cell(**changes) -> Cell:
    table = read_paper("masam").table("5")
    first = next(each for each in cells_of(table, table.rows_named("MA-SAM (Ours)")) if each.wanted)
    return replace(first, spec=first.spec.model_copy(update={"cases": None, **changes}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 100 * 0.75 * 0.7),
        ({"class_name": "liver"}, 100 * 0.75 * 0.8),
        ({"cases": "^B"}, 100 * 0.5 * 0.7),
        ({"cases": "^C"}, None),
        ({"class_name": "kidney"}, None),
        ({"metric": "hd95_mm"}, 10 * 0.75 * 0.7),
        ({"deviation": True}, 100 * 0.75 * 0.1 * 2**0.5),
    ],
)
def test_the_number_of_a_cell(changes, expected, tmp_path: Path, monkeypatch):
    draws = [scores(liver=0.7, spleen=0.5), scores(liver=0.9, spleen=0.7)]
    monkeypatch.setattr(values, "scores_of", lambda *_: draws)
    value = values.score_of_cell(cell(**changes), Workplace(runs=tmp_path, data={}, weights={}))
    assert value == (expected if expected is None else pytest.approx(expected))


def test_on_the_phantom_a_class_or_site_that_it_lacks_is_the_mean_of_all(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(values, "scores_of", lambda *_: [scores(liver=0.8, spleen=0.6)])
    work = Workplace(runs=tmp_path, data={}, weights={}, phantom=True)
    assert values.score_of_cell(cell(cases="^F", class_name="disc"), work) == pytest.approx(100 * 0.75 * 0.7)


@pytest.mark.parametrize(("number", "phantom", "told"), [("5", True, True), ("9", True, False), ("5", False, False)])
def test_columns_that_the_phantom_cannot_tell_apart_are_named(number: str, phantom: bool, told: bool, tmp_path: Path):
    paper = read_paper("masam")
    table = paper.table(number)
    work = Workplace(runs=tmp_path, data={}, weights={}, phantom=phantom)
    *_, differs = result_tables(paper, table, table.rows, cells_of(table, table.rows), {}, work)
    assert ("columns" in [row[0] for row in differs.rows]) == told


def test_the_mean_of_columns_needs_all_of_them():
    assert values.mean_of(("a", "b"), {"a": 1.0, "b": 2.0}) == 1.5
    assert values.mean_of(("a", "b"), {"a": 1.0, "b": None}) is None
