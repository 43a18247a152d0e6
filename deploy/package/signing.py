"""Signing a package as it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadInputError, MissingExtraError


@dataclass(frozen=True)
class Signer:
    """`public` is the ed25519 public key in hexadecimal, for the manifest; `sign` gives the 64 bytes of a signature."""

    public: str
    sign: Callable[[bytes], bytes]

    @classmethod
    def of(cls, path: Path) -> Signer:
        """From a PEM file with an ed25519 private key, not encrypted (`openssl genpkey -algorithm ed25519`).

        Raises BadInputError for anything else, MissingExtraError without the package `cryptography`.
        """
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as error:
            raise MissingExtraError(f"--sign: {error}; run: python -m pip install 'samkd[sign]'") from error
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadInputError(
                f"{path}: holds no private key that can be used ({error}); expected PEM, not encrypted, "
                "as of openssl genpkey -algorithm ed25519."
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise BadInputError(f"{path}: holds a key of another kind; expected ed25519.")
        return cls(key.public_key().public_bytes_raw().hex(), key.sign)

    def signature(self, manifest: bytes) -> bytes:
        """What manifest.sig holds."""
        return self.sign(manifest).hex().encode() + b"\n"
