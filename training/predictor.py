"""A torch network as the patch function that volumes.pipeline expects."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..volumes.prompts import PatchPrompts

# From arrays to what a promptable network takes: sam.prompt_tensors.Prompts.of.
ToNetwork = Callable[[PatchPrompts, torch.device], Any]


def patch_function(network: torch.nn.Module, *, to_network: ToNetwork | None = None) -> Callable[..., np.ndarray]:
    """Class probabilities of a network, patch by patch, on the device that holds its weights.

    The function maps float32 ``[N, C, *patch]`` to float32 probabilities ``[N, K, *patch]``; the network is put
    into evaluation mode at every call, so it can be used between training steps. With ``to_network`` it also takes
    PatchPrompts as a second argument; patches in which none lies are segmented automatically.
    """
    device = next(network.parameters()).device

    def infer(patches: np.ndarray, prompts: PatchPrompts | None = None) -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            image = torch.from_numpy(np.ascontiguousarray(patches)).to(device)
            if prompts is None or prompts.empty:
                logits = network(image)
            else:
                assert to_network is not None
                logits = network(image, to_network(prompts, device))
            return logits.float().softmax(1).cpu().numpy()

    return infer
