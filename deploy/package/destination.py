"""What lies where a package goes: a new package replaces an old one, and nothing else."""

import os
from pathlib import Path

from ...errors import BadInputError, IntegrityError, OutputError
from ...volumes.files import is_hidden
from ..runtime.manifest import Manifest
from ..runtime.private_copy import altered, listed, read_sealed, unnamed


def zip_beside(destination: Path) -> Path:
    """Where the zip of a package folder goes."""
    return destination.with_name(f"{destination.name}.zip")


def require_replaceable(destination: Path) -> None:
    """Refuse a place whose folder or zip is anything but a package, and a package folder with other files in it.

    An empty folder is fine, and hidden files such as .DS_Store may vanish with an old package. Raises OutputError.
    """
    zipped = zip_beside(destination)
    if os.path.lexists(destination) and not _is_empty_folder(destination):
        manifest = _package_at(destination, is_right_kind=destination.is_dir())
        if strangers := [name for name in unnamed(destination, manifest) if not _may_vanish(destination / name)]:
            raise OutputError(
                f"{destination}: holds what is no part of the package there and would be lost: {listed(strangers)}. "
                "Move it away, or name another folder."
            )
        _require_as_packed(destination)
    if os.path.lexists(zipped):
        _package_at(zipped, is_right_kind=zipped.is_file())
        _require_as_packed(zipped)


def _require_as_packed(package: Path) -> None:
    """Refuse a package whose files somebody changed: a note in its card would be lost. Raises OutputError."""
    if changed := altered(package):
        raise OutputError(
            f"{package}: was changed since it was packed ({listed(changed)}), and what was written there would be "
            "lost. Move it away, or name another folder for the package."
        )


def _package_at(path: Path, *, is_right_kind: bool) -> Manifest:
    """The manifest of a package, itself and no link to it. Raises OutputError."""
    try:
        if is_right_kind and not path.is_symlink():
            return read_sealed(path)
    except (BadInputError, IntegrityError):
        pass
    raise OutputError(
        f"{path}: exists and is no package, or a damaged one, so it is not replaced. Move it away, or name another "
        "folder for the package."
    )


def _is_empty_folder(path: Path) -> bool:
    try:
        return not path.is_symlink() and path.is_dir() and not any(path.iterdir())
    except OSError:
        return False


def _may_vanish(path: Path) -> bool:
    return is_hidden(path) and not path.is_dir()
