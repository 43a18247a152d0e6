import json
import os
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest

from samkd.deploy.runtime.integrity import digest, render
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.private_copy import copy_verified, unnamed
from samkd.errors import BadInputError, IntegrityError

NAMES = [
    *("MODEL_CARD.md", "manifest.json", "model.bin", "model.xml", "requirements.txt", "runtime.pyz", "sbom.cdx.json"),
    *("configs/metadata.json", "sample/expected.nii.gz", "sample/scan.nii.gz"),
]


def verify(package):
    """The manifest of a package that is sound."""
    with tempfile.TemporaryDirectory() as folder:
        return copy_verified(package, Path(folder))


def reseal(folder, **changes):
    """The manifest with changes, written as an attacker would who knows the digest."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_bytes(render({**manifest, "digest": digest(manifest)}))


def test_intact_package_verifies(package):
    assert set(verify(package).files) == set(NAMES) - {"manifest.json"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_refused(package, name, where, monkeypatch):
    path = package / name
    raw = bytearray(path.read_bytes())
    raw[{"first": 0, "middle": len(raw) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(raw)
    # Before anything is opened: neither the engine nor a reader of scans is reached.
    monkeypatch.setattr("samkd.deploy.runtime.package.open_engine", None)
    with pytest.raises(IntegrityError) as refused:
        Package.open(package)
    assert refused.value.exit_code == 4 and "Copy the package again" in str(refused.value)


def test_truncated_file_is_refused(package):
    path = package / "model.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model\.bin"):
        verify(package)


def test_files_that_the_manifest_does_not_name_are_left_alone(package):
    (package / "sample/more.txt").write_text("x")
    (package / "empty").mkdir()
    (package / "link").symlink_to("/dev/zero")
    (package / "a\x1b[2J").write_text("")
    manifest = verify(package)
    assert unnamed(package, manifest) == ["'a\\x1b[2J'", "empty", "link", "sample/more.txt"]
    assert unnamed(package.with_name("student.zip"), manifest) == []


def test_missing_file_is_refused(package):
    (package / "model.bin").unlink()
    with pytest.raises(IntegrityError, match=r"model\.bin is missing"):
        verify(package)


@pytest.mark.parametrize("name", ["model.bin", "manifest.json", "sample"])
def test_link_is_refused_even_to_the_right_content(package, tmp_path, name):
    (package / name).rename(tmp_path / "elsewhere")
    (package / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="no plain file"):
        verify(package)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_refused_without_waiting_for_it(package):
    (package / "manifest.json").unlink()
    os.mkfifo(package / "manifest.json")
    with pytest.raises(IntegrityError, match="no plain file"):
        verify(package)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../b", "a\\b", "C:evil", "a//b", "", ".hidden", "a\0b"]
)
def test_manifest_with_a_name_that_leaves_the_package_is_refused(package, name):
    files = json.loads((package / "manifest.json").read_text())["files"]
    reseal(package, files={**files, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(IntegrityError, match="plain relative names"):
        verify(package)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"model.bin": 3}},
        {"files": {"model.bin": {"bytes": "3", "sha256": "0"}}},
        {"files": {"model.bin": {"bytes": -1, "sha256": "0"}}},
        {"files": {"model.bin": {"bytes": 1 << 60, "sha256": "0"}}},
    ],
)
def test_senseless_list_of_files_is_refused(package, changes):
    reseal(package, **changes)
    with pytest.raises(IntegrityError):
        verify(package)


@pytest.mark.parametrize("changes", [{"plan": {}}, {"labels": []}, {"in_channels": None}, {"plan": {"patch": "x"}}])
def test_manifest_that_describes_no_package_is_refused(package, changes):
    reseal(package, **changes)
    with pytest.raises(IntegrityError, match="does not describe"):
        Package.open(package)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null", b"[" * 100000, b"\xff\xfe", b" " * (2 << 20)])
def test_manifest_that_is_none_is_refused(package, raw):
    (package / "manifest.json").write_bytes(raw)
    with pytest.raises(IntegrityError):
        verify(package)


def test_format_of_the_future_is_named(package):
    reseal(package, format=2)
    with pytest.raises(BadInputError, match=r"format 2; this runtime reads 1"):
        verify(package)


def test_folder_without_a_package_is_bad_input(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BadInputError, match="no package"):
            Package.open(path)


def test_zip_is_used_as_it_is_and_leaves_nothing_behind(package, tmp_path, monkeypatch, scan):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    opened = Package.open(package.with_name("student.zip"), threads=1)
    mask = opened.segment(scan(3))
    assert (mask == Package.open(package, threads=1).segment(scan(3))).all() and mask.any()
    del opened
    assert list(scratch.iterdir()) == []


def entry(name, **fields):
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def hostile(kind, source, target):
    """The package's own zip with one thing wrong."""
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bad:
        content = {name: good.read(name) for name in good.namelist()}
        if kind == "bomb":
            content["model.bin"] = bytes(300 << 20)
        elif kind == "manifest bomb":
            content["manifest.json"] = b" " * (300 << 20)
        elif kind == "missing":
            del content["model.bin"]
        elif kind == "link":
            del content["model.bin"]
            bad.writestr(entry("model.bin", external_attr=(stat.S_IFLNK | 0o777) << 16), "/etc/passwd")
        for name, raw in content.items():
            bad.writestr(entry(name, compress_type=zipfile.ZIP_DEFLATED), raw)
        extra = {
            "parent": "../outside.txt",
            "deep parent": "sample/../../outside.txt",
            "absolute": "/tmp/outside.txt",
            "drive": "C:outside.txt",
            "backslash": "..\\outside.txt",
            "extra": "more.txt",
            "case": "MODEL.BIN",
            "folder": "empty/",
            "duplicate": "model.bin",
        }
        if kind in extra:
            bad.writestr(entry(extra[kind]), b"x")
        if kind == "many":
            for index in range(200):
                bad.writestr(entry(f"more{index}"), b"")


