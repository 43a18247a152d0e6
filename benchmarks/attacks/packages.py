"""Hostile packages: damaged, resealed with other values, as zips that lie, and with code that must not run."""

import json
import os
import random
import shutil
import struct
import zipfile
from pathlib import Path

from .attempts import Tally, copied, judge, runtime, samkd
from .damage import flipped, strange
from .material import Material


def damaged(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """One bit of a file flipped, a file missing, cut, or replaced by a link, a pipe or a folder: always refused."""
    tally, rng = Tally("package: damaged"), random.Random(f"{seed} damaged")
    names = [path.relative_to(material.package) for path in material.package.rglob("*") if path.is_file()]
    for number in range(count):
        package = copied(material.package, work / "package")
        path, kind = package / rng.choice(names), rng.choice(("flip", "flip", "flip", "cut", "gone", "pipe", "folder"))
        data = path.read_bytes()
        path.unlink()
        if kind == "flip":
            path.write_bytes(flipped(data, rng))
        elif kind == "cut":
            path.write_bytes(data[: rng.randrange(len(data))])
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        for verb in ("verify", "predict"):
            judge(tally, _run(verb, package, material, number), f"{kind} {path.name}, {verb}", must_refuse=True)
    return tally


def resealed(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """A manifest with a strange value, sealed anew as an attacker would: refused, or harmless; never a crash."""
    from samkd.deploy.runtime.integrity import digest, render

    tally, rng = Tally("package: resealed"), random.Random(f"{seed} resealed")
    for number in range(count):
        package = copied(material.package, work / "package")
        path = package / "manifest.json"
        manifest, what = strange(json.loads(path.read_bytes()), rng)
        try:
            path.write_bytes(render({**manifest, "digest": digest(manifest)}))
        except (ValueError, UnicodeError):  # not a number, or half a character: no JSON can be made of it
            continue
        for verb in ("verify", "predict", "info"):
            judge(tally, _run(verb, package, material, number), f"{what}, {verb}")
    return tally


def zipped(material: Material, work: Path, *, count: int, seed: int) -> Tally:
    """Zips that lie: damaged bytes, names that lead outside, links, sizes that are not true."""
    tally, rng = Tally("package: zip"), random.Random(f"{seed} zip")
    sound = Path(shutil.make_archive(str(work / "sound"), "zip", material.package.parent, material.package.name))
    for number in range(count):
        archive = work / "package.zip"
        archive.write_bytes(flipped(sound.read_bytes(), rng))
        judge(tally, _run("verify", archive, material, number), f"flip {number}")
    for name in ("../outside.txt", "/tmp/samkd-outside.txt", "a/../../outside.txt", "C:\\outside.txt"):
        archive = copied(sound, work / "package.zip")
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr(name, b"outside")
        judge(tally, _run("verify", archive, material, 0), f"name {name}", must_refuse=True)
        if (work.parent / "outside.txt").exists() or Path("/tmp/samkd-outside.txt").exists():
            tally.add("silent", f"{name}: was written")
    archive = work / "package.zip"
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened,
        opened.open("package/model.bin", "w", force_zip64=True) as file,
    ):
        for _ in range(3 << 10):
            file.write(bytes(1 << 20))  # 3 GB of zeros in 3 MB
    judge(tally, _run("verify", archive, material, 0), "bomb", must_refuse=True)
    raw = bytearray(sound.read_bytes())
    at = raw.rfind(b"PK\x01\x02")
    struct.pack_into("<I", raw, at + 24, 1 << 31)
    archive.write_bytes(raw)
    judge(tally, _run("verify", archive, material, 0), "a size of 2 GB that is none", must_refuse=True)
    return tally


def executing(material: Material, work: Path) -> Tally:
    """A package whose own runtime, and whose neighbours by the names of modules, are programs: none may run."""
    from samkd.deploy.runtime.integrity import digest, render
    from samkd.volumes.files import file_digest

    tally = Tally("package: code in it")
    package = copied(material.package, work / "package")
    trap = work / "trap"
    program = f"import pathlib; pathlib.Path({str(trap)!r}).write_text('ran')\n"
    archive = package / "runtime.pyz"
    archive.unlink()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("__main__.py", program)
    for name in ("numpy.py", "sitecustomize.py", "nibabel.py", "openvino.py"):
        (package / name).write_text(program)
    manifest = json.loads((package / "manifest.json").read_bytes())
    manifest["files"]["runtime.pyz"] = {"bytes": archive.stat().st_size, "sha256": file_digest(archive)}
    (package / "manifest.json").write_bytes(render({**manifest, "digest": digest(manifest)}))
    verbs = {
        "verify": ("verify", package),
        "predict": ("predict", package, "-i", _scan(material), "-o", work / "mask.nii.gz"),
        "evaluate": ("evaluate", package, "--data", material.data),
        "report": ("report", package, "--data", material.data, "--out", work / "report.html"),
        "bench": ("bench", "packages", package, "--data", material.data),
    }
    for name, arguments in verbs.items():
        judge(tally, samkd(*arguments, seconds=120), name)
        if trap.exists():
            tally.add("silent", f"{name}: the package's own program ran")
            trap.unlink()
    return tally


def _scan(material: Material) -> Path:
    return next(path for path in sorted(material.data.rglob("*.nii.gz")) if "label" not in str(path.parent.name))


def _run(verb: str, package: Path, material: Material, number: int):
    """One of the verbs, by one of the two doors in turn."""
    mask = package.parent / "mask.nii.gz"
    if verb == "predict":
        if number % 2:
            return samkd("predict", package, "-i", _scan(material), "-o", mask, "--threads", 1)
        return runtime("predict", "--package", package, _scan(material), "-o", mask, "--threads", 1)
    if verb == "verify" and number % 2:
        return samkd("verify", package)
    return runtime(verb, "--package", package)
