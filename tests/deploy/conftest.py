import shutil

import pytest
from helpers.packages import Levels, deploy, make_scan


@pytest.fixture(scope="session")
def levels():
    """A network that segments by intensity alone: its own masks are the truth of every case here."""
    return Levels()


@pytest.fixture
def job(tmp_path):
    return lambda network, **changes: deploy(network, tmp_path, **changes)


@pytest.fixture(scope="session")
def scan():
    return make_scan


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return deploy(Levels(), tmp_path_factory.mktemp("built"))


@pytest.fixture
def package(built, tmp_path):
    """A package folder to damage, with its zip beside it."""
    shutil.copyfile(built.with_name("student.zip"), tmp_path / "student.zip")
    return shutil.copytree(built, tmp_path / "student")
