"""Values that a package cannot have, under sums that hold, end every verb before work starts: exit 4 and one line."""

import contextlib
import gzip
import json
import time

import numpy as np
import pytest
from helpers.command_line import Outcome, run_cli
from helpers.packages import deploy, make_scan, reseal

from samkd.deploy.export.registry import TARGETS, target_named
from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.manifest import Manifest
from samkd.deploy.runtime.manifest_rules import INFERENCE
from samkd.errors import IntegrityError
from samkd.volumes import Plan
from samkd.volumes.io.nifti import write_scan

BOMB = 1 << 30  # voxels
# (what is changed, its new value, what the line must name); None for the value takes the key away.
GONE = object()
MUTATIONS = [
    ("format", True, "format"),
    ("format", 1.0, "format"),
    ("samkd", GONE, "samkd"),
    ("name", GONE, "name"),
    ("name", "\x1b[2Jpwned", "name"),
    ("name", "a" * 500_000, "name"),
    ("target", "cuda", "target"),
    ("target", "tensorrt\n", "target"),
    ("model", "../model.xml", "model"),
    ("model", "model.bin", "model"),
    ("target", "onnx", "model"),
    ("model", "nowhere.xml", "files.nowhere.xml"),
    ("in_channels", 0, "in_channels"),
    ("in_channels", True, "in_channels"),
    ("in_channels", 10**30, "in_channels"),
    ("in_channels", 2, "in_channels"),
    ("precision", GONE, "precision"),
    ("precision", "bf16", "inference_precision"),
    ("precision", "int4", "precision"),
    ("inference_precision", "dynamic", "inference_precision"),
    ("inference_precision", "bf16", "inference_precision"),
    ("inference_precision", GONE, "inference_precision"),
    ("plan", [], "plan"),
    ("plan.patch", [10**6] * 3, "plan.patch"),
    ("plan.patch", [4096] * 3, "plan.patch"),
    ("plan.patch", [32, 16, 16], "plan.patch"),
    ("plan.patch", [1e308] * 3, "plan.patch"),
    ("plan.patch", [16, 16], "plan.patch"),
    ("plan.patch", GONE, "plan.patch"),
    ("plan.spacing", [1e-9] * 3, "plan.spacing"),
    ("plan.spacing", [0.01] * 3, "plan.spacing"),
    ("plan.spacing", [1e300] * 3, "plan.spacing"),
    ("plan.spacing", [900.0] * 3, "plan.spacing"),
    ("plan.spacing", "fine", "plan.spacing"),
    ("plan.size", [10**9] * 3, "plan.size"),
    ("plan.size", [4096] * 3, "plan.size"),
    ("plan.long_side", 10**6, "plan.long_side"),
    ("plan.long_side", 4000, "plan.long_side"),
    ("plan.overlap", 0.9999999, "plan.overlap"),
    ("plan.overlap", -1, "plan.overlap"),
    ("plan.orientation", "SPP", "plan.orientation"),
    ("plan.more", 1, "plan"),
    ("plan.intensity", [], "plan.intensity"),
    ("plan.intensity", [{"rule": "percentile", "low": 1, "high": 500}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "percentile", "low": 99.9}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "window", "low": 5, "high": 5}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "window", "low": 5}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "clip", "low": -1e300, "high": 5}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "shift_scale", "subtract": 0, "divide": 0}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "zscore", "nonzero": 1}], "plan.intensity.0"),
    ("plan.intensity", [{"rule": "exec"}], "plan.intensity.0"),
    ("plan_digest", "0" * 64, "plan_digest"),
    ("labels", {}, "labels"),
    ("labels.2", GONE, "classes"),
    ("labels.3", {"name": "more", "colour": [0, 0, 0]}, "classes"),
    ("labels.0", GONE, "labels"),
    ("labels.01", {"name": "again", "colour": [0, 0, 0]}, "labels"),
    ("labels.7", {"name": "far", "colour": [0, 0, 0]}, "labels"),
    ("labels.-1", {"name": "below", "colour": [0, 0, 0]}, "labels"),
    ("labels.1000000000000", {"name": "huge", "colour": [0, 0, 0]}, "labels"),
    ("labels.1.name", "\x1b]0;pwned\x07", "labels.1.name"),
    ("labels.1.name", "left kidney", "labels"),
    ("labels.1.name", "", "labels.1.name"),
    ("labels.1.name", "a" * 500_000, "labels.1.name"),
    ("labels.1.colour", [0, 0, 256], "labels.1.colour"),
    ("classes", 2, "classes"),
    ("prompts", {}, "prompts.kinds"),
    ("prompts", {"kinds": ["scribble"], "decoder": "model.xml", "points": 3}, "prompts.kinds"),
    ("prompts", {"kinds": ["point"], "decoder": "model.xml", "points": 10**9}, "prompts.points"),
    ("prompts", {"kinds": ["point"], "decoder": "model.xml", "points": 3}, "prompts.decoder"),
    ("prompts", {"kinds": ["point"], "decoder": "model.decoder.xml", "points": 3}, "files.model.decoder.xml"),
    ("intensities", "none", "intensities"),
    ("intensities", [1, 2, 3], "intensities.0"),
    ("intensities", [None], "intensities.0"),
    ("intensities", [{"percentiles": [0.0] * 9}], "intensities.0.limit"),
    ("intensities", [{"percentiles": [0, 1, 2], "limit": 1}], "intensities.0.percentiles"),
    ("intensities", [{"percentiles": [0] * 9, "limit": 1}] * 2, "intensities"),
    ("provenance.run", "../evil", "provenance.run"),
    ("provenance.run", "/etc", "provenance.run"),
    ("provenance.run", 3, "provenance.run"),
    ("provenance.recipe", "\x1b[2J", "provenance.recipe"),
    ("description.channels", ["CT", "MR"], "description.channels"),
    ("description.channels", ["\x07"], "description.channels.0"),
    ("versions", {"numpy": "\x1b"}, "versions.numpy"),
    ("ladder", 3, "ladder"),
    ("ladder", [3], "ladder.0"),
    ("gate", {"max_drop": "x", "per_class": True}, "gate.max_drop"),
    ("scores", GONE, "scores"),
    ("scores", {}, "scores.max_drop"),
    ("scores.per_class.liver.torch", None, "scores.per_class.liver"),
    ("scores.per_class.liver.cases", 1e9, "scores.per_class.liver.cases"),
    ("scores.per_class.lung", {"cases": 0, "torch": None, "package": None, "drop": None}, "scores.per_class.lung"),
]
VERBS = {
    "samkd verify": "{package}",
    "samkd predict": "{package} -i {scan} -o {mask}",
    "samkd evaluate": "{package} --data {data}",
    "samkd report": "{package} --runs {data}",
    "samkd bench": "{package} --shape 20x24x28",
    "runtime verify": "",
    "runtime predict": "{scan} -o {mask} --report {mask}.json",
    "runtime prompt": "{scan} -o {mask}",
    "runtime info": "",
}


