"""Signed packages: whose they are is known before anything of them is parsed."""

import json
import sys
import zipfile

import pytest

from samkd.deploy.runtime.__main__ import main
from samkd.deploy.runtime.integrity import digest, render
from samkd.deploy.runtime.package import Package
from samkd.errors import BadInputError, IntegrityError, MissingExtraError
from samkd.volumes.io.nifti import write_scan

pytest.importorskip("cryptography", reason="samkd[sign] is not installed")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def pem(key, path, *, password=None):
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def key(tmp_path):
    return pem(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), tmp_path / "key.pem")


@pytest.fixture
def stranger(tmp_path):
    return pem(Ed25519PrivateKey.from_private_bytes(bytes(32)), tmp_path / "stranger.pem")


@pytest.fixture
def signed(job, levels, key):
    return job(levels, sign=key)


def refused(package, trust, match):
    for place in (package, package.with_name(f"{package.name}.zip")):
        with pytest.raises(IntegrityError, match=match) as error:
            Package.open(place, trust=trust)
        assert error.value.exit_code == 4


def rezip(folder):
    with zipfile.ZipFile(folder.with_name(f"{folder.name}.zip"), "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder).as_posix())


def test_signed_package_opens_for_those_who_trust_its_key_and_for_all_others(signed, key):
    for place in (signed, signed.with_name("student.zip")):
        assert Package.open(place, threads=1, trust=key.with_suffix(".pub")).class_names[1] == "liver"
        assert Package.open(place, threads=1).manifest.signer == signed_by(key)


def signed_by(key):
    public = serialization.load_pem_public_key(key.with_suffix(".pub").read_bytes())
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()  # type: ignore[union-attr]


def test_signing_changes_no_other_file_and_is_the_same_every_time(signed, built, job, levels, key):
    assert (signed / "model.bin").read_bytes() == (built / "model.bin").read_bytes()
    before = (signed / "manifest.sig").read_bytes()
    assert (job(levels, sign=key) / "manifest.sig").read_bytes() == before and len(before) == 129


def test_foreign_signature(signed, stranger):
    refused(signed, stranger.with_suffix(".pub"), "its signature is not that of .*stranger.pub")


def test_unsigned_package_is_refused_to_those_who_trust(package, key):
    refused(package, key.with_suffix(".pub"), "is not signed; expected the signature of")


@pytest.mark.parametrize("trusting", [True, False])
def test_stripped_signature(signed, key, trusting):
    (signed / "manifest.sig").unlink()
    rezip(signed)
    if trusting:
        refused(signed, key.with_suffix(".pub"), "is not signed")
    else:
        refused(signed, None, "lost its signature")


@pytest.mark.parametrize("trusting", [True, False])
@pytest.mark.parametrize("change", ["first", "case", "newline", "longer", "binary"])
def test_changed_signature(signed, key, change, trusting):
    path = signed / "manifest.sig"
    raw = path.read_bytes()
    changed = {
        "first": (b"1" if raw[:1] == b"0" else b"0") + raw[1:],
        "case": raw.upper(),
        "newline": raw[:-1] + b" ",
        "longer": raw + b"0",
        "binary": b"\xff" * 129,
    }[change]
    path.write_bytes(changed)
    rezip(signed)
    refused(signed, key.with_suffix(".pub") if trusting else None, "is not that of|was changed|larger than")


def test_signature_of_another_package(signed, package, key):
    (package / "manifest.sig").write_bytes((signed / "manifest.sig").read_bytes())
    rezip(package)
    refused(package, key.with_suffix(".pub"), "is not that of")
    refused(package, None, "holds a signature that is not its own")


def test_resealed_manifest_passes_for_nobody_who_trusts(signed, key):
    manifest = json.loads((signed / "manifest.json").read_text()) | {"name": "mine now"}
    (signed / "manifest.json").write_bytes(render({**manifest, "digest": digest(manifest)}))
    rezip(signed)
    refused(signed, key.with_suffix(".pub"), "is not that of")
    refused(signed, None, "manifest.sig was changed")


def test_signature_is_checked_before_the_manifest_is_parsed(signed, key, monkeypatch):
    (signed / "manifest.json").write_bytes(b"[" * 100_000)
    monkeypatch.setattr("samkd.deploy.runtime.integrity.json", None)
    monkeypatch.setattr("samkd.deploy.runtime.package.open_engine", None)
    with pytest.raises(IntegrityError, match="is not that of"):
        Package.open(signed, trust=key.with_suffix(".pub"))


def test_keys_that_cannot_be_used(job, levels, tmp_path, signed, key):
    other = pem(ec.generate_private_key(ec.SECP256R1()), tmp_path / "curve.pem")
    locked = pem(Ed25519PrivateKey.generate(), tmp_path / "locked.pem", password=b"secret")
    (tmp_path / "noise.pem").write_bytes(b"no key")
    cases = {other: "another kind", locked: "not encrypted", tmp_path / "noise.pem": "PEM", tmp_path / "no.pem": "read"}
    for path, match in cases.items():
        with pytest.raises(BadInputError, match=match):
            job(levels, sign=path)
    for path, match in {
        other.with_suffix(".pub"): "another kind",
        key: "public key",
        tmp_path / "no.pub": "read",
    }.items():
        with pytest.raises(BadInputError, match=match):
            Package.open(signed, trust=path)


def test_a_signature_that_nobody_checked_is_said_and_one_that_was_is_not(signed, key, scan, tmp_path, capsys):
    write_scan(tmp_path / "scan.nii.gz", scan(3))
    arguments = [str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "mask.nii.gz"), "--package", str(signed)]
    arguments += ["--threads", "1", "--report", str(tmp_path / "report.json")]
    warning = f"warning: {signed} is signed by {signed_by(key)[:16]}, which was not checked; give --trust PUBKEY\n"
    for trust, told in (([], warning), (["--trust", str(key.with_suffix(".pub"))], "")):
        assert main(["predict", *arguments, *trust]) == 0
        assert capsys.readouterr().err == told
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["signed_by"] == signed_by(key) and report["trusted"] is bool(trust)
    Package.open(signed, threads=1)
    assert capsys.readouterr().err == ""


def test_runtime_trusts_and_says_what_is_missing(signed, key, stranger, capsys, monkeypatch):
    assert main(["verify", "--package", str(signed), "--threads", "1", "--trust", str(key.with_suffix(".pub"))]) == 0
    assert main(["verify", "--package", str(signed), "--trust", str(stranger.with_suffix(".pub"))]) == 4
    assert main(["info", "--package", str(signed), "--threads", "1"]) == 0
    assert f"signed by {signed_by(key)} (not checked" in capsys.readouterr().out
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="python -m pip install cryptography"):
        Package.open(signed, trust=key.with_suffix(".pub"))
    assert Package.open(signed, threads=1).class_names[1] == "liver"
