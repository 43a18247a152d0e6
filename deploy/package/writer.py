"""Writing a package: all of it, or nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...volumes.files import atomic_folder, atomic_path, file_digest, make_folder
from ..runtime.integrity import check_names, digest, render
from ..runtime.manifest import MANIFEST, FileEntry, Manifest
from ..runtime.manifest_rules import check_values
from ..runtime.signature import SIGNATURE
from .bundle_metadata import METADATA, bundle_metadata
from .card import model_card
from .destination import require_replaceable, zip_beside
from .sbom import bill_of_materials
from .signing import Signer
from .zipping import write_runtime, write_zip


@contextmanager
def draft(destination: Path) -> Iterator[Path]:
    """Yield a folder beside `destination` to fill; then it becomes `destination`, and its zip is written beside.

    When the block fails both vanish. A package that is already there is replaced. Raises OutputError when something
    else is, as destination.require_replaceable says, and for any OSError on the way.
    """
    require_replaceable(destination)
    make_folder(destination.parent)
    # The package takes its place first, then its zip: the managers end in that order.
    with atomic_path(zip_beside(destination)) as archive, atomic_folder(destination, replace=True) as folder:
        yield folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_zip(archive, {path.relative_to(folder).as_posix(): path for path in files})


def finish(
    folder: Path,
    manifest: Manifest,
    *,
    libraries: Sequence[str],
    device_names: Mapping[str, str],
    signer: Signer | None = None,
) -> None:
    """Complete a draft that holds its model and sample: papers, runtime, and the manifest that seals all of it.

    `libraries` are what the device installs; their versions stand in the manifest. `device_names` holds their names
    on the device, where those are others. `signer` also signs the manifest. Raises IntegrityError for values
    that whoever opens the package would refuse.
    """
    if signer is not None:
        manifest = replace(manifest, signer=signer.public)
    model = {path.name: file_digest(path) for path in sorted(folder.glob("model.*"))}
    bill = bill_of_materials(manifest.name, samkd=manifest.samkd, model=model, libraries=libraries)
    pins = [f"{device_names.get(name, name)}=={manifest.versions[name]}" for name in libraries]
    (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    (folder / "sbom.cdx.json").write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    (folder / METADATA).parent.mkdir()
    (folder / METADATA).write_text(json.dumps(bundle_metadata(manifest), indent=1) + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    write_runtime(folder / "runtime.pyz")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    check_names(list(names), folder)
    entries = {name: FileEntry(path.stat().st_size, file_digest(path)) for name, path in names.items()}
    manifest = replace(manifest, files=entries)
    check_values(manifest.to_json(), source=folder)
    raw = render(replace(manifest, digest=digest(manifest.to_json())).to_json())
    (folder / MANIFEST).write_bytes(raw)
    if signer is not None:
        (folder / SIGNATURE).write_bytes(signer.signature(raw))
