"""From a scan to its labels: the one pipeline of training, evaluation, the acceptance gate and the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInputError, UsageError
from .geometry import Geometry, Volume
from .plan import Plan
from .preprocess import label_dtype, preprocess, restore_slabs
from .prompts import GridPrompts, ScanPrompts, require_prompt_kinds
from .region import content_box, embedded
from .sliding_window import Triple, Window, computed_voxels
from .temperature import at_temperature

FAST_OVERLAP = 0.25  # of neighbouring patches, as a fraction of the patch


def segment(
    volume: Volume,
    plan: Plan,
    infer: Callable[..., np.ndarray],
    *,
    num_classes: int,
    batch: int = 1,
    prompts: ScanPrompts | None = None,
) -> np.ndarray:
    """Labels [D, H, W] (uint8; uint16 above 256 classes) on the scan's own grid.

    `infer` turns patches [N, C, *plan.patch] into class PROBABILITIES [N, num_classes, *plan.patch]; with `prompts` it
    is called as infer(patches, what of the prompts lies in them). Raises BadInputError for a scan that the plan's
    intensity rules cannot scale and for a prompt outside the scan.
    """
    preprocessed = preprocess(volume, plan)
    return segment_preprocessed(
        preprocessed, volume.geometry, plan, infer, num_classes=num_classes, batch=batch, prompts=prompts
    )


def segment_preprocessed(
    preprocessed: Volume,
    source: Geometry,
    plan: Plan,
    infer: Callable[..., np.ndarray | Callable[[], np.ndarray]],
    *,
    num_classes: int,
    batch: int = 1,
    at_once: int = 1,
    prompts: ScanPrompts | None = None,
) -> np.ndarray:
    """Labels [D, H, W] of a preprocessed scan on `source`, the grid that the scan came from.

    `infer` may work in the background (sliding_window.Window.infer): up to `at_once` patches are then inferred while
    earlier ones are averaged and resampled; the labels are the same.
    """

    def answers(window: Window, placed: GridPrompts | None) -> Iterable[np.ndarray]:
        return window.infer(infer, batch=batch, at_once=at_once, prompts=placed)

    return segment_with_answers(preprocessed, source, plan, answers, num_classes=num_classes, prompts=prompts)


def segment_with_answers(
    preprocessed: Volume,
    source: Geometry,
    plan: Plan,
    answers: Callable[[Window, GridPrompts | None], Iterable[np.ndarray]],
    *,
    num_classes: int,
    prompts: ScanPrompts | None = None,
) -> np.ndarray:
    """Labels [D, H, W] on `source` from the probabilities [K, *plan.patch] that `answers` gives for each patch.

    `answers` is called once, with the patches and with the prompts on the preprocessed grid. Each row of the labels is
    written as soon as the last patch that touches it has its answer: of the probabilities no more than one patch's
    thickness is ever held. Where the plan crops, what lies outside of the box is background.
    """
    grid = preprocessed.geometry
    if plan.crop == "content" and prompts is None:
        box = content_box(preprocessed.array)
        if box is None:
            return np.zeros(source.shape, label_dtype(num_classes))
        window = Window(preprocessed.array[(slice(None), *box)], plan.patch, plan.overlap, plan.blending)
        slabs = window.slabs(answers(window, None), num_classes=num_classes)
        return restore_slabs(slabs, grid, source, num_classes=num_classes, box=box)
    placed = prompts and prompts.onto(grid, scan=source, classes=num_classes)
    window = Window(preprocessed.array, plan.patch, plan.overlap, plan.blending)
    slabs = window.slabs(answers(window, placed), num_classes=num_classes)
    return restore_slabs(slabs, grid, source, num_classes=num_classes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A network with all that a scan's way to its labels needs: that of a package, or that of a run."""

    path: Path  # of the package or the run, as the user named it
    plan: Plan
    class_names: dict[int, str]  # by value, the background 0 included
    in_channels: int
    infer: Callable[..., Any]  # patches [N, C, *patch] to probabilities, as sliding_window.Window.infer has it
    at_once: int = 1  # patches that `infer` may work on in the background
    channel_names: tuple[str, ...] = ()  # such as "CT"; empty where the model does not say
    prompt_kinds: frozenset[str] = frozenset()  # those of prompts.KINDS that it takes; empty for none
    prompts_required: bool = False  # whether it finds nothing but what a prompt shows
    intensities: Sequence[Mapping[str, Any]] = ()  # what its training data look like, channel by channel
    temperature: float = 1.0  # that the probabilities which it gives away are scaled by
    frees_memory: bool = False  # whether `infer` gives its working memory back after every patch

    def facts(self) -> dict[str, Any]:
        """What a run report says of the model, as plain JSON values."""
        return {"model": self.path.name, "overlap": self.plan.overlap}

    def accept(self, kinds: frozenset[str] = frozenset()) -> None:
        """Raises UsageError for a network without prompts, and for prompts of kinds that it would ignore."""
        require_prompt_kinds(self.path, prompt_kinds=self.prompt_kinds, kinds=kinds)

    def require_prompts(self, prompts: ScanPrompts | None) -> None:
        """Raises UsageError for no prompts at all where the network finds nothing without."""
        if self.prompts_required and prompts is None:
            raise UsageError(
                f"{self.path}: this model segments only what it is shown; give --box or --point with --class "
                f"(one of {', '.join(name for value, name in self.class_names.items() if value)}), or --prompts FILE"
            )

    @property
    def small(self) -> Model | None:
        """The same network for smaller patches, where the model has one: for small scans, and where memory is short."""
        return None

    def fitting(self, shape: Triple) -> Model:
        """This model or its small one, whichever computes fewer voxels for a prepared scan of `shape`."""
        small = self.small
        if small is None:
            return self
        own, other = (computed_voxels(shape, each.patch, each.overlap) for each in (self.plan, small.plan))
        return self if own <= other else small

    def faster(self) -> Model:
        """The same model with patches that overlap by no more than a quarter: fewer of them, a little less exact."""
        if self.plan.overlap <= FAST_OVERLAP or self.plan.overlap >= 1:  # from 1 on it is a few voxels
            return self
        return replace(self, plan=replace(self.plan, overlap=FAST_OVERLAP))

    def preprocess(self, volume: Volume) -> Volume:
        """The network's input. Raises BadInputError for another number of channels and for values that the plan's
        intensity rules cannot scale.
        """
        if len(volume.array) != self.in_channels:
            raise BadInputError(f"the scan has {len(volume.array)} channels; this model expects {self.in_channels}.")
        return preprocess(volume, self.plan)

    def slabs(self, preprocessed: Volume) -> Iterator[tuple[int, np.ndarray]]:
        """The network's own probabilities of a preprocessed scan, slab by slab as sliding_window.Window has them."""
        if (model := self.fitting(preprocessed.geometry.shape)) is not self:
            return model.slabs(preprocessed)
        plan, array, num_classes = self.plan, preprocessed.array, len(self.class_names)
        whole = (slice(0, array.shape[1]), slice(0, array.shape[2]), slice(0, array.shape[3]))
        box = (content_box(array) if plan.crop == "content" else whole) or whole
        window = Window(array[(slice(None), *box)], plan.patch, plan.overlap, plan.blending)
        slabs = window.slabs(window.infer(self.infer, at_once=self.at_once), num_classes=num_classes)
        return slabs if box == whole else embedded(slabs, box, array.shape[1:], num_classes=num_classes)

    def probabilities(self, volume: Volume) -> tuple[np.ndarray, Geometry]:
        """Class probabilities float32 [K, D, H, W] at the model's temperature, and the grid that the network sees, on
        which they lie. Labels are made without the temperature: it changes no mask.

        Raises BadInputError as preprocess, UsageError for a network that finds nothing without prompts.
        """
        self.require_prompts(None)
        preprocessed = self.preprocess(volume)
        whole = np.empty((len(self.class_names), *preprocessed.geometry.shape), np.float32)
        for first, slab in self.slabs(preprocessed):
            whole[:, first : first + slab.shape[1]] = at_temperature(slab, self.temperature)
        return whole, preprocessed.geometry

    def segment_preprocessed(
        self,
        preprocessed: Volume,
        source: Geometry,
        *,
        prompts: ScanPrompts | None = None,
        infer: Callable[..., Any] | None = None,
        at_once: int | None = None,
    ) -> np.ndarray:
        """Labels [D, H, W] of a preprocessed scan on `source`, the grid that the scan came from, by the fitting model.

        `infer` and `at_once` take the place of the model's own. Raises BadInputError for a prompt outside the scan,
        UsageError as require_prompts.
        """
        self.require_prompts(prompts)
        if infer is None and (model := self.fitting(preprocessed.geometry.shape)) is not self:
            return model.segment_preprocessed(preprocessed, source, prompts=prompts, at_once=at_once)
        return segment_preprocessed(
            preprocessed,
            source,
            self.plan,
            infer or self.infer,
            num_classes=len(self.class_names),
            at_once=at_once or self.at_once,
            prompts=prompts,
        )

    def segment(self, volume: Volume, *, prompts: ScanPrompts | None = None) -> np.ndarray:
        """Labels [D, H, W] on the scan's own grid. Raises BadInputError as preprocess and segment_preprocessed do."""
        return self.segment_preprocessed(self.preprocess(volume), volume.geometry, prompts=prompts)