def changed(folder, place, value):
    """The manifest's values with one of them another; the plan's digest is made right unless it is what is changed."""
    values = json.loads((folder / "manifest.json").read_text())
    *path, last = place.split(".")
    parent = values
    for key in path:
        parent = parent[key]
    if value is GONE:
        del parent[last]
    else:
        parent[last] = value
    if place.startswith("plan."):
        with contextlib.suppress(ValueError, OverflowError):
            values["plan_digest"] = Plan.from_dict(values["plan"]).digest()
    reseal_all(folder, values)


def reseal_all(folder, values):
    """Write these values and no others, with a digest that fits."""
    (folder / "manifest.json").write_text(json.dumps({"files": values["files"]}))
    reseal(folder, **{key: value for key, value in values.items() if key != "digest"})


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    (folder / "data").mkdir()
    write_scan(folder / "scan.nii.gz", make_scan(3))
    return folder


def run(verb, package, scan, tmp_path, capsys) -> Outcome:
    words = VERBS[verb].format(package=package, scan=scan / "scan.nii.gz", mask=tmp_path / "m.nii", data=scan / "data")
    program, name = verb.split()
    if program == "samkd":
        return run_cli(name, *words.split(), in_process=True)
    code = main([name, *words.split(), "--package", str(package)])
    told = capsys.readouterr()
    return Outcome(code, told.out, told.err)


