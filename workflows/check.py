"""samkd check: every case of a dataset read strictly, its faults listed, a few cases drawn."""

from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.overlay import comparison_png
from ..training.progress import Bar
from ..volumes.datasets.registry import Case, Dataset, read_dataset, read_labelled_case
from ..volumes.datasets.survey import check_dataset
from ..volumes.files import atomic_path
from ..volumes.geometry import reorient
from ..volumes.io.dicom.series import find_series
from ..volumes.io.scans import Source

DICOM = "DICOM series"  # the layout of a folder of series that is no dataset


def dataset_or_series(data: Path, *, modality: str | None = None) -> Dataset:
    """The dataset in a folder, or else the DICOM series in it (or the one file) as cases without masks.

    Raises what read_dataset raises when it is neither.
    """
    try:
        return read_dataset(data, modality=modality)
    except BadInputError:
        cases = tuple(Case(Source(name, files), None) for name, files in find_series(data).items())
        if not cases:
            raise
    return Dataset(data.resolve().name, data, DICOM, {0: "background"}, ("scan",), (), cases)


def check(dataset: Dataset) -> list[dict[str, Any]]:
    """The rows of volumes.datasets.survey.check_dataset, with a progress bar."""
    with Bar("cases", len(dataset.training) + len(dataset.test)) as bar:
        return check_dataset(dataset, on_case=lambda row: bar.advance(row["name"]))


def draw_cases(dataset: Dataset, rows: list[dict[str, Any]], out: Path, *, count: int = 4) -> None:
    """Draw the first sound cases with a mask, their first channel, into one PNG. Raises BadInputError without any."""
    sound = {row["name"] for row in rows if row["fault"] is None and row["label_voxels"]}
    cases = [case for case in (*dataset.training, *dataset.test) if case.name in sound][:count]
    if not cases:
        raise BadInputError(f"{dataset.root}: no sound case with a mask to draw")
    with atomic_path(out) as temporary:
        temporary.write_bytes(contact_sheet({case.name: _picture(case, dataset) for case in cases}))


def _picture(case: Case, dataset: Dataset) -> bytes:
    """The PNG of a labelled case: slices through its first channel, beside them the same with the mask."""
    volume, mask = read_labelled_case(case, dataset)
    upright = volume.geometry.oriented("SPL")
    scan, truth = (reorient(array, volume.geometry, upright) for array in (volume.array[0], mask))
    return comparison_png(scan, {"mask": truth}, spacing=upright.spacing)
