"""A folder of predictions as an ensemble member: what other tools, or people, made of the same scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadInputError, UsageError
from ..training.progress import Bar
from ..training.run_config import digest
from ..volumes.alignment import onto, why_not_resampled
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.files import file_digest
from ..volumes.geometry import Geometry, Volume, reorient
from ..volumes.io.scans import source_geometry
from ..volumes.plan import Plan
from ..volumes.prompts import ScanPrompts
from ..volumes.resample import resample
from .prediction_files import CaseFiles, Prediction, files_of, find_predictions
from .teacher_classes import TeacherClasses


@dataclass(frozen=True)
class PredictionFolder:
    """A folder with a prediction for each case, by the cases' names."""

    path: Path
    files: Mapping[str, CaseFiles]

    @classmethod
    def read(cls, path: Path) -> "PredictionFolder":
        """List the predictions in a folder. Raises BadInputError for none, and for two of one case."""
        return cls(path, find_predictions(path))


@dataclass(frozen=True, eq=False)
class PredictionMember:
    """A folder of predictions that teaches; ``weight`` is its part of the average, relative to those of the others.

    It was not trained here, so on which cases is not known. ``sha256`` is that of the predictions of a dataset's
    training and validation cases, and of the class that each of their classes is taken for.
    """

    folder: PredictionFolder
    classes: TeacherClasses
    sha256: str
    weight: float = 1.0
    trained_on: frozenset[str] = frozenset()
    prompts_required: bool = False
    prompt_kinds: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: PredictionFolder, dataset: Dataset, *, weight: float = 1.0) -> "PredictionMember":
        """Raises BadInputError where its classes cannot be matched with the dataset's; check looks at its cases."""
        classes = TeacherClasses.read(folder.path, dataset.labels)
        return cls(folder, classes, _digest(folder, classes, (*dataset.training, *dataset.validation)), weight)

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    @property
    def key(self) -> str:
        """What decides its targets on a given grid."""
        return f"predictions {self.sha256}"

    def lacks(self, cases: Sequence[Case]) -> list[str]:
        """Names of the cases without a prediction."""
        return [case.name for case in cases if files_of(case.name, self.folder.files) is None]

    def check(self, cases: Sequence[Case], dataset: Dataset) -> None:
        """Read the predictions of all cases that it is to teach, once, before any training.

        Raises BadInputError, naming them, where cases have none, and for the first that cannot be used.
        """
        if absent := self.lacks(cases):
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise BadInputError(
                f"{self.folder.path}: no prediction of {', '.join(absent[:5])}{more}; a teacher needs one for each of "
                f"the {len(cases)} training cases, named like the case. Predict these, too."
            )
        with Bar(f"predictions in {self.name}", len(cases)) as bar:
            for case in cases:
                prediction, path = self._read(case.name)
                _place(prediction, source_geometry(case.image, channels=len(dataset.channels)), path)
                bar.advance(case.name)

    def probabilities(
        self, volume: Volume, student_grid: Geometry, prompts: ScanPrompts | None = None, *, case: str
    ) -> np.ndarray:
        """The prediction of the case of that name, resampled linearly: float32 [K, *student_grid.shape].

        Raises BadInputError for a prediction that cannot be used, or that does not cover the scan.
        """
        prediction, path = self._read(case)
        prediction = _place(prediction, volume.geometry, path)
        own = prediction.geometry
        along = own.aligned(student_grid)
        targets = np.empty((len(self.classes.class_names), *student_grid.shape), np.float32)
        for value, target in enumerate(targets):
            values = reorient(prediction.probability_of(value), own, along)
            target[...] = resample(values, along, student_grid, order=1)
        return targets

    def check_online(self, plan: Plan, *, prompted: bool = False) -> None:
        """Raises UsageError: a file says nothing about the augmented patches that the student sees."""
        raise UsageError(
            f"--online: teacher {self.name} is a folder of predictions, which cannot be asked about the student's "
            "patches; leave --online out, so that its predictions are resampled onto the student's grid"
        )

    def _read(self, case: str) -> tuple[Prediction, Path]:
        files = files_of(case, self.folder.files)
        if files is None:
            raise BadInputError(f"{self.folder.path}: no prediction of {case}; predict this case, too.")
        return files.read(self.classes), files.paths[0]


def _place(prediction: Prediction, scan: Geometry, path: Path) -> Prediction:
    """The prediction on the scan's very grid where it has the same voxels, else as it is, if it covers the scan."""
    placed = onto(prediction.array, prediction.geometry, scan)
    if placed is not None:
        return Prediction(placed, scan)
    if why := why_not_resampled(prediction.geometry, scan):
        raise BadInputError(
            f"{path}: does not lie on its scan: {why}. Predict the whole scan, on its own grid or in its directions."
        )
    return prediction


def _digest(folder: PredictionFolder, classes: TeacherClasses, cases: Sequence[Case]) -> str:
    """sha256 of the predictions of cases, file by file, and of their classes."""
    table = {
        "numbers": sorted(classes.by_number.items()),
        "names": sorted(classes.by_name.items()),
        "others": classes.others,
    }
    files = {case.name: files_of(case.name, folder.files) for case in cases}
    contents = {
        name: [(path.name, file_digest(path)) for path in its.paths] for name, its in files.items() if its is not None
    }
    return digest({"classes": table, "predictions": contents})
