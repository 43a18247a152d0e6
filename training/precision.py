"""The arithmetic of training, where the config leaves it to the card."""

from typing import Any

import torch
from torch import Tensor, nn

from ..configs.schema import Training


def with_precision(settings: Training) -> Training:
    """The settings with a precision for ``auto``: bf16-mixed on a CUDA card that computes in bfloat16, else float32.

    In bf16-mixed matrix products and convolutions are bfloat16; weights, norms, softmax, optimiser and the logits that
    every loss gets are float32.
    """
    if settings.precision != "auto":
        return settings
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return settings.model_copy(update={"precision": "bf16-mixed" if has_bf16 else "32-true"})


class MixedPrecision(nn.Module):
    """A network under the autocast that Fabric's bf16-mixed is, or in float32; its logits are float32."""

    def __init__(self, network: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.network, self.bf16 = network, bf16

    def forward(self, image: Tensor, prompts: Any = None) -> Tensor:
        """image [B, C, *patch], and prompts or None -> logits [B, K, *patch]."""
        inputs = (image,) if prompts is None else (image, prompts)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(*inputs).float()
