"""Which cases a run learns from, is steered by, and is scored on at its end."""

from dataclasses import dataclass

from ..errors import BadInputError
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.datasets.splits import refuse_leaks, split
from .prepared import fingerprint
from .run_config import CaseNames, digest


@dataclass(frozen=True)
class DataSplit:
    """The cases of a run: labelled training and validation cases, unlabelled ones, and test cases nobody trains on."""

    dataset: Dataset
    train: tuple[Case, ...]
    validation: tuple[Case, ...]

    @classmethod
    def of(cls, dataset: Dataset, *, validation: float, seed: int) -> "DataSplit":
        """Seeded split of the labelled training cases, unless the dataset comes with validation cases.

        With `validation` 0 all of them are trained on. Raises BadInputError when fewer than two are labelled.
        """
        labelled = [case for case in dataset.training if case.label is not None]
        if labelled and (dataset.validation or validation == 0):
            return cls(dataset, tuple(labelled), dataset.validation)
        if len(labelled) < 2:
            raise BadInputError(
                f"{dataset.root}: {len(labelled)} labelled training case(s); at least 2 are needed, one of them "
                f"for validation"
            )
        train, chosen = split(labelled, validation=validation, seed=seed)
        return cls(dataset, tuple(train), tuple(chosen))

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.dataset.training if case.label is None)

    @property
    def test(self) -> tuple[Case, ...]:
        return tuple(case for case in self.dataset.test if case.label is not None)

    def names(self) -> dict[str, list[str]]:
        """Case names by part, as a splits.json holds them (volumes.datasets.splits)."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: [case.name for case in cases] for part, cases in parts.items()}

    def describe(self) -> CaseNames:
        """What a run folder keeps of its cases: names, and a fingerprint of the bytes they were trained from.

        Raises BadInputError when one scan, byte by byte, is in two parts.
        """
        training = (*self.train, *self.unlabelled)
        refuse_leaks({"training": training, "validation": self.validation, "test": self.dataset.test})
        prints = sorted(fingerprint(case) for case in (*self.train, *self.validation))
        return CaseNames(
            dataset=self.dataset.name,
            train=tuple(case.name for case in self.train),
            validation=tuple(case.name for case in self.validation),
            content=digest({"cases": prints}),
        )
