"""A dataset of any layout written as nnU-Net v2 raw, for everything that reads that."""

from collections.abc import Callable
from pathlib import Path

from ..files import atomic_folder, make_folder, write_json
from ..geometry import Volume
from ..io.nifti import write_labels, write_scan
from .cases import Case, Dataset, read_case
from .parallel import in_threads


def write_nnunet(
    dataset: Dataset, out: str | Path, *, fix_affine: bool = False, on_case: Callable[[str], None] | None = None
) -> None:
    """Write the folder `out`: imagesTr/CASE_0000.nii.gz (a file per channel, float32), labelsTr, imagesTs, labelsTs for
    the test masks that are known, and dataset.json. Training cases without a mask go to imagesTs, as nnU-Net wants it.
    `fix_affine` as in volumes.datasets.cases.read_case.

    Raises BadInputError for a case that cannot be used and OutputError when `out` is not empty or cannot be written;
    then nothing is left of it.
    """
    labelled = [case for case in dataset.training if case.label is not None]
    rest = [case for case in (*dataset.training, *dataset.validation, *dataset.test) if case not in labelled]
    with atomic_folder(out) as draft:
        for part in ("Tr", "Ts") if rest else ("Tr",):
            make_folder(draft / f"images{part}")
            make_folder(draft / f"labels{part}")

        def write(job: tuple[str, Case]) -> str:
            part, case = job
            volume, mask = read_case(case, dataset, fix_affine=fix_affine)
            for channel in range(len(dataset.channels)):
                one = Volume(volume.array[channel : channel + 1], volume.geometry)
                write_scan(draft / f"images{part}" / f"{case.name}_{channel:04d}.nii.gz", one)
            if mask is not None:
                write_labels(draft / f"labels{part}" / f"{case.name}.nii.gz", mask, volume.geometry, like=None)
            return case.name

        for name in in_threads(write, [*(("Tr", case) for case in labelled), *(("Ts", case) for case in rest)]):
            if on_case is not None:
                on_case(name)
        content = {
            "name": dataset.name,
            "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
            "labels": {name: number for number, name in dataset.labels.items()},
            "numTraining": len(labelled),
            "file_ending": ".nii.gz",
        }
        write_json(draft / "dataset.json", content)
