"""Two folders of equal names: images and labels (or masks), of NIfTI scans or of 2-D pictures. They lie in the
dataset's folder, or in its folders train and test. A training case may have prompts/NAME.json in place of a mask. A
labels.json says what the numbers or colours in the masks are;
without one every number found in them is a class.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....errors import BadInputError
from ...files import visible_entries
from ...io.mask_codes import Code
from ...io.pictures import is_picture, picture_channels
from ...io.scans import Source, bare_name, is_nifti, read_mask
from ..cases import Case, Dataset
from ..parallel import in_threads
from .listing import Layout, prompts_in, read_classes, sound, strays

_MASKS = ("labels", "masks")
_ENDINGS = ("", "_mask", "_segmentation")  # of a mask's name after its picture's (ISIC)
_MOST = 256  # classes that can be found rather than declared


def _fits(root: Path) -> bool:
    return _is_pair(_training(root)) and not _holds_pictures(root)


def _fits_pictures(root: Path) -> bool:
    return _is_pair(_training(root)) and _holds_pictures(root)


def _read(root: Path) -> Dataset:
    pictures = _holds_pictures(root)
    faults: list[str] = []
    prompts = prompts_in(_training(root) / "prompts")
    training, test = _cases(_training(root), pictures, faults, prompts), _cases(root / "test", pictures, faults, {})
    faults += strays(prompts, training)
    first = next((case.image.files[0] for case in (*training, *test)), None)
    channels = picture_channels(first) if first and pictures else ("scan",)
    declared = root / "labels.json"
    labels, codes = read_classes(declared) if declared.exists() else _classes_in((*training, *test), faults)
    layout = PICTURES if pictures else VOLUMES
    dataset = Dataset(root.resolve().name, root, layout.name, labels, channels, training, test, codes=codes)
    return sound(dataset, faults, source=root)


def _training(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def _is_pair(folder: Path) -> bool:
    return (folder / "images").is_dir() and any((folder / name).is_dir() for name in _MASKS)


def _holds_pictures(root: Path) -> bool:
    return any(is_picture(path) for path in visible_entries(_training(root) / "images"))


def _cases(folder: Path, pictures: bool, faults: list[str], prompts: Mapping[str, Path]) -> tuple[Case, ...]:
    there = [name for name in _MASKS if (folder / name).is_dir()]
    if len(there) > 1:
        faults.append(f"{folder.name} has both {' and '.join(there)}; leave the one that holds the masks")
    scans = _by_name(folder / "images", pictures, faults)
    masks = _by_name(folder / there[0], pictures, faults) if there else {}
    cases = []
    for name, path in sorted(scans.items()):
        mask = next((masks.pop(name + ending) for ending in _ENDINGS if name + ending in masks), None)
        if mask is None and there and name not in prompts:
            faults.append(f"{folder.name}/images/{path.name} has no mask of its name in {there[0]}")
        cases.append(Case(Source(name, (path,)), Source(name, (mask,)) if mask else None, prompts.get(name)))
    faults += [f"{path} has no scan of its name in images" for path in masks.values()]
    return tuple(cases)


def _by_name(folder: Path, pictures: bool, faults: list[str]) -> dict[str, Path]:
    masks_by_name: dict[str, Path] = {}
    for path in [entry for entry in visible_entries(folder) if is_picture(entry) or is_nifti(entry)]:
        if is_picture(path) != pictures:
            faults.append(f"{folder.name}/{path.name}: pictures and NIfTI files are mixed; keep one kind")
        elif bare_name(path) in masks_by_name:
            faults.append(f"{folder.name}/{path.name} has the name of {masks_by_name[bare_name(path)].name}")
        else:
            masks_by_name[bare_name(path)] = path
    return masks_by_name


def _classes_in(cases: tuple[Case, ...], faults: list[str]) -> tuple[dict[int, str], tuple[Code, ...] | None]:
    """Classes after the numbers in all masks; 0 is the background, whether it occurs or not."""

    def numbers(mask: Source) -> tuple[set[int], str | None]:
        try:
            return set(np.unique(read_mask(mask)[0]).tolist()), None
        except BadInputError as error:
            return set(), str(error)

    values: set[int] = {0}
    for present, fault in in_threads(numbers, [case.label for case in cases if case.label]):
        values |= present
        faults += [fault] if fault else []
    if len(values) > _MOST:
        faults.append(
            f"the masks hold {len(values)} different numbers, more than {_MOST}: are they masks? If so, name the "
            "classes in labels.json"
        )
    codes = tuple(sorted(values))
    labels = {0: "background", **{number: f"label {code}" for number, code in enumerate(codes) if number}}
    return labels, None if codes == tuple(range(len(codes))) else codes


VOLUMES = Layout("pair of folders", "images and labels (or masks) with NIfTI files of equal names", _fits, _read)
PICTURES = Layout(
    "2-D pictures", "images and labels (or masks) with PNG, JPEG or TIFF files of equal names", _fits_pictures, _read
)
