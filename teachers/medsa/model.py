"""Medical SAM Adapter (Wu et al. 2025, arXiv 2304.12620), built as in the paper on SAM's own blocks."""

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import UsageError
from ...sam.base import Encoder, PromptEncoder
from ...sam.channels import to_three
from ...sam.checkpoints import LoadReport, canonical_state, read_state
from ...sam.image_shape import require_image
from ...sam.mask_decoder import AnyMaskDecoder, decode
from ...sam.presets import EncoderSize, get_encoder_size
from ...sam.prompt_encoder import build_prompt_encoder
from ...sam.prompt_tensors import Prompts
from ...sam.slice_prompts import SlicePrompts
from ...volumes.prompts import KINDS
from ..base import TeacherNetwork
from .adapters import Combination, Conditioning, check_choice
from .decoder import adapted_decoder
from .encoder import adapted_encoder, lora_encoder

CLASS_PARTS = ("mask_decoder.mask_tokens.", "mask_decoder.output_hypernetworks_mlps.")


class MedSA(TeacherNetwork):
    """Prompted and automatic segmentation, slice by slice, with SD-Trans across the slices in the image encoder.

    Slices fold into the batch. Every foreground class has a mask token and its hypernetwork; a class with a prompt is
    decoded with that prompt on all slices (see `SlicePrompts`), the others are decoded together without one, which is
    the paper's "everything" and what `prompts=None` does for all. The background's logit is 0. SAM's decoder ends at
    four times the embedding's size; its logits are resized to height and width bilinearly, as SAM's are.

    One input channel is repeated to SAM's three, other numbers go through a learned 1 x 1 convolution. `freeze_base`
    leaves the adapters trainable, the code of prompts on other slices, and the class tokens with their hypernetworks;
    SAM is frozen, its prompt encoder too.
    """

    prompt_kinds = KINDS
    trainable = CLASS_PARTS

    def __init__(
        self,
        *,
        image_encoder: Encoder,
        prompt_encoder: PromptEncoder,
        slice_prompts: SlicePrompts,
        mask_decoder: AnyMaskDecoder,
        along_depth: bool,
        in_channels: int,
        patch: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.slice_prompts = slice_prompts
        self.mask_decoder = mask_decoder
        self.along_depth = along_depth
        self.in_channels = in_channels
        self.num_classes = 1 + mask_decoder.masks
        self.patch = patch
        self.to_three = to_three(in_channels)

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Tensor:
        """image [B, C, D, H, W], any D -> logits [B, K, D, H, W]. UsageError for another shape of either."""
        require_image(image, network="medsa", channels=self.in_channels, patch=self.patch)
        batch, depth = image.shape[0], image.shape[2]
        groups = self._groups(prompts, batch)
        slices = self.to_three(image.transpose(1, 2).flatten(0, 1)).expand(-1, 3, -1, -1)
        embedding = self.image_encoder(slices, *((depth,) if self.along_depth else ()))
        maps: dict[tuple[int, int], Tensor] = {}
        for pairs in groups:
            maps |= self._prompted(embedding.unflatten(0, (batch, depth)), prompts, pairs)
        if len(maps) < batch * (self.num_classes - 1):
            automatic = self._decode(embedding, self.prompt_encoder.no_clicks()).unflatten(0, (batch, depth))
            for row in range(batch):
                for index in range(self.num_classes - 1):
                    maps.setdefault((row, index), automatic[row, :, index])
        low = torch.stack([maps[pair] for pair in sorted(maps)]).unflatten(0, (batch, -1))  # [B, K - 1, D, h, w]
        full = interpolate(low.flatten(0, 1), tuple(self.patch[1:]), mode="bilinear", align_corners=False)
        full = full.unflatten(0, (batch, -1))
        return torch.cat([torch.zeros_like(full[:, :1]), full], dim=1)

    def _groups(self, prompts: Prompts | None, batch: int) -> list[list[tuple[int, int]]]:
        """The (case, class) pairs that have a prompt; those of one group have as many points and all or none a box."""
        if prompts is None:
            return []
        prompts.check("medsa", cases=batch, classes=self.num_classes)
        groups = defaultdict(list)
        counts, boxed = (prompts.labels >= 0).sum(-1).tolist(), (~prompts.boxes.isnan().any(-1)).tolist()
        most = self.prompt_encoder.max_points
        for row in range(batch):
            for index in range(self.num_classes - 1):
                points, box = counts[row][index], boxed[row][index]
                if most is not None and points + 2 * box > most:
                    raise UsageError(
                        f"class {index + 1} has {points} points{' and a box' if box else ''}: EfficientSAM's prompts "
                        f"hold {most} points, a box counting for two; give fewer, or use another backbone"
                    )
                if points or box:
                    groups[points, box].append((row, index))
        return list(groups.values())

    def _prompted(
        self, embedding: Tensor, prompts: Prompts | None, pairs: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Tensor]:
        """embedding [B, D, C, h, w] -> the class's map [D, 4 h, 4 w] for each of the pairs."""
        assert prompts is not None
        rows, classes = torch.tensor(pairs, device=embedding.device).unbind(1)
        labels, boxes = prompts.labels[rows, classes], prompts.boxes[rows, classes]
        given = labels >= 0
        points = prompts.points[rows, classes][given].unflatten(0, (len(pairs), -1))
        labels = labels[given].unflatten(0, (len(pairs), -1))
        with torch.autocast(embedding.device.type, enabled=False):  # bfloat16 would move the clicks
            tokens = self.slice_prompts(
                self.prompt_encoder, points, labels, None if boxes.isnan().any() else boxes, embedding.shape[1]
            )
        logits = self._decode(embedding[rows].flatten(0, 1), tokens).unflatten(0, (len(pairs), -1))
        return {pair: logits[number, :, pair[1]] for number, pair in enumerate(pairs)}

    def _decode(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """embedding [N, C, h, w], prompt tokens [N or 1, T, C] -> logits of all classes but 0: [N, K - 1, 4 h, 4 w]."""
        return decode(self.mask_decoder, self.prompt_encoder, embedding, tokens)[0]

    def train(self, mode: bool = True) -> "MedSA":
        """As ever, but frozen batch norms (MobileSAM's) keep the statistics of the published weights."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def load_base(self, path: str | Path) -> LoadReport:
        """Fill SAM's parts from a published checkpoint; errors as in `sam.checkpoints.load_published`.

        Every class starts as SAM's first mask, the one for clear prompts.
        """
        report = super().load_base(path)
        if report.reinitialised:
            state = canonical_state(read_state(path))
            for name in report.reinitialised:
                if name.startswith(CLASS_PARTS):
                    first = state[_of_first_mask(name)]
                    self.state_dict()[name].copy_(first[:1] if "mask_tokens" in name else first)
        return report


def _of_first_mask(name: str) -> str:
    prefix = CLASS_PARTS[1]
    return f"{prefix}0.{name.removeprefix(prefix).split('.', 1)[1]}" if name.startswith(prefix) else name


def build_medsa(
    *,
    backbone: str | EncoderSize,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    adapter: Literal["bottleneck", "lora"] = "bottleneck",
    rank: int = 64,
    scale: float = 0.05,
    sd_trans: Combination | None = None,
    conditioning: Conditioning = "hyper",
    zero_init: bool = True,
    checkpointing: bool = False,
) -> MedSA:
    """Med-SA for a patch (D, H, W) of 1 or 3 channels and `num_classes` classes, background included.

    `rank` is that of all adapters, `scale` the paper's s of those parallel to an MLP. `sd_trans` says how space and
    depth come together: "add" (the default), "concatenate", "cross" (attention), or "none" for slices on their own.
    `conditioning` is how the decoder's first adapter knows the prompt: "hyper" (HyP-Adpt), "add" or "concatenate".
    `adapter="lora"` is a control: LoRA in the image encoder instead of its adapters, and no depth branch, which would
    have no adapter to enter by.

    UsageError: other channels, no foreground class, an unknown choice, a rank below 1, or a height or width that the
    backbone's token size does not divide.
    """
    if in_channels < 1:
        raise UsageError(f"medsa got in_channels={in_channels}: give 1 or more")
    if num_classes < 2:
        raise UsageError(f"medsa got num_classes={num_classes}: give at least 2, the background and a foreground class")
    if rank < 1:
        raise UsageError(f"medsa's option rank is {rank}: give 1 or more; the paper's is 64")
    check_choice("adapter", adapter, ("bottleneck", "lora"))
    if adapter == "lora" and sd_trans not in (None, "none"):
        raise UsageError(
            f"medsa with adapter='lora' has no adapter by which the depth branch {sd_trans!r} could enter: "
            "leave sd_trans out, or use adapter='bottleneck'"
        )
    combination: Combination = sd_trans or ("add" if adapter == "bottleneck" else "none")
    size = get_encoder_size(backbone)
    image_size = (patch[1], patch[2])
    shared: dict[str, Any] = {"rank": rank, "zero_init": zero_init}
    encoder: dict[str, Any] = {"image_size": image_size, "checkpointing": checkpointing, **shared}
    return MedSA(
        image_encoder=lora_encoder(size, **encoder)
        if adapter == "lora"
        else adapted_encoder(size, scale=scale, combination=combination, **encoder),
        prompt_encoder=build_prompt_encoder(size, image_size=image_size),
        slice_prompts=SlicePrompts(size.out_chans),
        mask_decoder=adapted_decoder(size, masks=num_classes - 1, scale=scale, conditioning=conditioning, **shared),
        along_depth=combination != "none",
        in_channels=in_channels,
        patch=patch,
    )
