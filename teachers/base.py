"""What every teacher is: a network around SAM's parts, most of it frozen."""

from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from ..errors import UsageError
from ..sam.checkpoints import LoadReport, load_published
from .freezing import adapter_names, freeze

Tune = Literal["adapters", "decoder", "all"]

# What comes after the image's features.
DECODING = ("prompt_encoder.", "shallow_prompts.", "slice_prompts.", "mask_decoder.")


class TeacherNetwork(nn.Module):
    """forward(image [B, C, D, H, W], prompts=None) -> logits [B, K, D, H, W], background first.

    `patch` is (D, H, W). `trainable` names, by prefix, the parts that are trained besides the adapters. `prompt_kinds`
    are those of volumes.prompts.KINDS that it takes, as `sam.prompt_tensors.Prompts`; others are refused. All teachers
    segment without prompts, but those with `prompts_required`, which then find nothing. `saved_frozen` names parameters
    that no longer learn, and that a checkpoint holds all the same: no published file has them. `tune` says what learns
    of a network that starts from a published file.
    """

    prompt_kinds: frozenset[str] = frozenset()
    prompts_required: bool = False
    trainable: ClassVar[tuple[str, ...]] = ("prompt_encoder.", "mask_decoder.")
    in_channels: int
    num_classes: int
    patch: tuple[int, int, int]
    saved_frozen: frozenset[str] = frozenset()
    tune: Tune = "adapters"

    def freeze_pretrained(self) -> None:
        """Freeze what `tune` does not train of a network that starts from a published file.

        "adapters": the adapters and the parts named in `trainable` learn, "decoder": prompt encoder and mask decoder
        alone, "all": everything.
        """
        if self.tune == "all":
            return
        self.freeze_to_adapters()
        if self.tune == "decoder":
            new = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            decoding = {name for name, _ in self.named_parameters() if name.startswith(DECODING)}
            self.saved_frozen = self.saved_frozen | (new - decoding)
            freeze(self, keep=decoding)

    def freeze_to_adapters(self) -> None:
        """Freeze SAM's image encoder; the adapters and the parts named in `trainable` stay trainable."""
        trainable = {name for name, _ in self.named_parameters() if name.startswith(self.trainable)}
        freeze(self, keep=adapter_names(self) | trainable)

    def freeze_encoder(self) -> None:
        """Freeze what makes the image's features: only prompt encoder and mask decoder go on learning."""
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.saved_frozen = frozenset(name for name in learning if not name.startswith(DECODING))
        freeze(self, keep=learning - self.saved_frozen)

    def load_pretrained(self, path: str | Path) -> LoadReport:
        """Fill SAM's parts from a published checkpoint; errors as in `sam.checkpoints.load_published`."""
        return load_published(self, path, added=adapter_names(self))


def check_tune(name: str, tune: str) -> Tune:
    """The choice of what learns. UsageError for another word."""
    choices: dict[str, Tune] = {"adapters": "adapters", "decoder": "decoder", "all": "all"}
    if tune not in choices:
        raise UsageError(f"{name}'s option tune is {tune!r}: choose one of {', '.join(choices)}")
    return choices[tune]