KINDS = [
    *("parent", "deep parent", "absolute", "drive", "backslash", "extra", "case", "folder", "duplicate"),
    *("link", "missing", "bomb", "manifest bomb", "many"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_zip_is_refused_and_writes_nothing_outside(package, tmp_path, kind):
    bad, inside = tmp_path / "bad.zip", tmp_path / "a/inside"
    inside.mkdir(parents=True)
    hostile(kind, package.with_name("student.zip"), bad)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside)}
    with pytest.raises(IntegrityError):
        copy_verified(bad, inside)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside)} == before
    assert sum(path.stat().st_size for path in inside.rglob("*")) < 1 << 20
    with pytest.raises(IntegrityError):
        Package.open(bad)


def test_encrypted_and_damaged_zips_are_refused(package, tmp_path):
    good = package.with_name("student.zip").read_bytes()
    central = good.rindex(b"PK\x01\x02")
    flagged = bytearray(good)
    flagged[central + 8] |= 1
    flipped = bytearray(good)
    flipped[200] ^= 0xFF
    for name, raw in {"flag": flagged, "flipped": flipped, "method": _method(good, 99)}.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(raw)
        with pytest.raises(IntegrityError):
            Package.open(path)


def _method(raw, number):
    changed = bytearray(raw)
    changed[raw.rindex(b"PK\x01\x02") + 10] = number
    return changed


def test_file_that_is_no_zip_is_bad_input(package):
    with pytest.raises(BadInputError, match="no package"):
        Package.open(package / "requirements.txt")


def test_cut_off_zip_is_refused(package, tmp_path):
    path = tmp_path / "cut.zip"
    path.write_bytes(package.with_name("student.zip").read_bytes()[:-500])
    with pytest.raises((BadInputError, IntegrityError)):
        Package.open(path)
