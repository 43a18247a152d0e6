import json

import pytest
import yaml
from run_configs import run_config, run_values

from samkd.errors import BadInputError
from samkd.training.run import Run, control_of, newest_run
from samkd.training.run_config import RunConfig


def test_the_same_configuration_continues_and_another_is_refused_by_name(tmp_path):
    first = Run.create(tmp_path / "run", run_config())
    again = Run.create(tmp_path / "run", run_config(data="/elsewhere"))
    assert again.config == first.config
    with pytest.raises(BadInputError, match=r"from another recipe \(different: seed, training\.steps\)"):
        Run.create(tmp_path / "run", run_config(seed=1, training={"steps": 4}))
    assert Run.read(tmp_path / "run").config == first.config


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match="not a run folder and not empty"):
        Run.create(tmp_path, run_config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


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


def test_newest_run_wants_a_finished_one_of_the_stage_and_recipe(tmp_path):
    with pytest.raises(BadInputError, match="no finished teach run"):
        newest_run(tmp_path, "teach")
    for name, recipe in (("old", "phantom"), ("new", "other")):
        run = Run.create(tmp_path / name, run_config(recipe={"name": recipe}))
        run.weights.write_bytes(b"")
        run.write_json("metrics.json", {})
    Run.create(tmp_path / "unfinished", run_config())
    assert newest_run(tmp_path, "teach").path.name == "new"
    assert newest_run(tmp_path, "teach", recipe="phantom").path.name == "old"
    with pytest.raises(BadInputError, match="of recipe 'third'"):
        newest_run(tmp_path, "teach", recipe="third")


def test_a_control_has_the_students_budget(tmp_path):
    def finished(name, **changes) -> Run:
        run = Run.create(tmp_path / name, run_config(**changes))
        run.weights.write_bytes(b"")
        run.write_json("metrics.json", {})
        return run

    student = finished("student", stage="distill", objective={"lambda": 0.5})
    assert control_of(student, tmp_path) is None
    finished("shorter", stage="control", training={"steps": 2})
    finished("other seed", stage="control", seed=1)
    assert control_of(student, tmp_path) is None
    control = finished("control", stage="control")
    assert control_of(student, tmp_path) == control
