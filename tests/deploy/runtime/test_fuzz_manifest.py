"""A damaged manifest is refused; one that an attacker made fit its digest neither crashes nor hangs the reader."""

import copy
import json
import random

import pytest
from helpers.fuzzing import COUNT, mutated, read_or_refuse

from samkd.deploy.runtime.integrity import digest, render
from samkd.deploy.runtime.package import Package

pytestmark = pytest.mark.slow

STRANGE = (None, True, -1, 0, 2**70, 1e300, "", "..", "../model.xml", "/etc/passwd", "\0", "a" * 5000, [], {}, [[]])


class Stub:
    """Stands for the engine of the fixture's graph."""

    begin = None
    input_shapes = ((1, 1, 16, 16, 16),)
    output_shape = (1, 3, 16, 16, 16)


def opened(package, monkeypatch):
    """Called, what Package.open gives of the folder; the engine is left out, and must be given the package's model."""

    def engine(target, model, *, name, **_):
        assert name.parent == package and model.is_file()
        return Stub()

    monkeypatch.setattr("samkd.deploy.runtime.package.open_engine", engine)
    return lambda: read_or_refuse(lambda: Package.open(package))


def test_no_changed_byte_of_a_manifest_is_accepted(package, monkeypatch):
    path, rng = package / "manifest.json", random.Random(3)
    whole, read = path.read_bytes(), opened(package, monkeypatch)
    assert read() is not None
    for _ in range(COUNT):
        damaged = mutated(whole, rng)
        path.write_bytes(damaged)
        assert read() is None or damaged == whole


def test_strange_values_under_a_right_digest(package, monkeypatch):
    path, rng = package / "manifest.json", random.Random(4)
    whole, read = json.loads(path.read_bytes()), opened(package, monkeypatch)
    refused = 0
    for _ in range(COUNT):
        manifest = copy.deepcopy(whole)
        place = manifest
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
                break
            place = place[key]
        place[key] = rng.choice(STRANGE)
        path.write_bytes(render({**manifest, "digest": digest(manifest)}))
        refused += read() is None
    assert refused > COUNT / 10
