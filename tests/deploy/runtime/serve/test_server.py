"""The verb `serve` on both command lines: its options, its refusals, and a process of its own."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from helpers.packages import make_scan
from helpers.served import Server, wait

from samkd.cli.app import app
from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.cli import _parser
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.serve import server
from samkd.errors import UsageError
from samkd.volumes.io.nifti import write_scan


def test_both_command_lines_have_the_same_options():
    parameters = typer.main.get_command(app).commands["serve"].params  # pyright: ignore[reportAttributeAccessIssue]
    samkd = {name: one.default for one in parameters if one.param_type_name == "option" for name in one.opts}
    (verbs,) = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    actions = verbs.choices["serve"]._actions  # pyright: ignore
    runtime = {name: action.default for action in actions for name in action.option_strings}
    assert samkd.keys() - {"--help"} == runtime.keys() - {"--help", "-h"}
    assert {name: samkd[name] or None for name in samkd if name != "--help"} == {
        name: runtime[name] or None for name in runtime if name not in ("--help", "-h")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--host 0.0.0.0", "in the clear"),
        ("--http 99999", "expected a port"),
        ("--cert c.pem", "--cert and --key belong together"),
        ("--keep long", "for example 90s"),
        ("--cert c.pem --key k.pem", "no certificate"),
        ("--token-file nowhere", "cannot be read"),
        ("--folder in", "--folder and --out belong together"),
        ("--dicom SAMKD:0", "--dicom and --send belong together"),
        ("--send PACS@host:104", "--dicom and --send belong together"),
        ("--dicom SAMKD --send PACS@host:104", "expected AET:PORT"),
        ("--dicom SAMKD:0 --send PACS", "expected AET@HOST:PORT"),
        ("--dicom SAMKD:0 --send PACS@host:104 --allow A,THIS-TITLE-IS-LONG", "1 to 16 letters"),
        ("--dicom SAMKD:0 --send PACS@host:104 --reserve much", "--reserve 'much': expected"),
        ("--dicom SAMKD:0 --send PACS@host:104 --largest-object 2", "--largest-object '2': expected"),
        ("--folder in --out in/out", "among the scans"),
    ],
)
def test_a_wrong_call_ends_before_anything_is_served(built, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    assert main(["serve", str(built), *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_without_pynetdicom_the_command_that_installs_it_is_told(built, tmp_path, monkeypatch, capsys):
    from samkd.deploy.runtime.serve import dicom_node

    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    monkeypatch.chdir(tmp_path)
    dicom_node.load_pynetdicom.cache_clear()
    assert main(["serve", str(built), "--dicom", "SAMKD:0", "--send", "PACS@host:104"]) == 5
    assert "pip install 'samkd[serve]'" in capsys.readouterr().err


def test_without_starlette_the_command_that_installs_it_is_told(built, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", str(built)]) == 5
    assert "pip install starlette uvicorn python-multipart" in capsys.readouterr().err


def test_a_package_that_segments_what_it_is_shown_is_served_by_the_page_alone(built):
    package = Package.open(built, threads=1)
    required = replace(package, prompts_required=True)
    assert server._by_digest([required], every_door_prompts=True)
    with pytest.raises(UsageError, match="finds nothing without a prompt"):
        server._by_digest([required], every_door_prompts=False)


@pytest.mark.parametrize(
    ("host", "words", "token"), [("127.0.0.1", {}, False), ("0.0.0.0", {"plain_http": True}, True)]
)
def test_a_page_that_others_can_reach_has_a_token(tmp_path, host, words, token):
    page = server._page_options(server.ServeOptions(spool=tmp_path, host=host, **words))
    assert page is not None and page.port == 8080 and (page.token is not None) == token
    assert server._page_options(server.ServeOptions(spool=tmp_path, folder=tmp_path, out=tmp_path)) is None


@pytest.mark.slow
def test_the_packed_runtime_serves_a_folder_until_a_signal_ends_it(built, tmp_path):
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in" / "a.nii.gz", make_scan(3))
    words = ["--folder", "in", "--out", "out", "--quiet", "0.1"]
    server = Server(built, *words, log=tmp_path / "log.txt", cwd=tmp_path)
    assert server.start() == "serving: folder in\n"
    wait(lambda: "delivered" in server.log())
    assert server.stop() == 143
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]
    assert not list(Path(tmp_path / "samkd-spool" / "jobs").rglob("*.nii.gz"))
