"""Is this still the manifest that was written? It seals every other file of the package."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ...errors import BadInputError, IntegrityError
from .manifest import MANIFEST
from .manifest_rules import FORMAT
from .signature import SIGNATURE, require_own_signature, require_signature

MAX_MANIFEST = 1 << 20  # bytes
MAX_PACKAGE = 2 << 30  # bytes, unpacked
MAX_FILES = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def render(manifest: dict[str, Any]) -> bytes:
    """The one way to write a manifest: any other bytes are refused, so that none can change unnoticed."""
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def digest(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest without its own "digest"."""
    return hashlib.sha256(render({key: value for key, value in manifest.items() if key != "digest"})).hexdigest()


def read_manifest(
    raw: bytes, source: Path, *, signature: bytes | None = None, trust: Path | None = None
) -> dict[str, Any]:
    """The values of a manifest whose format, digest and list of files hold, signed by `trust` where that is given.

    Raises BadInputError, IntegrityError, and what signature.require_signature raises.
    """
    if trust is not None:
        require_signature(raw, signature, trust=trust, source=source)
    try:
        manifest = json.loads(raw)
        if isinstance(manifest, dict) and manifest["format"] != FORMAT:
            raise BadInputError(
                f"{source}: is a package of format {manifest['format']}; this runtime reads {FORMAT}. "
                "Use the runtime.pyz that came with it."
            )
        intact = render(manifest) == raw and digest(manifest) == manifest["digest"]
        names = list(manifest["files"])
        sizes = [entry["bytes"] for entry in manifest["files"].values()]
        checksums = [entry["sha256"] for entry in manifest["files"].values()]
        sound = all(type(size) is int and size >= 0 for size in sizes) and all(type(s) is str for s in checksums)
    except BadInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{source}: its {MANIFEST} is damaged ({error}). Copy the package again.") from error
    if not (intact and sound):
        raise IntegrityError(f"{source}: its {MANIFEST} was changed after it was written. Copy the package again.")
    if ("signer" in manifest) != (signature is not None):
        which = "lost its signature" if signature is None else "holds a signature that is not its own"
        raise IntegrityError(f"{source}: {which} ({SIGNATURE}). Copy the package again.")
    if signature is not None:
        require_own_signature(raw, signature, signer=manifest["signer"], source=source)
    check_names(names, source)
    if len(names) > MAX_FILES or sum(sizes) > MAX_PACKAGE:
        raise IntegrityError(
            f"{source}: announces {len(names)} files of {sum(sizes)} bytes; a package holds at most {MAX_FILES} files "
            f"and {MAX_PACKAGE} bytes."
        )
    return manifest


def check_names(names: list[str], source: Path) -> None:
    """Refuse names that leave the package or mean different things on different systems. Raises IntegrityError."""
    for name in names:
        if not all(_NAME.fullmatch(part) for part in name.split("/")):
            raise IntegrityError(f"{source}: holds the file name {name!r}; expected plain relative names.")
    if len({name.casefold() for name in names}) != len(names):
        raise IntegrityError(f"{source}: holds a file name twice, or two that differ only in upper and lower case.")
