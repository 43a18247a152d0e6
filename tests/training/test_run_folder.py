import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from helpers.run_configs import run_config, run_values

from samkd.errors import BadInputError
from samkd.evaluation.rules import ScoringRules
from samkd.training import lock
from samkd.training.lock import LOCK, locked_folder, one_at_a_time
from samkd.training.run import Run, control_of, newest_run, sweep_of
from samkd.training.run_config import RunConfig
from samkd.volumes.json_files import read_json


def test_the_same_configuration_continues_and_another_is_refused_by_name(tmp_path):
    first = Run.create(tmp_path / "run", run_config())
    again = Run.create(tmp_path / "run", run_config(data="/elsewhere"))
    assert again.config == first.config
    with pytest.raises(BadInputError, match=r"from another config \(different: seed, training\.steps\)"):
        Run.create(tmp_path / "run", run_config(seed=1, training={"steps": 4}))
    assert Run.read(tmp_path / "run").config == first.config


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match="not a run folder and not empty"):
        Run.create(tmp_path, run_config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_ended_before_its_configuration_is_begun_again(tmp_path):
    """Killed, or on a full disk, between the folder and its config.yaml: the same command goes on."""
    for name in (".samkd-0123456789abcdef.tmp", "config.yaml.tmp-1042"):
        run = tmp_path / name.strip(".") / "run"
        (run / "state").mkdir(parents=True)
        (run / name).write_text("stage: te")
        assert Run.create(run, run_config()).config == run_config()
    (tmp_path / "other" / "state").mkdir(parents=True)
    (tmp_path / "other" / "state" / "mine").write_text("mine")
    with pytest.raises(BadInputError, match="not a run folder"):
        Run.create(tmp_path / "other", run_config())


HOLDING = """
import pathlib, sys, time
from samkd.training.lock import locked_folder
with locked_folder(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_two_trainings_of_one_run_exclude_each_other(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    try:
        for _ in range(2):
            expected = f"is being trained by process {process.pid} on {socket.gethostname()}"
            with pytest.raises(BadInputError, match=expected) as caught, locked_folder(tmp_path):
                pass
            assert caught.value.exit_code == 3
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / LOCK).exists()
    mine = f"process {os.getpid()} on"  # what a killed process left is taken over
    with locked_folder(tmp_path), pytest.raises(BadInputError, match=mine), locked_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), locked_folder(tmp_path):
        raise RuntimeError
    with locked_folder(tmp_path):
        pass


def test_a_training_holds_its_run_and_a_finished_run_is_only_read(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", run_config())
    held = []

    @one_at_a_time
    def train(*, run: Run) -> Run:
        held.append((run.path / LOCK).exists())
        return run

    assert train(run=run) is run
    monkeypatch.setattr(lock, "is_main", lambda: False)  # the second device of the same training
    train(run=run)
    monkeypatch.setattr(lock, "is_main", lambda: True)
    run.weights.write_bytes(b"")
    run.write_json("metrics.json", {})
    train(run=run)
    assert held == [True, False, False] and not (run.path / LOCK).exists()


@pytest.mark.parametrize("text", [None, "[1, 2]", "stage: teach", "a: {"])
def test_reading_what_is_no_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInputError, match=r"config\.yaml"):
        Run.read(tmp_path)


CHANGED = {
    "stage": "control",
    "network": {**run_values()["network"], "name": "medsa"},
    "objective": {"lambda": 0.5},
    "plan": {"intensity": [{"rule": "zscore"}], "patch": [2, 8, 8]},
    "labels": {"0": "background", "1": "spleen"},
    "channels": ["T1"],
    "cases": {**run_values()["cases"], "train": ["c"]},
    "seed": 1,
    "training": {"steps": 4},
}


def test_the_hash_ignores_where_the_data_lies_and_nothing_else():
    assert run_config().digest() == run_config(data="x", recipe={"name": "y"}, base="z").digest()
    for key, value in CHANGED.items():
        assert run_config().digest() != run_config(**{key: value}).digest(), key


FILE = {"name": "sam.pth", "sha256": "ab"}
TEACHING = {
    "teachers": [{"run": "t", "sha256": "cd", "share": 1.0}],
    "distillation": {"loss": "mse"},
    "online": False,
    "unlabelled": {"cases": 0, "content": "ef"},
}


@pytest.mark.parametrize(
    ("family", "objective"),
    [
        ("teachers", {"lambda": 1.0, "pretrained": FILE}),
        ("teachers", {"lambda": 1.0, "pretrained": None, "start": "12", "held encoder": True}),
        ("teachers", {"lambda": 1.0, "pretrained": None, "prompts": {"kind": "point"}}),
        ("students", {"lambda": 1.0}),
        ("students", {"lambda": 0.5, **TEACHING, "start": FILE, "prompts": {"kind": "points"}}),
    ],
)
def test_a_run_of_format_1_is_read_and_keeps_its_hash_in_format_2(family, objective):
    values = run_values(objective=objective)
    values["network"] = {**values["network"], "room": family}
    if family == "students":
        del values["network"]["backbone"]
    config = RunConfig.from_dict(values)
    plan = {"plan": config.plan.to_dict()}
    assert config.hashed() == {key: value for key, value in values.items() if key not in ("data", "recipe")} | plan
    written = yaml.safe_load(yaml.safe_dump(config.to_dict()))
    assert written["format"] == 2 and written["network"]["family"] == family
    assert not {"start", "held encoder"} & written["objective"].keys()
    assert RunConfig.from_dict(written) == config
    assert (config.adapted_file is not None) == (family == "teachers" and objective.get("pretrained") is not None)


def test_a_later_format_is_refused():
    with pytest.raises(BadInputError, match="of format 3"):
        run_config(format=3)


def test_log_survives_a_torn_last_line_and_forgets_what_was_not_saved(tmp_path):
    run = Run.create(tmp_path / "run", run_config())
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1 / step})
    with (run.path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [entry["step"] for entry in run.history()] == [1, 2, 3]
    run.forget_after(2)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_log_goes_on_after_half_a_line_and_holds_every_step_once(tmp_path):
    run = Run.create(tmp_path / "run", run_config())
    run.forget_after(0)
    assert not (run.path / "log.jsonl").exists()
    run.log({"step": 1})
    with (run.path / "log.jsonl").open("ab") as stream:
        stream.write(b'{"step": 2, "lo')
    run.log({"step": 2})
    with (run.path / "log.jsonl").open("ab") as stream:
        stream.write(b'7\n[1]\n{"loss": 1}\n{"step": "x"}\n\xff\n')
    run.log({"step": 3})
    assert [entry["step"] for entry in run.history()] == [1, 2, 3]
    run.forget_after(0)  # killed before its first state: it begins anew
    run.log({"step": 1})
    assert [entry["step"] for entry in run.history()] == [1]


# As the first release wrote it: one test case with the liver, without the spleen.
METRICS = """{
 "steps": 200,
 "seconds": 12.5,
 "skipped_steps": 0,
 "parameters": 1200,
 "trained_parameters": 600,
 "validation": {
  "dice": 0.875,
  "step": 150
 },
 "test": {
  "summary": {
   "per_class": {
    "liver": {
     "dice": 0.75,
     "iou": 0.6,
     "hd95_mm": 5.0,
     "nsd": 0.5,
     "cases": 1
    },
    "spleen": {
     "dice": null,
     "iou": null,
     "hd95_mm": null,
     "nsd": null,
     "cases": 0
    }
   },
   "mean": {
    "dice": 0.75,
    "iou": 0.6,
    "hd95_mm": 5.0,
    "nsd": 0.5
   }
  },
  "cases": {
   "case_1": [
    {
     "class": 1,
     "name": "liver",
     "dice": 0.75,
     "iou": 0.6,
     "hd95_mm": 5.0,
     "nsd": 0.5,
     "truth_voxels": 64,
     "predicted_voxels": 64
    },
    {
     "class": 2,
     "name": "spleen",
     "dice": null,
     "iou": null,
     "hd95_mm": null,
     "nsd": null,
     "truth_voxels": 0,
     "predicted_voxels": 0
    }
   ]
  }
 }
}
"""


def _without(value, keys):
    """JSON values without those keys, at any depth."""
    if isinstance(value, list):
        return [_without(each, keys) for each in value]
    if isinstance(value, dict):
        return {key: _without(each, keys) for key, each in value.items() if key not in keys}
    return value


def test_metrics_of_the_first_release_are_read_and_written_with_the_rules_that_were_its(tmp_path):
    run = Run.create(tmp_path / "run", run_config())
    run.write_text("metrics.json", METRICS)
    metrics = run.metrics()
    assert metrics.validation is not None
    assert (metrics.steps, metrics.trained_parameters, metrics.validation.step) == (200, 600, 150)
    assert metrics.test is not None and metrics.test.cases["case_1"][1].dice is None
    assert metrics.test.summary.dice_by_class() == {"liver": 0.75, "spleen": None, "mean": 0.75}
    run.write_json("metrics.json", metrics.to_json())
    assert run.metrics() == metrics
    assert metrics.test.rules == ScoringRules() and metrics.test.rules.metrics == ("dice",)
    old, new = json.loads(METRICS), read_json(run.path / "metrics.json")
    assert new["test"].pop("rules")["tolerance_mm"] == 1.0
    assert _without(new, {"hd95_voxels", "asd_mm", "missed", "invented", "test_prompts"}) == old
    untested = replace(metrics, test=None)
    run.write_json("metrics.json", untested.to_json())
    assert run.metrics() == untested


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('"steps": 200', '"steps": "200"'),
        ('"steps": 200', '"steps": true'),
        ('"parameters": 1200', '"parameters": null'),
        ('"seconds": 12.5,', ""),
        ('"step": 150', '"step": 1.5'),
        ('"iou": 0.6', '"iou": "0.6"'),
        ('"class": 1', '"class": "liver"'),
        ('"cases": 1', '"cases": {}'),
        ('"name": "liver"', '"name": 1'),
        ('"test": {', '"test": 7, "more": {'),
        ('"case_1": [', '"case_1": 3, "more": ['),
    ],
)
def test_metrics_with_a_wrong_value_are_one_line(tmp_path, text, wrong):
    run = Run.create(tmp_path / "run", run_config())
    assert text in METRICS
    run.write_text("metrics.json", METRICS.replace(text, wrong, 1))
    with pytest.raises(BadInputError, match=r"metrics\.json: holds no scores .*Remove it"):
        run.metrics()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100000])
def test_broken_metrics_are_one_line(tmp_path, content):
    run = Run.create(tmp_path / "run", run_config())
    (run.path / "metrics.json").write_bytes(content)
    with pytest.raises(BadInputError, match=r"metrics\.json"):
        run.metrics()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: !!int abc", b"a: 2020-13-45", b"[" * 5000, b"a: *b"])
def test_a_broken_configuration_is_one_line(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(BadInputError, match=r"config\.yaml"):
        Run.read(tmp_path)


def test_newest_run_wants_a_finished_one_of_the_stage_and_config(tmp_path):
    with pytest.raises(BadInputError, match="no finished teach run"):
        newest_run(tmp_path, "teach")
    for name, config in (("old", "phantom"), ("new", "other")):
        run = Run.create(tmp_path / name, run_config(recipe={"name": config}))
        run.weights.write_bytes(b"")
        run.write_json("metrics.json", {})
    Run.create(tmp_path / "unfinished", run_config())
    assert newest_run(tmp_path, "teach").path.name == "new"
    assert newest_run(tmp_path, "teach", config="phantom").path.name == "old"
    with pytest.raises(BadInputError, match="of config 'third'"):
        newest_run(tmp_path, "teach", config="third")


def _finished(folder, **changes) -> Run:
    run = Run.create(folder, run_config(**changes))
    run.weights.write_bytes(b"")
    run.write_json("metrics.json", {})
    return run


def test_a_control_has_the_students_budget(tmp_path):
    def finished(name, **changes) -> Run:
        return _finished(tmp_path / name, **changes)

    student = finished("student", stage="distill", objective={"lambda": 0.5})
    assert control_of(student, tmp_path) is None
    finished("shorter", stage="control", training={"steps": 2})
    finished("other seed", stage="control", seed=1)
    assert control_of(student, tmp_path) is None
    control = finished("control", stage="control")
    assert control_of(student, tmp_path) == control


def test_a_sweep_is_of_runs_that_differ_in_lambda_alone(tmp_path):
    student = _finished(tmp_path / "student", stage="distill", objective={"lambda": 0.5})
    assert list(sweep_of(student, tmp_path)) == [0.5]
    other = _finished(tmp_path / "other", stage="distill", objective={"lambda": 0.2})
    _finished(tmp_path / "control", stage="control", objective={"lambda": 1.0})
    _finished(tmp_path / "other seed", stage="distill", objective={"lambda": 0.8}, seed=1)
    Run.create(tmp_path / "unfinished", run_config(stage="distill", objective={"lambda": 0.9}))
    assert sweep_of(student, tmp_path) == {0.2: other, 0.5: student} and list(sweep_of(student, tmp_path)) == [0.2, 0.5]
