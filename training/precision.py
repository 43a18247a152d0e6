"""The arithmetic of training, where the config leaves it to the card."""

import torch

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
