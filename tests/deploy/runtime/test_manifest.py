"""The manifest as a record: what is written is read back, and what older packages lack is empty."""

import json

import pytest

from samkd.deploy.runtime.integrity import render
from samkd.deploy.runtime.judgement import Gate
from samkd.deploy.runtime.manifest import Manifest
from samkd.errors import BadInputError, IntegrityError


def test_a_manifest_is_written_as_it_was_read(built):
    raw = (built / "manifest.json").read_bytes()
    manifest = Manifest.read(built)
    assert render(manifest.to_json()) == raw
    assert manifest.class_names == {0: "background", 1: "liver", 2: "left kidney"}
    assert manifest.gate == Gate(max_drop=0.005, per_class=True)
    liver = next(drop for drop in manifest.scores if drop.name == "liver")
    assert liver.torch == 1.0 and liver.cases == 3
    assert [result.title for result in manifest.candidates] == ["fp32"]


def test_a_package_from_before_the_gate_was_recorded_is_read(built):
    values = json.loads((built / "manifest.json").read_text())
    for key in ("gate", "intensities"):
        del values[key]
    for row in values["ladder"]:
        del row["prompted"]
    manifest = Manifest.from_json(values, source=built)
    assert manifest.gate == Gate(max_drop=0.005, per_class=None)
    assert manifest.intensities == () and manifest.prompts is None and manifest.candidates[0].prompted is None


def test_what_is_no_manifest_is_refused(built, tmp_path):
    with pytest.raises(BadInputError, match="is no package"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match="is damaged"):
        Manifest.read(tmp_path)
    sound = json.loads((built / "manifest.json").read_text())
    (candidate,) = sound["ladder"]
    wrong = [{**candidate, "per_class": {"liver": 3}}, {**candidate, "prompted": {"kind": "box"}}, "fp32"]
    for values in ([], {}, {**sound, "labels": 3}, *({**sound, "ladder": [each]} for each in wrong)):
        with pytest.raises(IntegrityError, match="does not describe"):
            Manifest.from_json(values, source=tmp_path)
