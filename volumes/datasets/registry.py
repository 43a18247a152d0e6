"""Datasets on disk: whatever the layout, one Dataset."""

from pathlib import Path

from ...errors import BadInputError
from .cases import Case, Dataset, read_case, read_labelled_case, scan_digest, with_classes
from .layouts import LAYOUTS
from .layouts.amos import of_modality

__all__ = ["Case", "Dataset", "read_case", "read_dataset", "read_labelled_case", "scan_digest", "with_classes"]


def read_dataset(root: str | Path, *, modality: str | None = None) -> Dataset:
    """Find the layout of the folder `root` and check all that can be checked without opening a scan.

    `modality` ("CT" or "MR") keeps the scans of one modality where a dataset holds two (AMOS22). Raises one
    BadInputError that says what was looked for when no layout fits, or which ones fit when several do, and one with
    every fault of the layout: classes, files that are missing or listed twice, cases in both training and test.
    """
    root = Path(root)
    fitting = [layout for layout in LAYOUTS if layout.fits(root)] if root.is_dir() else []
    if len(fitting) != 1:
        state = "fits several layouts" if fitting else "is no dataset" if root.is_dir() else "is no folder"
        listed = "".join(f"\n  - {layout.name}: {layout.wanted}" for layout in fitting or LAYOUTS)
        ask = "Leave one of them in the folder:" if fitting else "Looked for:"
        raise BadInputError(f"{root}: {state}. {ask}{listed}")
    dataset = fitting[0].read(root)
    return of_modality(dataset, modality) if modality else dataset
