"""What every teacher is: a network around SAM's parts, most of it frozen."""

from pathlib import Path
from typing import ClassVar

from torch import nn

from ..sam.checkpoints import LoadReport, load_published
from ..sam.prompt_tensors import Prompts
from .adapters import adapter_names, freeze

DECODING = ("prompt_encoder.", "slice_prompts.", "mask_decoder.")  # what comes after the image's features


class Teacher(nn.Module):
    """forward(image [B, C, D, H, W], prompts=None) -> logits [B, K, D, H, W], background first.

    `patch` is (D, H, W). `tuned` names, by prefix, the parts that are trained besides the adapters. `promptable` says
    whether it takes `sam.prompt_tensors.Prompts`, `unused_prompts` those of volumes.prompts.KINDS that it would ignore,
    which are refused instead; all segment without. `held` names parameters that no longer learn, and that a checkpoint
    holds all the same: no published file has them.
    """

    promptable: ClassVar[bool] = False
    unused_prompts: ClassVar[frozenset[str]] = frozenset()
    prompts_of = staticmethod(Prompts.of)
    tuned: ClassVar[tuple[str, ...]] = ("prompt_encoder.", "mask_decoder.")
    in_channels: int
    num_classes: int
    patch: tuple[int, int, int]
    held: frozenset[str] = frozenset()

    def freeze_base(self) -> None:
        """Freeze SAM's image encoder; the adapters and the parts named in `tuned` stay trainable."""
        tuned = {name for name, _ in self.named_parameters() if name.startswith(self.tuned)}
        freeze(self, keep=adapter_names(self) | tuned)

    def hold_encoder(self) -> None:
        """Freeze what makes the image's features: only prompt encoder and mask decoder go on learning."""
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.held = frozenset(name for name in learning if not name.startswith(DECODING))
        freeze(self, keep=learning - self.held)

    def load_base(self, path: str | Path) -> LoadReport:
        """Fill SAM's parts from a published checkpoint; errors as in `sam.checkpoints.load_published`."""
        return load_published(self, path, added=adapter_names(self))
