"""A case's name is a file name of a hospital: it is told where the package is made, and does not travel with it."""

import gzip
import zipfile
from dataclasses import replace

import pytest
from helpers.packages import Levels, deploy, make_scan, validation_cases

from samkd.deploy.runtime.manifest import Manifest
from samkd.errors import GateRefusedError
from samkd.volumes.io.nifti import write_scan

NAMES = ("Mueller_Hans_1950", "Meier_Eva_1961", "Huber_Ida_1972")


def planted():
    return [replace(case, name=name) for case, name in zip(validation_cases(), NAMES, strict=True)]


def test_no_case_name_is_anywhere_in_a_package(tmp_path):
    sample = tmp_path / f"{NAMES[0]}.nii.gz"
    write_scan(sample, make_scan(0))
    package = deploy(Levels(), tmp_path, validation=planted(), sample=sample)
    content = [path.read_bytes() for path in package.rglob("*") if path.is_file()]
    content += [gzip.decompress(raw) for raw in content if raw.startswith(b"\x1f\x8b")]
    with zipfile.ZipFile(package.with_name("student.zip")) as packed:
        content += [packed.read(name) for name in packed.namelist()] + [" ".join(packed.namelist()).encode()]
    for part in {part.encode() for name in NAMES for part in (name, *name.split("_")[:2])}:
        assert not [raw for raw in content if part in raw], part
    assert {drop.worst_case for drop in Manifest.read(package).scores if drop.cases} <= {"1", "2", "3"}


def test_a_refusal_names_the_case(tmp_path):
    network = Levels()
    network.head.bias.data[2] = -1000.0  # type: ignore[index]
    with pytest.raises(GateRefusedError, match=f"in case ({'|'.join(NAMES)})"):
        deploy(network, tmp_path, validation=planted())
