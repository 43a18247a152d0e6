"""A torch network as the patch function that volumes.pipeline expects."""

from collections.abc import Callable

import numpy as np
import torch


def patch_function(network: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Class probabilities of a network, patch by patch, on the device that holds its weights.

    The function maps float32 ``[N, C, *patch]`` to float32 probabilities ``[N, K, *patch]``; the network is put
    into evaluation mode at every call, so it can be used between training steps.
    """
    device = next(network.parameters()).device

    def infer(patches: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            logits = network(torch.from_numpy(np.ascontiguousarray(patches)).to(device))
            return logits.float().softmax(1).cpu().numpy()

    return infer
