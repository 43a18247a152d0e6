"""samkd runs: the state, scores and lineage of every run in a folder, and what of it can go."""

import json
import shutil

import pytest
from helpers.command_line import run_cli

from samkd.errors import BadInputError, OutputError
from samkd.training.lock import locked_folder
from samkd.workflows.runs import list_runs, remove, spare

TRAINED = {"steps": 4, "seconds": 1.0, "skipped_steps": 0, "parameters": 10, "trained_parameters": 10}


@pytest.fixture
def root(tmp_path):
    """A finished teacher, a stopped student that it teaches, a broken run, and folders that are none."""
    folder = tmp_path / "runs"
    for name in ("packages", "cache", "data"):
        (folder / name).mkdir(parents=True)
    _run(folder / "teacher", stage="teach")
    (folder / "teacher" / "weights.safetensors").write_bytes(bytes(1000))
    metrics = TRAINED | {"validation": {"dice": 0.75, "step": 4}, "test": None}
    (folder / "teacher" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "teacher" / "state").mkdir()
    (folder / "teacher" / "state" / "last.safetensors").write_bytes(bytes(5000))
    teaching = {"teachers": [{"run": "teacher", "sha256": "ab", "share": 1.0}], "distillation": {}, "online": False}
    objective = {"lambda": 0.5, **teaching, "unlabelled": {"cases": 0, "content": "x"}}
    _run(folder / "student", stage="distill", objective=objective)
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text("stage: [")
    return folder


def _run(folder, *, stage, objective=None):
    folder.mkdir()
    values = {
        "format": 2,
        "stage": stage,
        "network": {"family": "students", "name": "segresnet", "in_channels": 1, "num_classes": 2, "patch": [8, 8, 8]},
        "objective": objective or {"lambda": 1.0},
        "plan": {"intensity": [{"rule": "zscore"}], "patch": [8, 8, 8], "overlap": 0.5, "spacing": [1, 1, 1]},
        "labels": {"0": "background", "1": "liver"},
        "channels": ["CT"],
        "training": {"steps": 4},
        "seed": 0,
        "cases": {"dataset": "d", "train": ["a"], "validation": ["b"], "content": "c"},
        "data": "data",
        "recipe": {"name": "phantom"},
    }
    (folder / "config.yaml").write_text(json.dumps(values))
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.9, "dice": 0.4}, {"step": 3, "loss": 0.8}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_state_scores_and_lineage(root):
    rows = {row.name: row for row in list_runs(root)}
    assert {name: row.state for name, row in rows.items()} == {
        "teacher": "finished",
        "student": "stopped",
        "broken": "broken",
    }
    teacher, student = rows["teacher"], rows["student"]
    assert (teacher.step, teacher.steps, teacher.validation_dice, teacher.test_dice) == (4, 4, 0.4, None)
    assert teacher.bytes == sum(path.stat().st_size for path in (root / "teacher").rglob("*") if path.is_file())
    assert (student.step, student.steps, student.teachers, student.stage) == (3, 4, ("teacher",), "distill")
    assert "not a run folder" in (rows["broken"].fault or "")
    with locked_folder(root / "student"):
        assert {row.name: row.state for row in list_runs(root)}["student"] == "training"


def test_clean_names_and_removes_what_nobody_needs_and_nothing_that_trains(root):
    with locked_folder(root / "student"):
        assert [each.path for each in spare(root)] == [root / "teacher" / "state"]
    spared = spare(root)
    assert {each.path.relative_to(root).as_posix(): each.bytes > 0 for each in spared} == {
        "teacher/state": True,
        "student": True,
    }
    with locked_folder(root / "student"), pytest.raises(OutputError, match="is being trained by now"):
        remove([each for each in spared if each.path.name == "student"])
    before = sorted(root.rglob("*"))
    listed = run_cli("runs", "clean", "--runs", root, in_process=True)
    assert listed.exit_code == 0 and "stopped after 3 of 4 steps" in listed.text and sorted(root.rglob("*")) == before
    assert "removed" in run_cli("runs", "clean", "--runs", root, "--yes", in_process=True).text
    assert not (root / "student").exists() and not (root / "teacher" / "state").exists()
    assert (root / "teacher" / "weights.safetensors").exists() and (root / "broken").exists() and not spare(root)


def test_clean_removes_caches_when_asked_to_and_nobody_uses_them(root):
    (root / "cache" / "case").write_bytes(bytes(100))
    assert root / "cache" not in [each.path for each in spare(root)]
    spared = spare(root, caches=True)[:1]
    with locked_folder(root / "student"):
        with pytest.raises(BadInputError, match="cache: is in use, for student is being trained"):
            spare(root, caches=True)
        with pytest.raises(OutputError, match="is being trained by now"):
            remove(spared)
    shown = run_cli("runs", "clean", "--runs", root, "--caches", "--yes", "--dry-run", in_process=True)
    assert shown.exit_code == 0 and "made again when needed" in shown.text and (root / "cache" / "case").exists()
    run_cli("runs", "clean", "--runs", root, "--caches", "--yes", in_process=True)
    assert not (root / "cache").exists() and (root / "teacher" / "metrics.json").exists()


def test_the_table_and_its_json(root):
    shown = run_cli("runs", "--runs", root, in_process=True)
    assert shown.exit_code == 0 and "3 of 4" in shown.text and "not a run folder" in shown.text
    rows = json.loads(run_cli("runs", "--runs", root, "--json", in_process=True).stdout)
    assert {row["name"] for row in rows} == {"teacher", "student", "broken"}
    shutil.rmtree(root / "broken")
    with pytest.raises(BadInputError, match="is no folder"):
        list_runs(root / "nowhere")
    (root / "empty").mkdir()
    assert "holds no run" in run_cli("runs", "--runs", root / "empty", in_process=True).text
