"""A promptable student on the device: an encoder that sees a patch once, and a decoder for every prompt after that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from ...errors import UsageError
from ...volumes.geometry import Geometry, Volume
from ...volumes.pipeline import segment_with_answers
from ...volumes.plan import Plan
from ...volumes.prompts import GridPrompts, PatchPrompts, ScanPrompts
from ...volumes.sliding_window import Window, patch_count
from .engine import Engine

Decoded = dict[int, tuple[bytes, np.ndarray]]  # by class: the prompts and its logits; 0: no prompts, all classes
_NO_POINT = -1
_KEPT = 1 << 29  # bytes


class Promptable:
    """Two graphs as one engine: patches float32 [N, C, *patch], and prompts that lie in them, to class probabilities
    float32 [N, K, *patch].

    Without prompts all classes are decoded at once; a class with prompts is decoded once more with them and takes its
    own map from there, as in students.small_sam.model. `points` is how many the decoder takes of a class in a patch;
    with `required` it is one, or a box.
    """

    def __init__(self, encoder: Engine, decoder: Engine, *, points: int, required: bool = False):
        self.encoder, self.decoder, self.points, self.required = encoder, decoder, points, required
        self.version, self.precision, self.threads = encoder.version, encoder.precision, encoder.threads

    def __call__(self, patches: np.ndarray, prompts: PatchPrompts | None = None) -> np.ndarray:
        return self.begin(patches, prompts)()

    def begin(self, patches: np.ndarray, prompts: PatchPrompts | None = None) -> Callable[[], np.ndarray]:
        """Start encoding; the function returned waits for it, decodes, and must be called once."""
        embedding = self.encoder.begin(patches)
        return lambda: self.decode(embedding(), prompts)

    def decode(
        self, embedding: np.ndarray, prompts: PatchPrompts | None = None, known: Decoded | None = None
    ) -> np.ndarray:
        """Probabilities of patches that were encoded before. Raises UsageError for more points than it takes.

        What stands in `known` is not decoded again; what is decoded is left there.
        """
        known = {} if known is None else known
        if 0 not in known:
            count = len(embedding)
            nothing = np.zeros((count, self.points, 3)), np.full((count, self.points), _NO_POINT)
            known[0] = b"", self.decoder(embedding, *nothing, np.full((count, 6), np.nan))
        logits = known[0][1].copy()
        for value, *given in _of_classes(prompts, self.points, alone=self.required):
            key = b"".join(part.tobytes() for part in given)
            if value not in known or known[value][0] != key:
                known[value] = key, self.decoder(embedding, *given)[:, value].copy()
            logits[:, value] = known[value][1]
        return _softmax(logits)

    def layer_precisions(self) -> dict[str, int]:
        return dict(Counter(self.encoder.layer_precisions()) + Counter(self.decoder.layer_precisions()))


class Session:
    """A preprocessed scan and the embeddings of its patches: another prompt costs decoding its class where it lies.

    Embeddings are kept, and up to _KEPT bytes of decoded maps. `source` is the grid of the scan and of the labels.
    `watch` is called with the fraction of the patches that are encoded, before each; what it raises ends the call, and
    the next one goes on from there.
    """

    def __init__(
        self,
        engine: Promptable,
        plan: Plan,
        preprocessed: Volume,
        source: Geometry,
        *,
        num_classes: int,
        watch: Callable[[float], None] | None = None,
    ) -> None:
        self._engine, self._plan, self._num_classes = engine, plan, num_classes
        self._preprocessed, self._source, self._watch = preprocessed, source, watch
        self._embeddings: list[np.ndarray] = []  # by the number of the patch
        self._decoded: list[Decoded] = []  # by the number of the patch

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, or will once all patches are encoded and decoded."""
        patches = patch_count(self._preprocessed.geometry.shape, self._plan.patch, self._plan.overlap)
        embeddings = patches * self._embeddings[0].nbytes if self._embeddings else 0
        decoded = min(_KEPT, patches * self._bytes_of_a_patch)
        return self._preprocessed.array.nbytes + embeddings + decoded

    @property
    def _bytes_of_a_patch(self) -> int:
        return 4 * 2 * self._num_classes * prod(self._plan.patch)

    def labels(self, prompts: ScanPrompts | None = None) -> np.ndarray:
        """Labels [D, H, W]. Raises BadInputError for a prompt outside the scan, UsageError for too many in a patch."""
        return segment_with_answers(
            self._preprocessed,
            self._source,
            self._plan,
            self._answers,
            num_classes=self._num_classes,
            prompts=prompts,
        )

    def _answers(self, window: Window, prompts: GridPrompts | None) -> Iterator[np.ndarray]:
        """Probabilities [K, *patch] of each patch, which is encoded the first time only."""
        for number in range(len(window)):
            if number == len(self._embeddings):
                if self._watch is not None:
                    self._watch(number / len(window))
                self._embeddings.append(self._engine.encoder(window.patches([number])))
                self._decoded.append({})
            decoded = self._decoded[number] if (number + 1) * self._bytes_of_a_patch <= _KEPT else None
            patch_prompts = None if prompts is None else window.prompts_in([number], prompts)
            yield self._engine.decode(self._embeddings[number], patch_prompts, decoded)[0]


def _of_classes(
    prompts: PatchPrompts | None, most: int, *, alone: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(class, points [N, most, 3], labels [N, most], boxes [N, 6]) of every class with a prompt in some patch.

    Raises UsageError for more points than `most`, and with `alone` for a point beside a box.
    """
    if prompts is None:
        return
    given = (prompts.labels >= 0).any(axis=-1) | ~np.isnan(prompts.boxes).any(axis=-1)
    for value in (1 + np.flatnonzero(given.any(axis=0))).tolist():
        points, labels = prompts.points[:, value - 1], prompts.labels[:, value - 1]
        if (count := int((labels >= 0).sum(axis=-1).max(initial=0))) > most:
            raise UsageError(f"class {value} has {count} points in one patch, this student takes {most}: give fewer")
        if alone and ((labels >= 0).any(axis=-1) & ~np.isnan(prompts.boxes[:, value - 1]).any(axis=-1)).any():
            raise UsageError(f"class {value} has a point beside a box in one patch: give one point or one box a slice")
        order = np.argsort(labels < 0, axis=-1, kind="stable")[:, :most]  # those that are given first
        rest = most - order.shape[1]
        points = np.take_along_axis(points, order[..., None], axis=1)
        labels = np.take_along_axis(labels, order, axis=1)
        yield (
            value,
            np.pad(points, ((0, 0), (0, rest), (0, 0))),
            np.pad(labels, ((0, 0), (0, rest)), constant_values=_NO_POINT),
            prompts.boxes[:, value - 1],
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the classes, axis 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
