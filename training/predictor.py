"""A torch network as the predictor of patches that volumes.pipeline expects."""

from collections.abc import Callable

import numpy as np
import torch

from ..sam.prompt_tensors import Prompts
from ..volumes.prompts import PatchPrompts
from .prompts_per_slice import boxes_as_corners


def make_predictor(network: torch.nn.Module) -> Callable[..., np.ndarray]:
    """Class probabilities of a network, patch by patch, on the device that holds its weights.

    The function maps float32 ``[N, C, *patch]`` to float32 probabilities ``[N, K, *patch]``; the network is put
    into evaluation mode at every call, so it can be used between training steps. PatchPrompts may be its second
    argument, for a network that takes their kinds; patches in which none lies are segmented automatically. A network
    with ``prompts_per_slice`` is shown every slice's own box.
    """
    device = next(network.parameters()).device
    per_slice = getattr(network, "prompts_per_slice", False)

    def predict(patches: np.ndarray, prompts: PatchPrompts | None = None) -> np.ndarray:
        network.eval()
        if prompts is not None and per_slice:
            prompts = boxes_as_corners(prompts, depth=patches.shape[2])
        with torch.inference_mode():
            image = torch.from_numpy(np.ascontiguousarray(patches)).to(device)
            shown = () if prompts is None or prompts.empty else (Prompts.of(prompts, device),)
            logits = network(image, *shown)
            return logits.float().softmax(1).cpu().numpy()

    return predict
