"""samkd convert: a dataset of any layout, written as nnU-Net v2 raw."""

from pathlib import Path

from ..training.progress import Bar
from ..volumes.datasets.convert import write_nnunet
from ..volumes.datasets.registry import Dataset, read_dataset


def convert(data: Path, out: Path, *, modality: str | None = None, fix_affine: bool = False) -> Dataset:
    """Write the dataset in `data` to the folder `out`, with a progress bar, and return what was read.

    With `fix_affine` a mask of its scan's shape takes its scan's affine. Raises BadInputError for a dataset with
    faults, OutputError when `out` exists and is not empty.
    """
    dataset = read_dataset(data, modality=modality)
    with Bar("cases", len(dataset.training) + len(dataset.test)) as bar:
        write_nnunet(dataset, out, fix_affine=fix_affine, on_case=bar.advance)
    return dataset
