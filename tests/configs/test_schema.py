"""Configs: valid ones are read with their types, every fault is named, and every key can be looked up."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from samkd.cli.app import app
from samkd.configs.describe import config_groups, config_keys, config_text, json_schema
from samkd.configs.load import config_names, load_config
from samkd.errors import UsageError


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_is_valid_and_named_after_its_file(name):
    assert load_config(name).name == name


def test_overrides_are_typed_and_reach_nested_keys():
    config = load_config("phantom", ["student.training.steps=7", "lambda=0.25", "teacher.plan.patch=[5,64,64]"])
    assert config.student.training.steps == 7
    assert config.lambda_ == 0.25
    assert config.teacher.plan.patch == (5, 64, 64)


def test_all_faults_are_reported_at_once_with_a_suggestion():
    with pytest.raises(UsageError) as caught:
        load_config("phantom", ["student.training.stepz=7", "lambda=2", "teacher.plan.overlap=0.95"])
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "student.training.stepz: unknown key; did you mean 'steps'?" in message
    assert "lambda: " in message and "teacher.plan.overlap: " in message
    assert "3 fault(s)" in message


def test_a_config_may_extend_another(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: phantom\nname: mine\ndeployment: {precision: fp16}\n")
    config, parent = load_config(str(mine)), load_config("phantom")
    assert (config.name, config.deployment.precision, config.deployment.max_drop) == ("mine", "fp16", 0.005)
    assert config.student == parent.student and config.phantom == parent.phantom
    mine.write_text(f"extends: {mine}\nname: mine\n")
    with pytest.raises(UsageError, match="in a circle"):
        load_config(str(mine))
    mine.write_text("extends: nothing\n")
    with pytest.raises(UsageError, match="'nothing' is no config"):
        load_config(str(mine))


@pytest.mark.parametrize("orientation", ["SPP", "XYZ", "LR"])
def test_an_orientation_that_names_an_axis_twice_is_refused(orientation):
    with pytest.raises(UsageError, match="orientation"):
        load_config("phantom", [f"student.plan.orientation={orientation}"])


def test_a_window_upside_down_is_refused():
    with pytest.raises(UsageError, match="must be below"):
        load_config("phantom", ["student.plan.intensity=[{rule: window, low: 5, high: 5}]"])


@pytest.mark.parametrize(("source", "said"), [("no-such", "no config"), ("no-such.yaml", "no such config file")])
def test_an_unknown_config_is_named(source, said):
    with pytest.raises(UsageError, match=said):
        load_config(source)


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([1, 2]))
    with pytest.raises(UsageError, match="expected a mapping"):
        load_config(str(path))


@pytest.mark.parametrize("override", ["student", "=3", "seed.deeper=3", "seed={"])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(UsageError, match="override"):
        load_config("phantom", [override])


def test_every_key_says_what_it_means_in_a_whole_sentence():
    keys = {f"{group.paths[0]}.{key.name}": key for group in config_groups() for key in group.keys}
    assert len(keys) > 90
    sentence = re.compile(r"[A-Z`].*\w{2,}.*\.")
    assert [name for name, key in keys.items() if not sentence.fullmatch(key.meaning) or not key.type] == []


def test_the_keys_are_those_that_a_config_holds():
    def dotted(values: dict, path: str):
        for name, value in values.items():
            yield f"{path}{name}"
            if isinstance(value, dict) and name not in ("options", "classes"):
                yield from dotted(value, f"{path}{name}.")

    known = set(config_keys())
    for name in config_names():
        assert set(dotted(load_config(name).model_dump(mode="json", by_alias=True), "")) <= known
    assert {"extends", "lambda", "student.training.augmentation.flip", "teacher.plan.intensity[].high"} <= known


def test_the_text_names_type_default_and_meaning():
    words = " ".join(config_text().split())
    assert "batch: whole number >= 1; default 2 The number of patches in one batch." in words
    assert "optimizer: adamw | adam | sgd; default adamw The optimiser; `sgd` has a momentum of 0.9." in words
    assert "spacing: a list of 3, each (number or null) or null; default null The spacing in mm along" in words


def test_info_config_prints_the_keys_and_the_json_schema():
    text = CliRunner().invoke(app, ["info", "config"])
    assert text.exit_code == 0 and "student.distillation: " in text.output
    schema = CliRunner().invoke(app, ["info", "config", "--json"])
    assert schema.exit_code == 0 and json.loads(schema.output) == json_schema()
    assert CliRunner().invoke(app, ["info", "nothing"]).exit_code == 2


def test_the_json_schema_lets_a_config_extend_another():
    schema = json_schema()
    assert schema["anyOf"] == [{"required": ["extends"]}, {"required": ["name", "teacher", "student"]}]
    assert "extends" in schema["properties"] and "required" not in schema and schema["additionalProperties"] is False
