"""BTCV, Beyond the Cranial Vault (Landman et al. 2015, Synapse syn3193805), as it is handed out: Training/img/
imgNNNN.nii.gz with Training/label/labelNNNN.nii.gz, and Testing/img, whose masks are kept back.
"""

from pathlib import Path

from ...files import visible_entries
from ...io.scans import Source, bare_name, is_nifti
from ..cases import Case, Dataset
from .listing import Layout, sound

ORGANS = (
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"),
)


def _fits(root: Path) -> bool:
    return (root / "Training" / "img").is_dir()


def _read(root: Path) -> Dataset:
    faults: list[str] = []
    dataset = Dataset(
        name="BTCV",
        root=root,
        layout=LAYOUT.name,
        labels=dict(enumerate(("background", *ORGANS))),
        channels=("CT",),
        training=_cases(root / "Training", faults, labelled=True),
        test=_cases(root / "Testing", faults, labelled=False),
    )
    return sound(dataset, faults, source=root)


def _cases(folder: Path, faults: list[str], *, labelled: bool) -> tuple[Case, ...]:
    scans, masks = _numbered(folder / "img", "img", faults), _numbered(folder / "label", "label", faults)
    for number in sorted(scans.keys() ^ masks.keys() if labelled or masks else ()):
        there, missing = ("img", "label") if number in scans else ("label", "img")
        faults.append(f"{folder.name}/{there}/{there}{number} has no {folder.name}/{missing}/{missing}{number}")
    return tuple(
        Case(Source(f"img{number}", (path,)), Source(f"label{number}", (masks[number],)) if number in masks else None)
        for number, path in sorted(scans.items())
    )


def _numbered(folder: Path, prefix: str, faults: list[str]) -> dict[str, Path]:
    by_number: dict[str, Path] = {}
    for path in filter(is_nifti, visible_entries(folder)):
        number = bare_name(path).removeprefix(prefix)
        if bare_name(path) != f"{prefix}{number}" or len(number) != 4 or not number.isdigit() or number in by_number:
            faults.append(f"{folder.parent.name}/{folder.name}/{path.name} is not named {prefix}NNNN, once")
        else:
            by_number[number] = path
    return by_number


LAYOUT = Layout("BTCV", "Training/img/imgNNNN.nii.gz and Training/label/labelNNNN.nii.gz", _fits, _read)
