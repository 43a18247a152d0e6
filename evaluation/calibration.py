"""Whether probabilities mean what they say: the expected calibration error (ECE), and the temperature that mends it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar

from ..volumes.geometry import Volume
from ..volumes.pipeline import Model
from ..volumes.preprocess import preprocess_labels
from ..volumes.temperature import HOTTEST, at_temperature, log_probabilities

BINS = 15
_FITTED = 1_000_000  # voxels that a temperature is fitted to, and of each part of a scan, evenly spread
_FITTED_OF_A_PART = 20_000


@dataclass(frozen=True, eq=False)
class ScoredVoxels:
    """The class probabilities [N, K] of N voxels, and their true classes [N]."""

    probabilities: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, truth: np.ndarray) -> "ScoredVoxels":
        """Those voxels of probabilities [K, D, H, W] that the truth [D, H, W] or the most probable class says are not
        background: the many that everybody knows to be background would make any network look calibrated.
        """
        chosen = (probabilities.argmax(axis=0) > 0) | (truth > 0)
        return cls(probabilities[:, chosen].T.astype(np.float64), truth[chosen].astype(np.intp))

    @classmethod
    def together(cls, parts: "Sequence[ScoredVoxels]") -> "ScoredVoxels":
        """The voxels of all parts, of which there is one at least."""
        return cls(
            np.concatenate([part.probabilities for part in parts]), np.concatenate([part.labels for part in parts])
        )

    def at(self, temperature: float) -> np.ndarray:
        """Their class probabilities [N, K] at a temperature."""
        return at_temperature(self.probabilities.T, temperature).T

    def thinned(self, count: int) -> "ScoredVoxels":
        """At most `count` of them, evenly spread."""
        step = max(1, -(-len(self.labels) // count))
        return ScoredVoxels(self.probabilities[::step], self.labels[::step])


def scored_voxels(model: Model, volume: Volume, truth: np.ndarray) -> Iterator[ScoredVoxels]:
    """The voxels of a scan, part by part, on the grid that the network sees; there its probabilities are.

    `truth` [D, H, W] are the labels on the scan's own grid.
    """
    labels = preprocess_labels(truth, volume.geometry, model.plan)
    done = 0  # a slab begins with the last row of the one before
    for first, probabilities in model.slabs(model.preprocess(volume)):
        stop = first + probabilities.shape[1]
        if stop > done:
            yield ScoredVoxels.of(probabilities[:, done - first :], labels[done:stop])
        done = max(done, stop)


def temperature_of(model: Model, cases: Iterable[tuple[Volume, np.ndarray]]) -> float:
    """The temperature of a model that scans with their truths [D, H, W] say."""
    parts = [part.thinned(_FITTED_OF_A_PART) for volume, truth in cases for part in scored_voxels(model, volume, truth)]
    return fit_temperature(ScoredVoxels.together(parts).thinned(_FITTED)) if parts else 1.0


@dataclass(eq=False)
class Reliability:
    """How often voxels are right, by how sure the network is: counts in 15 bins of equal width.

    A voxel's confidence is the probability of its most probable class. The expected calibration error is the mean over
    the voxels of |accuracy - confidence| of their bin (Guo et al. 2017, On calibration of modern neural networks).
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    confidences: np.ndarray = field(default_factory=lambda: np.zeros(BINS))  # summed in each bin
    hits: np.ndarray = field(default_factory=lambda: np.zeros(BINS))

    def add(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Count voxels of class probabilities [N, K] and true classes [N]."""
        confidence = probabilities.max(axis=1)
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # a bin holds its upper end
        self.counts += np.bincount(bins, minlength=BINS)
        self.confidences += np.bincount(bins, weights=confidence, minlength=BINS)
        self.hits += np.bincount(bins, weights=probabilities.argmax(axis=1) == labels, minlength=BINS)

    @property
    def error(self) -> float | None:
        """The expected calibration error, 0 to 1; None without a voxel."""
        total = self.counts.sum()
        return float(np.abs(self.hits - self.confidences).sum() / total) if total else None

    def curve(self) -> list[tuple[float, float]]:
        """(mean confidence, accuracy) of every bin that holds a voxel, from unsure to sure."""
        filled = self.counts > 0
        means = (values[filled] / self.counts[filled] for values in (self.confidences, self.hits))
        return list(zip(*(each.tolist() for each in means), strict=True))


def fit_temperature(voxels: ScoredVoxels) -> float:
    """The temperature, 1/20 to 20, at which the true classes are most probable (Guo et al. 2017).

    1 without a voxel. The logarithm of the likelihood is concave in 1 / temperature: there is one optimum.
    """
    if not len(voxels.labels):
        return 1.0
    unscaled = log_probabilities(voxels.probabilities)
    at_truth = unscaled[np.arange(len(voxels.labels)), voxels.labels]

    def mean_loss(inverse: float) -> float:
        logits = unscaled * inverse
        largest = logits.max(axis=1)
        return float(np.mean(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - at_truth * inverse))

    result = minimize_scalar(mean_loss, bounds=(1 / HOTTEST, HOTTEST), method="bounded", options={"xatol": 1e-5})
    return 1.0 / float(result.x)  # pyright: ignore[reportAttributeAccessIssue]
