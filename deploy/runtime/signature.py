"""Whose package is this? An ed25519 signature (RFC 8032) of the manifest, which seals every other file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BadInputError, IntegrityError, MissingExtraError, translated

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE = "manifest.sig"
LENGTH = 129  # 64 bytes in hexadecimal, and the end of the line
_INSTALL = "run: python -m pip install cryptography"


def require_signature(manifest: bytes, signature: bytes | None, *, trust: Path, source: Path) -> None:
    """Refuse a manifest that the owner of the public key in `trust` (PEM) did not sign; nothing is parsed before.

    Raises IntegrityError for a missing, damaged or foreign signature, BadInputError for a file that holds no ed25519
    public key, MissingExtraError without the package `cryptography`.
    """
    with translated("--trust", f"signatures cannot be checked; {_INSTALL}", MissingExtraError):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(trust.read_bytes())
    except OSError as error:
        raise BadInputError(f"{trust}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:
        raise BadInputError(f"{trust}: holds no public key; expected PEM as of openssl pkey -pubout.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadInputError(f"{trust}: holds a key of another kind; expected ed25519.")
    if signature is None:
        raise IntegrityError(
            f"{source}: is not signed; expected the signature of {trust}. Get the package from its maker again."
        )
    if not _signed(key, signature, manifest):
        raise IntegrityError(
            f"{source}: its signature is not that of {trust}, or the package was changed after it was signed. "
            "Do not use it; get it from its maker again."
        )


def require_own_signature(manifest: bytes, signature: bytes, *, signer: object, source: Path) -> None:
    """Refuse a signature that is not that of the key which the manifest itself names: copied badly, not who made it.

    Passes unchecked without the package `cryptography`. Raises IntegrityError.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except Exception:
        return
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(signer)))
    except ValueError as error:
        raise IntegrityError(f"{source}: its manifest names no ed25519 key as its signer ({error}).") from error
    if not _signed(key, signature, manifest):
        raise IntegrityError(f"{source}: its {SIGNATURE} was changed. Copy the package again.")


def _signed(key: Ed25519PublicKey, signature: bytes, manifest: bytes) -> bool:
    try:
        raw = bytes.fromhex(signature.decode("ascii"))
        key.verify(raw, manifest)
    except Exception:  # InvalidSignature, and whatever else keeps it from being verified
        return False
    return raw.hex().encode() + b"\n" == signature