def refused_by_all(package, scan, tmp_path, capsys, named, verbs=tuple(VERBS)):
    for verb in verbs:
        started = time.perf_counter()
        done = run(verb, package, scan, tmp_path, capsys)
        errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
        assert done.exit_code == 4 and len(errors) == 1, (verb, done)
        assert errors[0].startswith("error: ") and named in errors[0] and len(errors[0]) < 700, (verb, errors)
        assert errors[0].isprintable() and "Traceback" not in done.output
        assert not (tmp_path / "m.nii").exists() and time.perf_counter() - started < 20
    return errors[0]


@pytest.mark.parametrize(
    ("place", "value", "named"), MUTATIONS, ids=[f"{number}-{place}" for number, (place, *_) in enumerate(MUTATIONS)]
)
def test_every_verb_refuses_what_no_package_has(package, scan, tmp_path, capsys, place, value, named):
    changed(package, place, value)
    line = refused_by_all(package, scan, tmp_path, capsys, named)
    assert "expected" in line
    refused_by_all(package.with_name("student.zip"), scan, tmp_path, capsys, named, ("samkd verify", "runtime info"))


def test_a_list_and_a_number_are_no_manifest(package):
    for values in ([], 3, None, "x", {}):
        with pytest.raises(IntegrityError, match="does not describe a package"):
            Manifest.from_json(values, source=package)


def bomb(path, voxels):
    """A NIfTI file of a few bytes that announces so many voxels."""
    header = gzip.decompress(path.read_bytes())[:352]
    dims = np.array([3, 1024, 1024, voxels >> 20, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(gzip.compress(header[:40] + dims + header[56:], mtime=0))


@pytest.mark.parametrize("names", [["scan"], ["scan", "expected"], ["expected"]])
def test_a_sample_that_unpacks_without_end(package, scan, tmp_path, capsys, names):
    for name in names:
        bomb(package / f"sample/{name}.nii.gz", BOMB)
    reseal(package)
    refused_by_all(package, scan, tmp_path, capsys, "sample")


@pytest.mark.parametrize("raw", [b"", b"no scan", gzip.compress(b"no scan", mtime=0)])
def test_a_sample_that_is_no_scan(package, scan, tmp_path, capsys, raw):
    (package / "sample/scan.nii.gz").write_bytes(raw)
    reseal(package)
    refused_by_all(package, scan, tmp_path, capsys, "sample/scan.nii.gz")


@pytest.mark.parametrize("raw", [b"", b"<net", b"<net/>", b"<!DOCTYPE x [<!ENTITY a '&a;'>]><net>&a;</net>"])
def test_a_model_that_is_none(package, scan, tmp_path, capsys, raw):
    (package / "model.xml").write_bytes(raw)
    reseal(package)
    refused_by_all(package, scan, tmp_path, capsys, "model.xml")


def test_a_graph_that_asks_for_more_memory_than_there_is(levels, tmp_path_factory, scan, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    package = deploy(levels, tmp_path_factory.mktemp("onnx"), target="onnx")
    model = onnx.load(package / "model.onnx")
    graph, make = model.graph, onnx.helper.make_node
    (image,) = graph.input
    last = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before" if name == last else name for name in node.output]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([64, 1 << 30], np.int64), "size"))
    graph.node.extend(
        [
            make("ReduceMax", [image.name], ["largest"], keepdims=0),
            make("Expand", ["largest", "size"], ["huge"]),
            make("ReduceMin", ["huge"], ["least"], keepdims=0),
            make("Sub", ["least", "least"], ["nothing"]),
            make("Add", ["before", "nothing"], [last]),
        ]
    )
    onnx.save(model, package / "model.onnx")
    reseal(package)
    verbs = ("samkd verify", "samkd predict", "samkd bench", "runtime verify", "runtime predict")
    refused_by_all(package, scan, tmp_path, capsys, "model.onnx", verbs)


def test_the_precisions_are_those_of_the_targets():
    assert {name: {str(p): each for p, each in target_named(name).inference.items()} for name in TARGETS} == INFERENCE
