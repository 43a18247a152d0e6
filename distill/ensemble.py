"""The teachers of one student, whose class probabilities are averaged: finished runs, and folders of predictions."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import BadInputError, UsageError
from ..students import PROMPTED
from ..teachers import PUBLISHED
from ..training.predictor import make_predictor
from ..training.prompt_sampling import kinds_in_training
from ..training.run import Run
from ..volumes.datasets.registry import Case, Dataset
from ..volumes.files import file_digest
from ..volumes.geometry import Geometry, Volume, reorient
from ..volumes.plan import Plan
from ..volumes.preprocess import preprocess
from ..volumes.prompts import ScanPrompts
from ..volumes.resample import resample
from ..volumes.sliding_window import sliding_window
from .networks import load_network
from .prediction_member import PredictionFolder


class Member(Protocol):
    """What teaches: a run's network (EnsembleMember), or what lies in a folder (PredictionMember).

    ``weight`` is its part of the average, relative to those of the others; ``trained_on`` names its labelled training
    cases as far as they are known; with ``prompts_required`` it finds nothing but what a prompt shows. ``prompt_kinds``
    are those of prompts.KINDS that it was made to take.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def sha256(self) -> str: ...

    @property
    def trained_on(self) -> frozenset[str]: ...

    @property
    def prompts_required(self) -> bool: ...

    @property
    def prompt_kinds(self) -> frozenset[str]: ...

    @property
    def key(self) -> str:
        """What decides its targets on a given grid."""
        ...

    def lacks(self, cases: Sequence[Case]) -> list[str]:
        """Names of the cases that it knows nothing of."""
        ...

    def check_online(self, plan: Plan, *, prompted: bool) -> None:
        """Raises UsageError for one that cannot see patches on the student's grid, `prompted` in every step or not."""
        ...

    def probabilities(
        self, volume: Volume, student_grid: Geometry, prompts: ScanPrompts | None = None, *, case: str
    ) -> np.ndarray:
        """float32 [K, *student_grid.shape] for a whole scan, that of the case of this name."""
        ...


@dataclass(frozen=True, eq=False)
class EnsembleMember:
    """One of the runs that teach; ``weight`` is its part of the average, relative to those of the others."""

    name: str
    plan: Plan
    sha256: str  # of its weights file
    load: Callable[[], torch.nn.Module]
    weight: float = 1.0
    trained_on: frozenset[str] = frozenset()  # names of its labelled training cases
    prompts_required: bool = False  # whether it finds nothing but what a prompt shows
    prompt_kinds: frozenset[str] = frozenset()  # those of prompts.KINDS that it was made to take; empty for none

    @classmethod
    def of(cls, run: Run, *, weight: float = 1.0, pretrained_path: Path | None = None) -> "EnsembleMember":
        """`pretrained_path` as in networks.load_network. Raises BadInputError for a run that is not finished."""
        if not run.finished:
            raise BadInputError(f"{run.path}: this run is not finished, it cannot teach; run its command again")
        cases = frozenset(run.config.cases.train)
        return cls(
            name=run.path.name,
            plan=run.plan,
            sha256=file_digest(run.weights),
            load=lambda: load_network(run, pretrained_path=pretrained_path),
            weight=weight,
            trained_on=cases,
            prompts_required=run.config.network.name in (PUBLISHED, *PROMPTED),
            prompt_kinds=_prompt_kinds(run),
        )

    @cached_property
    def network(self) -> torch.nn.Module:
        return self.load()

    @property
    def key(self) -> str:
        """What decides its targets on a given grid."""
        return f"{self.sha256} {self.plan.digest()}"

    def lacks(self, cases: Sequence[Case]) -> list[str]:
        """No case: a network takes any scan."""
        return []

    def probabilities(
        self, volume: Volume, student_grid: Geometry, prompts: ScanPrompts | None = None, *, case: str = ""
    ) -> np.ndarray:
        """Sliding window with the teacher's own plan, then linear resampling: float32 [K, *student_grid.shape].

        `prompts` are for a teacher that takes them. The name of the `case` does not matter.
        """
        prepared = preprocess(volume, self.plan)
        classes = int(self.network.num_classes)  # type: ignore[arg-type]
        infer = make_predictor(self.network)
        placed = prompts and prompts.onto(prepared.geometry, scan=volume.geometry, classes=classes)
        found = sliding_window(
            prepared.array, self.plan.patch, self.plan.overlap, infer, num_classes=classes, prompts=placed
        )
        along = prepared.geometry.aligned(student_grid)
        targets = np.empty((classes, *student_grid.shape), np.float32)
        for target, values in zip(targets, found, strict=True):
            target[...] = resample(reorient(values, prepared.geometry, along), along, student_grid, order=1)
        return targets

    def check_online(self, plan: Plan, *, prompted: bool) -> None:
        """Raises UsageError where the plan of the student's patches is not this teacher's, or has no prompts for it."""
        if self.prompts_required and not prompted:
            raise UsageError(
                f"--online: teacher {self.name} finds nothing without prompts; leave --online out, so that each "
                "training scan is shown to it with a box on every slice, from its mask, or show the student a box in "
                "every step (student.prompts.kind=box, share=1), which the teacher is then shown, too"
            )
        own, other = self.plan.to_dict(), plan.to_dict()
        keys = ("orientation", "spacing", "size", "intensity", "patch")
        if differing := [key for key in keys if own[key] != other[key]]:
            told = ", ".join(f"{key} {own[key]} against {other[key]}" for key in differing)
            raise UsageError(
                f"--online: teacher {self.name} cannot see the student's patches, its plan differs ({told}); "
                f"leave --online out, so that whole scans are resampled between the two grids"
            )

    def on_patches(self, image: torch.Tensor, prompts: Any = None) -> torch.Tensor:
        """Probabilities [B, K, *patch] for patches [B, C, *patch] on the teacher's own grid, of its patch's size.

        A teacher that takes prompts is shown them, any other segments without.
        """
        network = self.network.to(image.device).eval()
        shown = prompts if network.prompt_kinds else None
        with torch.no_grad():
            return network(image, shown).float().softmax(1)


