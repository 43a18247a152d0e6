"""samkd predict: the masks of scans, from a package or a run."""

from pathlib import Path

from ..errors import UsageError, about
from ..volumes.files import make_folder
from ..volumes.io.scans import mask_paths, read_source, sources, write_mask
from ..volumes.prompt_parsing import Request
from .models import load_model


def predict(
    model: Path,
    scan: Path,
    out: Path,
    *,
    prompts: Request | None = None,
    base: Path | None = None,
    seg_type: str = "binary",
    trust: Path | None = None,
) -> list[Path]:
    """Write the masks of one scan (NIfTI, picture), or of every scan in a folder (videos and DICOM series too), named
    like their scans. One DICOM series gets a DICOM-SEG of that type where `out` is named *.dcm.

    Raises BadInputError for a scan that cannot be used; a folder is refused before anything is written when no scan is
    in it. UsageError for prompts with several scans, or with a network that takes none. `base` and `trust` as in
    models.load_model.
    """
    sources(scan)
    loaded = load_model(model, base=base, trust=trust)
    scans = sources(scan, channels=loaded.channels)
    targets = mask_paths(scans, out, seg_type=seg_type)
    if prompts is not None and len(scans) > 1:
        raise UsageError(f"{scan}: {len(scans)} scans, but prompts belong to one; give them with that scan")
    if targets != [out]:
        make_folder(out)
    asked = None
    if prompts is not None:
        asked = prompts.accepted(loaded.path, labels=loaded.labels, takes=loaded.takes)
    for source, target in zip(scans, targets, strict=True):
        with about(source.place):
            volume = read_source(source, channels=loaded.channels)
            labels = loaded.segment(volume, prompts=asked)
        write_mask(target, labels, volume.geometry, source=source, names=loaded.labels, seg_type=seg_type)
    return targets
