"""A new package takes the place of an old one, and of nothing else."""

import os
import zipfile

import pytest
from helpers.packages import reseal

from samkd.deploy.package.destination import require_replaceable
from samkd.deploy.package.writer import draft
from samkd.errors import OutputError, SamkdError
from samkd.workflows import deploy as workflow


def everything(folder):
    """Every name below a folder, with the bytes of a file and the target of a link."""
    content = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            content[name] = path.readlink()
        else:
            content[name] = path.read_bytes() if path.is_file() else None
    return content


def refused(destination, match):
    """The draft of a package is refused before it begins, and nothing beside or in the destination changes."""
    before = everything(destination.parent)
    with pytest.raises(OutputError, match=match) as error, draft(destination):
        pytest.fail("began to work")
    assert error.value.exit_code == 3 and everything(destination.parent) == before
    return str(error.value)


def a_zip_of_notes(path, package):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("notes.txt", "mine")


def a_zip_with_another_manifest(path, package):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("manifest.json", '{"name": "an extension", "manifest_version": 3}')


def a_cut_zip(path, package):
    path.write_bytes(package.with_name("student.zip").read_bytes()[:-100])


STRANGERS = {
    "zip of notes": a_zip_of_notes,
    "zip with another manifest": a_zip_with_another_manifest,
    "cut zip": a_cut_zip,
    "text": lambda path, package: path.write_text("no zip"),
    "empty file": lambda path, package: path.touch(),
    "link to a package's zip": lambda path, package: path.symlink_to(package.with_name("student.zip")),
    "link to nowhere": lambda path, package: path.symlink_to("nowhere"),
    "empty folder": lambda path, package: path.mkdir(),
    "package folder": lambda path, package: package.rename(path),
    "pipe": lambda path, package: os.mkfifo(path),
}


@pytest.mark.parametrize("lay", STRANGERS.values(), ids=STRANGERS)
def test_what_is_no_zip_of_a_package_is_not_replaced(package, tmp_path, lay):
    (tmp_path / "packages").mkdir()
    lay(tmp_path / "packages/new.zip", package)
    assert "new.zip: exists and is no package" in refused(tmp_path / "packages/new", "Move it away, or name another")


@pytest.mark.parametrize("kind", ["file", "folder", "link to a package", "link to an empty folder", "damaged package"])
def test_what_is_no_package_folder_is_not_replaced(package, tmp_path, kind):
    destination = tmp_path / "packages/new"
    destination.parent.mkdir()
    (tmp_path / "empty").mkdir()
    if kind == "file":
        destination.write_text("mine")
    elif kind == "folder":
        destination.mkdir()
        (destination / "thesis.txt").write_text("mine")
    elif kind == "damaged package":
        package.rename(destination)
        (destination / "manifest.json").write_text("{}")
    else:
        destination.symlink_to(package if kind == "link to a package" else tmp_path / "empty")
    refused(destination, "new: exists and is no package")


def test_files_in_a_package_folder_that_are_not_its_own_are_named(package):
    for name in ("notes.txt", "sample/mask.nii.gz"):
        (package / name).write_text("mine")
    (package / "results").mkdir()
    refused(package, r"would be lost: notes\.txt, results, sample/mask\.nii\.gz\. Move it away")
    for number in range(4):
        (package / f"a{number}").write_text("mine")
    refused(package, r"would be lost: a0, a1, a2, a3, notes\.txt and 2 more\. Move")


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "runtime.pyz"])
@pytest.mark.parametrize("how", ["written on", "removed"])
def test_a_package_with_a_file_that_somebody_changed_is_not_replaced(package, name, how):
    if how == "removed":
        (package / name).unlink()
    else:
        with (package / name).open("ab") as file:
            file.write(b"checked on our own scans: the spleen is too large")
    refused(package, rf"was changed since it was packed \({name}\)")


def test_a_zip_with_a_file_that_somebody_changed_is_not_replaced(package):
    archive = package.with_name("student.zip")
    with zipfile.ZipFile(archive) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in content.items():
            packed.writestr(name, data + b"mine" if name == "runtime.pyz" else data)
    refused(package, r"student\.zip: was changed since it was packed \(runtime\.pyz\)")


def test_a_hidden_folder_in_a_package_is_not_replaced(package):
    (package / ".git").mkdir()
    refused(package, r"would be lost: \.git\.")


def test_an_intact_package_an_empty_folder_and_nothing_at_all_are_replaceable(package, tmp_path):
    (package / ".DS_Store").write_bytes(b"\0")
    (package / "sample/Thumbs.db").write_bytes(b"\0")
    (tmp_path / "empty").mkdir()
    for destination in (package, tmp_path / "empty", tmp_path / "nowhere/new"):
        require_replaceable(destination)
    package.with_name("student.zip").unlink()
    require_replaceable(package)


def test_a_package_of_other_bytes_is_replaced_and_only_then(package):
    reseal(package, name="old")
    with draft(package) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in package.iterdir()] == ["new.txt"]
    with zipfile.ZipFile(package.with_name("student.zip")) as packed:
        assert packed.namelist() == ["new.txt"]


def test_the_verb_refuses_before_it_reads_a_scan(package):
    (package / "notes.txt").write_text("mine")
    with pytest.raises(SamkdError, match=r"notes\.txt"):
        workflow._refuse_early("openvino", "fp32", None, package)
