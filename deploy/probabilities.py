"""What is converted: the student, rewritten for inference where it knows how, with its softmax."""

import copy

from torch import Tensor, nn


class Probabilities(nn.Module):
    """image [B, C, *patch] -> class probabilities [B, K, *patch]. A network with a method `for_inference` is taken as
    what that returns; the network itself is left as it is."""

    def __init__(self, network: nn.Module):
        super().__init__()
        rewrite = getattr(network, "for_inference", None)
        self.network = (rewrite() if rewrite else copy.deepcopy(network)).cpu().eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).softmax(1)
