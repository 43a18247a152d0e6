"""Temperature scaling of class probabilities (Guo et al. 2017): surer or less sure, with the same class on top."""

import numpy as np

HOTTEST = 20.0  # temperatures lie between its inverse and it
_SMALLEST = 1e-12  # a probability below it counts as this one: its logarithm is finite


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """The logarithm of class probabilities: logits, up to a constant in each voxel."""
    return np.log(np.maximum(probabilities, _SMALLEST))


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Class probabilities [K, ...] whose logits are divided by a temperature; at 1 they are returned as they are.

    The most probable class stays it: above 1 the others come nearer, below 1 they fall behind.
    """
    if temperature == 1.0:
        return probabilities
    logits = log_probabilities(probabilities) / probabilities.dtype.type(temperature)
    scaled = np.exp(logits - logits.max(axis=0))
    return scaled / scaled.sum(axis=0)
