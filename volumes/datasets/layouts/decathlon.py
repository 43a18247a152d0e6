"""The layout of the Medical Segmentation Decathlon (Antonelli et al. 2022): dataset.json lists the files of imagesTr,
labelsTr, imagesTs and, where the test masks are known, labelsTs. nnU-Net v1 has it too, with a file per channel.
"""

from pathlib import Path

from ..cases import Dataset
from . import amos, nnunet
from .entries import Entries
from .listing import Layout, description, numbered, sound


def _fits(root: Path) -> bool:
    others = (nnunet.LAYOUT, amos.LAYOUT)
    return (root / "dataset.json").exists() and not any(other.fits(root) for other in others)


def _read(root: Path) -> Dataset:
    """A test entry that names only its scan gets the mask of the same file name in labelsTs, if there is one."""
    content, faults = description(root), []
    labels = numbered(content, "labels", faults)
    channels = numbered(content, "modality", faults)
    entries = Entries(root, faults, channels=max(1, len(channels)))
    dataset = Dataset(
        name=str(content.get("name") or root.resolve().name),
        root=root,
        layout=LAYOUT.name,
        labels=labels,
        channels=tuple(channels.values()),
        training=entries.cases(content, "training", labelled=True),
        test=entries.cases(content, "test", labelled=False),
    )
    return sound(dataset, faults, source=root / "dataset.json")


LAYOUT = Layout("Medical Segmentation Decathlon", "dataset.json with modality, labels, training and test", _fits, _read)