def _prompt_kinds(run: Run) -> frozenset[str]:
    """The kinds of prompts that a run was trained with; of a published model as it is, those that it takes."""
    if run.config.network.name == PUBLISHED:
        return frozenset({"point", "box"})
    return kinds_in_training(run.config.objective.prompts)


def read_teacher(text: str) -> tuple[Run | PredictionFolder, float]:
    """``FOLDER`` or ``FOLDER=0.7``: a run or a folder of predictions, and its weight.

    Raises UsageError for a wrong weight, BadInputError for a folder that is neither.
    """
    folder, separator, number = text.rpartition("=")
    if not separator or Path(text).is_dir():
        return _read_folder(Path(text)), 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise UsageError(
            f"--teacher {text}: expected FOLDER or FOLDER=WEIGHT with a weight above 0, for example {folder}=0.7"
        )
    return _read_folder(Path(folder)), weight


def _read_folder(path: Path) -> Run | PredictionFolder:
    is_run = (path / "config.yaml").exists() or not path.is_dir()
    return Run.read(path) if is_run else PredictionFolder.read(path)


def check_teachers(runs: Sequence[Run], dataset: Dataset) -> None:
    """Raises BadInputError for teachers that know other classes or channels than the dataset."""
    for run in runs:
        if run.class_names != dataset.labels:
            raise BadInputError(
                f"{run.path}: this teacher knows {run.class_names}, the dataset declares {dataset.labels}; "
                f"teacher and student must have the same classes"
            )
        if len(run.config.channels) != len(dataset.channels):
            raise BadInputError(
                f"{run.path}: this teacher was trained on {list(run.config.channels)}, the dataset has "
                f"{list(dataset.channels)}; teacher and student must see the same channels"
            )


class Ensemble:
    """The weighted mean of the class probabilities of one or more teachers."""

    def __init__(self, teachers: Sequence[Member]) -> None:
        assert teachers
        self.teachers = tuple(teachers)
        total = sum(teacher.weight for teacher in teachers)
        self.shares = [teacher.weight / total for teacher in teachers]

    @property
    def key(self) -> str:
        """sha256 of all that decides the targets: the members' keys and shares, in a fixed order."""
        parts = (f"{member.key} {share:.6f}" for member, share in zip(self.teachers, self.shares, strict=True))
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()

    @property
    def runs(self) -> tuple[EnsembleMember, ...]:
        """The members that are networks; all of them after check_online."""
        return tuple(member for member in self.teachers if isinstance(member, EnsembleMember))

    @property
    def prompts_required(self) -> bool:
        """Whether a teacher among them finds nothing but what a prompt shows."""
        return any(teacher.prompts_required for teacher in self.teachers)

    def probabilities(
        self, volume: Volume, student_grid: Geometry, prompts: ScanPrompts | None = None, *, case: str = ""
    ) -> np.ndarray:
        """float32 [K, *student_grid.shape] for a whole scan, that of the case of this name, which files are found by.

        Teachers that find nothing without prompts are shown `prompts`; the others are not.
        """
        needed = [prompts if member.prompts_required else None for member in self.teachers]
        members = zip(self.teachers, needed, strict=True)
        return self.mean([member.probabilities(volume, student_grid, shown, case=case) for member, shown in members])

    def mean(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted mean of the teachers' answers, in their order."""
        mean = np.zeros_like(answers[0])
        for share, values in zip(self.shares, answers, strict=True):
            mean += np.float32(share) * values
        return mean

    def check_online(self, plan: Plan, *, prompted: bool = False) -> None:
        """Raises UsageError when a teacher cannot run on the student's patches: those are cut on the student's grid.

        With `prompted` every step has boxes, which teachers are shown that find nothing without.
        """
        for member in self.teachers:
            member.check_online(plan, prompted=prompted)

    def on_patches(self, image: torch.Tensor, prompts: Any = None) -> torch.Tensor:
        """Mean probabilities [B, K, *patch] for the student's patches [B, C, *patch]; see check_online."""
        parts = (share * t.on_patches(image, prompts) for share, t in zip(self.shares, self.runs, strict=True))
        return torch.stack(list(parts)).sum(0)
