"""Small students of LiteMedSAM that segment whatever a prompt shows: another encoder before the same decoder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BadInputError
from ...sam.checkpoints import NOTHING, LoadReport, canonical_state, load_published, read_state
from ...sam.families import recognise
from ...sam.presets import EncoderSize
from ...sam.prompted_sam import PromptedSAM, prompted_parts

PROMPTED_ENCODERS = {"prompted-mobilesam": "mobile_vit_t_p4", "prompted-efficientsam-ti": "efficient_vit_ti_p4"}
DECODING = ("prompt_encoder.", "mask_decoder.")


class PromptedStudent(PromptedSAM):
    """The teacher's prompt encoder and mask decoder behind a small encoder that gives the teacher's embedding.

    No part of it knows classes, so it segments those that it never saw, as far as the teacher does.
    """

    def load_pretrained(self, path: str | Path) -> LoadReport:
        """Start from a published LiteMedSAM, or fill everything from a file of this student's own kind.

        Of LiteMedSAM it takes prompt encoder and mask decoder, and what the coarse encoder has of the same shape. That
        is all of a TinyViT, where the kernels of the stem, 1 x 1 there, are spread over the pixels of the larger ones
        here, so that it begins as LiteMedSAM on a picture of a quarter of the size. BadInputError for a file without
        these; errors as in `sam.checkpoints.read_state`.
        """
        state, own = canonical_state(read_state(path)), self.state_dict()
        if any(key.startswith("image_encoder.coarse.") for key in state):
            return load_published(self, path, replaced=NOTHING)
        values = _shared(state, own)
        needed = [key for key in own if key.startswith(DECODING)]
        if missing := [key for key in needed if key not in values]:
            raise BadInputError(
                f"{path}: these weights ({recognise(state)}) have no {missing[0]} of this student's shape, and "
                f"{len(missing) - 1} other tensors of prompt encoder and mask decoder; give LiteMedSAM's file, or one "
                "of this student's own"
            )
        self.load_state_dict(values, strict=False)
        taken = {_here(key) for key in state} & values.keys()
        return LoadReport(
            variant=recognise(state),
            loaded=tuple(values),
            interpolated=(),
            reinitialised=(),
            added=tuple(key for key in own if key not in values),
            dropped=tuple(key for key in state if _here(key) not in taken),
        )


def _here(key: str) -> str:
    """The name in this student of a published file's tensor."""
    return key.replace("image_encoder.", "image_encoder.coarse.")


def _shared(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under this student's names, where it has them in the same shape."""
    values = {}
    for key, value in state.items():
        target = own.get(_here(key))
        if target is not None and value.ndim == 4 and value.shape[2:] == (1, 1) and target.shape[:2] == value.shape[:2]:
            value = value.expand(target.shape) / torch.numel(target[0, 0])
        if target is not None and value.shape == target.shape:
            values[_here(key)] = value
    return values


def build_prompted(
    encoder: str | EncoderSize, *, in_channels: int, num_classes: int, patch: tuple[int, int, int]
) -> PromptedStudent:
    """The student around an image encoder (its name or sizes); errors as in sam.prompted_sam.prompted_parts."""
    parts = prompted_parts(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch)
    return PromptedStudent(**parts)


def build_prompted_mobilesam(*, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> PromptedStudent:
    """MobileSAM's TinyViT before LiteMedSAM's decoder. Errors as in build_prompted."""
    encoder = PROMPTED_ENCODERS["prompted-mobilesam"]
    return build_prompted(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch)


def build_prompted_efficientsam_ti(
    *, in_channels: int, num_classes: int, patch: tuple[int, int, int]
) -> PromptedStudent:
    """EfficientSAM's tiny ViT before LiteMedSAM's decoder. Errors as in build_prompted."""
    encoder = PROMPTED_ENCODERS["prompted-efficientsam-ti"]
    return build_prompted(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch)
