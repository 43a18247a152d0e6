"""Videos as EndoVis 2018 hands them out (Allan et al. 2020): seq_*/left_frames and seq_*/labels with a picture per
frame, and labels.json with the colour of every class. A case is one sequence; those in a folder `test` are for test.
"""

from pathlib import Path

from ....errors import BadInputError
from ...io.pictures import picture_channels
from ...io.scans import FRAMES, video
from ..cases import Case, Dataset
from .listing import Layout, read_classes, sound


def _fits(root: Path) -> bool:
    return any(root.glob(f"seq_*/{FRAMES}"))


def _read(root: Path) -> Dataset:
    faults: list[str] = []
    training = _cases(root, "", faults)
    test = _cases(root / "test", "test_", faults)
    if not (root / "labels.json").exists():
        faults.append('labels.json is missing; expected [{"name": ..., "color": [r, g, b], "classid": ...}, ...]')
    if faults or not training:
        labels, codes, channels = {}, None, ()
    else:
        labels, codes = read_classes(root / "labels.json")
        channels = picture_channels(training[0].image.files[0])
    dataset = Dataset(root.resolve().name, root, LAYOUT.name, labels, channels, training, test, codes=codes)
    return sound(dataset, faults, source=root)


def _cases(folder: Path, prefix: str, faults: list[str]) -> tuple[Case, ...]:
    cases = []
    for sequence in sorted(path.parent for path in folder.glob(f"seq_*/{FRAMES}")):
        try:
            frames = video(sequence / FRAMES, name=f"{prefix}{sequence.name}")
            masks = video(sequence / "labels", name=frames.name) if (sequence / "labels").is_dir() else None
        except BadInputError as error:
            faults.append(str(error))
            continue
        unpaired = {path.stem for path in frames.files} ^ {path.stem for path in masks.files} if masks else set()
        if unpaired:
            faults.append(f"{sequence.name} has {sorted(unpaired)} as a frame or as a mask only")
        cases.append(Case(frames, masks))
    return tuple(cases)


LAYOUT = Layout("EndoVis videos", f"seq_*/{FRAMES}, seq_*/labels and labels.json", _fits, _read)
