"""Run folders that were damaged, or made to do harm: one clear error, exit 3 or 4, never a traceback, never endless."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_training
from helpers.run_configs import run_config, run_values

from samkd.configs.load import load_config
from samkd.configs.schema import Training
from samkd.configs.yaml_files import parse_yaml, read_yaml
from samkd.distill.soft_targets import _read_scores
from samkd.errors import BadInputError, IntegrityError, OutputError, SamkdError, UsageError
from samkd.training.checkpoint import load_state, load_weights
from samkd.training.counters import Counters
from samkd.training.lock import locked_folder
from samkd.training.run import LOCK, Run
from samkd.volumes.datasets.splits import read_split
from samkd.volumes.files import file_digest, regular_file
from samkd.volumes.json_files import read_json

NETWORK, CASES = run_values()["network"], run_values()["cases"]
TEACHING = {
    "teachers": [{"run": "t", "sha256": "cd", "share": 1.0}],
    "distillation": {"loss": "mse"},
    "online": False,
    "unlabelled": {"cases": 0, "content": "ef"},
}


def network(**changes):
    return {"network": NETWORK | changes}


def objective(**changes):
    return {"objective": {"lambda": 0.5, **TEACHING} | changes}


def cases(**changes):
    return {"cases": CASES | changes}


WRONG_VALUES = [
    *({key: value} for key in run_values() if key not in ("data", "seed") for value in (None, 5, "x", [1, 2], [[]])),
    *({"stage": value} for value in ("evil", {}, ["teach"])),
    *(network(**{key: 5}) for key in ("room", "name", "backbone", "patch", "options")),
    *(network(room=value) for value in ("evil", None, "")),
    *(network(in_channels=value) for value in ("1", 0, -1, 10**9, 1.0, True, None, [1])),
    *(network(num_classes=value) for value in ("2", 0, 3, 10**12, 2.0)),
    *(network(patch=value) for value in ([1, 2], [0, 8, 8], "4,8,8", [4, 8, "8"], None, [1e9] * 3)),
    *(network(options=value) for value in ([1], "x", None, {1: 2})),
    network(surplus=1),
    *(
        {"objective": value}
        for value in ({}, {"lambda": "x"}, {"lambda": float("nan")}, {"lambda": 2}, {"lambda": None})
    ),
    *(objective(**{key: value}) for key in ("teachers", "distillation", "unlabelled") for value in (5, "x", [1])),
    objective(teachers=[{"run": 1, "sha256": "a", "share": 1}]),
    objective(teachers=[{"run": "t", "sha256": None, "share": 1}]),
    objective(teachers=[{"run": "t", "sha256": "a", "share": "all"}]),
    objective(teachers=[{"run": "t", "sha256": "a", "share": 1, "predictions": "yes"}]),
    objective(pretrained={"name": 1, "sha256": "a"}),
    objective(pretrained=[1]),
    objective(prompts=[1]),
    objective(init_run=5),
    *({"plan": value} for value in ({}, {"patch": 5, "intensity": []}, {"patch": [4, 8, 8], "intensity": 5})),
    *(
        {"labels": value}
        for value in ({}, {"0": "background"}, {"0": "background", "2": "x"}, {"x": "y"}, {"0": 1, "1": 2})
    ),
    *({"channels": value} for value in ("CT", [], ["CT", "MR"], [1], {"CT": 1})),
    *({"seed": value} for value in ("0", 0.5, True)),
    *(cases(**{key: value}) for key in ("dataset", "train", "validation", "content") for value in (5, None, [1], {})),
    {"training": {"steps": yaml.safe_load("2020-12-13")}},
    {"base": [1]},
    {"format": "x"},
]


@pytest.mark.parametrize("number", range(len(WRONG_VALUES)))
def test_a_configuration_of_wrong_values_is_refused(tmp_path, number):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run_values(**WRONG_VALUES[number])))
    with pytest.raises(BadInputError, match=r"config\.yaml") as refused:
        Run.read(tmp_path)
    assert refused.value.exit_code == 3 and "\n" not in str(refused.value)


NAMES = list(zip("abcdefghi", "bcdefghij", strict=True))  # each stands for ten of the one before
BOMB = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in NAMES)
MERGE_BOMB = BOMB.replace("[x, x]", "{x: 1}").replace(" [", " {<<: [").replace("]\n", "]}\n")
NO_YAML = {
    "not UTF-8": b"a: \xff\xfe",
    "UTF-16": "stage: teach".encode("utf-16"),
    "no integer": b"a: !!int abc",
    "no float": b"a: !!float x",
    "no date": b"name: 2020-13-45",
    "no binary": b"a: !!binary x",
    "no mapping": b"a: !!map [1]",
    "no pairs": b"a: !!pairs 5",
    "no boolean": b"a: !!bool x",
    "deep list": b"[" * 5000,
    "deep mapping": b"{a: " * 5000,
    "deep blocks": b"".join(b" " * n + b"a:\n" for n in range(2000)),
    "bomb": BOMB.encode(),
    "merge bomb": MERGE_BOMB.encode(),
    "within itself": b"a: &a [*a]",
    "mapping within itself": b"&a {b: *a}",
    "unknown alias": b"a: *b",
    "a list as a key": b"{[1, 2]: 3}",
    "runs code": b"a: !!python/object/apply:os.system ['false']",
    "two documents": b"a: 1\n---\nb: 2",
    "NUL": b"a: \0",
    "tab": b"a:\n\t- b",
    "nothing": b"",
    "control": b"a: \x1b[31m",
}


@pytest.mark.parametrize("name", NO_YAML)
def test_what_is_no_yaml_is_one_line_for_runs_configs_and_overrides(tmp_path, name):
    (tmp_path / "config.yaml").write_bytes(NO_YAML[name])
    with pytest.raises(BadInputError, match=r"config\.yaml") as refused:
        Run.read(tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    with pytest.raises(UsageError, match=r"config\.yaml") as refused:
        load_config(str(tmp_path / "config.yaml"))
    assert len(str(refused.value)) < 1000
    text = NO_YAML[name].decode("utf-8", errors="replace")
    if name not in ("nothing", "not UTF-8"):
        with pytest.raises(UsageError):
            load_config("phantom", [f"name={text}"])


def test_aliases_and_byte_order_marks_that_people_write_are_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: &plan {patch: [1, 2, 3]}\nb: *plan\nc: {<<: *plan, d: 1}\n")
    patch = [1, 2, 3]
    assert read_yaml(tmp_path / "a.yaml") == {
        "a": {"patch": patch},
        "b": {"patch": patch},
        "c": {"patch": patch, "d": 1},
    }
    assert parse_yaml("") is None


COUNTERS = [
    *({"step": value} for value in ("x", -1, 10**9, 11, None, 1.0, True, float("nan"), [1])),
    *({"seconds": value} for value in ("x", -1.0, float("nan"), float("inf"), None)),
    *({"best_dice": value} for value in (float("nan"), 2, "x", -2, None)),
    *({"stale": value} for value in (-1, 0.5)),
    {"surplus": 1},
]


@pytest.mark.parametrize("values", COUNTERS)
def test_counters_that_no_run_can_have_are_refused(values):
    with pytest.raises(IntegrityError, match="cannot be those of a run of 10 steps") as refused:
        Counters.read(values, steps=10, path=Path("state"))
    assert refused.value.exit_code == 4
    assert Counters.read({"step": 10, "seconds": 0.5}, steps=10, path=Path("state")).step == 10


SCORES = {"steps": 1, "seconds": 1.0, "parameters": 5}
ROW = {"dice": 0.5}
NO_METRICS = [
    *(b"", b"[]", b"{}", b"{", b"5", b"null", b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}'),
    SCORES,
    {**SCORES, "steps": "x", "test": None},
    *({**SCORES, "test": value} for value in (5, [], {}, {"summary": 5, "cases": {}}, {"summary": {}, "cases": {}})),
    {**SCORES, "test": {"summary": {"per_class": {"a": 5}, "mean": ROW}, "cases": {}}},
    {**SCORES, "test": {"summary": {"per_class": {}, "mean": {"dice": "x"}}, "cases": {}}},
    {**SCORES, "test": {"summary": {"per_class": {}, "mean": ROW}, "cases": {"a": [5]}}},
    {**SCORES, "test": {"summary": {"per_class": {}, "mean": ROW}, "cases": [1]}},
]


@pytest.mark.parametrize("number", range(len(NO_METRICS)))
def test_metrics_that_are_none_are_refused(tmp_path, number):
    run, content = Run.create(tmp_path / "run", run_config()), NO_METRICS[number]
    (run.path / "metrics.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(BadInputError, match=r"metrics\.json: .*Remove it"):
        run.metrics()


@pytest.mark.parametrize(
    "text", ["", "[]", "5", '{"a": 5}', '{"a": {"mean": "x"}}', '{"a": {"mean": null}}', "[" * 10_000]
)
def test_a_teachers_scores_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "validation-1.json").write_text(text)
    with pytest.raises(BadInputError, match=r"validation-1\.json"):
        _read_scores(tmp_path / "validation-1.json")


LINES = [
    *(b"[1]", b"5", b"null", b'{"loss": 1}', b'{"step": "x"}', b'{"step": true}', b'{"step": 1.5}', b"\xff\xfe", b"{"),
    *(b'{"step": 2, "loss": "x"}', b'{"step": 2, "dice": [1]}', b'{"step": 2, "loss": null}', b"[" * 100_000, b"\0"),
    *(b'{"step": 2, "a": "\\ud800"}', b""),
]


@pytest.mark.parametrize("line", LINES)
def test_lines_that_are_no_entries_are_passed_over(tmp_path, line):
    run = Run.create(tmp_path / "run", run_config())
    run.log({"step": 1, "loss": 0.5})
    with (run.path / "log.jsonl").open("ab") as stream:
        stream.write(line + b"\n")
    run.log({"step": 3, "loss": 0.25})
    assert [entry["step"] for entry in run.history()] == [1, 3]
    run.forget_after(1)
    assert [entry["step"] for entry in run.history()] == [1]


READERS = {
    "a digest": file_digest,
    "JSON": read_json,
    "a split": read_split,
    "a file": regular_file,
    "the configuration": lambda path: Run.read(path.rename(path.with_name("config.yaml")).parent),
}


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder", "nothing", "link to nothing"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("link"):
        path.symlink_to("/dev/zero" if kind == "link to a device" else "/nowhere")
    if name == "the configuration" and not (path.exists() or path.is_symlink()):
        return
    with pytest.raises(BadInputError):
        READERS[name](path)


@pytest.mark.parametrize("name", ["weights.safetensors", "state/last.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_as_weights_or_state_is_refused(tmp_path, name, kind):
    run = Run.create(tmp_path / "run", run_config())
    path = run.path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    net = tiny_training.network()
    with pytest.raises(SamkdError, match="a pipe, a socket or a device"):
        if name.startswith("state"):
            load_state(path, network=net, optimizer=torch.optim.AdamW(net.parameters()))
        else:
            load_weights(net, path)


@pytest.mark.parametrize("name", ["log.jsonl", "state", LOCK])
def test_nothing_is_written_through_a_link(tmp_path, name):
    victim = tmp_path / "victim"
    if name == "state":
        victim.mkdir()
    else:
        victim.write_text("mine")
    folder = tmp_path / "run"
    Run.create(folder, run_config(seed=3, training=Training(steps=2).model_dump(mode="json")))
    if name == "state":
        (folder / "state").rmdir()
    (folder / name).symlink_to(victim)
    with pytest.raises(BadInputError, match="is a link"):
        tiny_training.train(folder, Training(steps=2))
    if name == "log.jsonl":
        with pytest.raises(OutputError):
            Run.read(folder).log({"step": 1})
    assert not list(victim.iterdir()) if name == "state" else victim.read_text() == "mine"


def test_a_lock_that_became_a_link_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(BadInputError), locked_folder(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "mine"
