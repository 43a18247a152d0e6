"""AMOS22 (Ji et al. 2022) as it is handed out: dataset.json lists training, validation and test cases amos_NNNN;
numbers up to 500 are CT, those above are MR.
"""

import re
from dataclasses import replace
from pathlib import Path

from ....errors import BadInputError
from ..cases import Case, Dataset
from .btcv import ORGANS as BTCV
from .entries import Entries
from .listing import Layout, description, sound

# In the words of BTCV, so that models of the two can be compared: its organs but for the veins, and three more.
ORGANS = (
    *(name for name in BTCV if name != "portal and splenic vein"),
    *("duodenum", "bladder", "prostate or uterus"),
)
MODALITIES = ("CT", "MR")
_NAME = re.compile(r"amos_(\d{4})")
_LAST_CT = 500


def of_modality(dataset: Dataset, modality: str) -> Dataset:
    """The cases of one modality, "CT" or "MR". Raises BadInputError when there is none, or nothing to choose."""
    if dataset.layout != LAYOUT.name or modality not in MODALITIES:
        raise BadInputError(
            f"{dataset.root}: the modality {modality!r} cannot be chosen in the layout {dataset.layout}; only "
            f"{LAYOUT.name} holds {' and '.join(MODALITIES)}."
        )
    training, test = (
        tuple(case for case in cases if _modality(case) == modality) for cases in (dataset.training, dataset.test)
    )
    if not training and not test:
        raise BadInputError(f"{dataset.root}: holds no {modality} (its numbers say so).")
    return replace(dataset, training=training, test=test, channels=(modality,))


def _fits(root: Path) -> bool:
    content = description(root)
    listed = content.get("training")
    return bool(listed) and isinstance(listed, list) and "amos_" in str(listed[0]) and "channel_names" not in content


def _read(root: Path) -> Dataset:
    """Its validation cases count as test cases: the masks of its own test cases were kept back at first."""
    content, faults = description(root), []
    labels = content.get("labels")
    if not isinstance(labels, dict) or set(labels) != {str(number) for number in range(len(ORGANS) + 1)}:
        faults.append(f'"labels" is {labels}; expected the numbers 0 to {len(ORGANS)}')
    content = {key: value for key, value in content.items() if not key.startswith("num")}
    entries = Entries(root, faults)
    training = entries.cases(content, "training", labelled=True)
    test = (*entries.cases(content, "validation", labelled=False), *entries.cases(content, "test", labelled=False))
    faults += [f"the case {case.name!r} is not named amos_NNNN" for case in (*training, *test) if not _number(case)]
    dataset = Dataset(
        name="AMOS22",
        root=root,
        layout=LAYOUT.name,
        labels=dict(enumerate(("background", *ORGANS))),
        channels=("CT or MR",),
        training=training,
        test=test,
    )
    dataset = sound(dataset, faults, source=root / "dataset.json")
    kinds = {_modality(case) for case in (*training, *test)}
    return replace(dataset, channels=(kinds.pop(),)) if len(kinds) == 1 else dataset


def _number(case: Case) -> int:
    match = _NAME.fullmatch(case.name)
    return int(match[1]) if match else 0


def _modality(case: Case) -> str:
    return MODALITIES[_number(case) > _LAST_CT]


LAYOUT = Layout("AMOS22", "dataset.json that lists amos_NNNN.nii.gz", _fits, _read)
