"""Medical SAM Adapter (Wu et al. 2025, arXiv 2304.12620), built as in the paper on SAM's own blocks."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import UsageError
from ...sam.base import TOP_LEFT, Encoder, PromptEncoder
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
from ..freezing import freeze
from .adapters import Combination, Conditioning, Places, check_choice
from .decoder import adapted_decoder
from .encoder import adapted_encoder, lora_encoder

ClassTokens = Literal["trained", "frozen"]
CLASS_PARTS = ("mask_decoder.mask_tokens.", "mask_decoder.output_hypernetworks_mlps.")


class MedSA(TeacherNetwork):
    """Prompted and automatic segmentation, slice by slice, with SD-Trans across the slices in the image encoder.

    Slices fold into the batch. Every foreground class has a mask token and its hypernetwork; a class with a prompt is
    decoded with that prompt on all slices (see `SlicePrompts`), the others are decoded together without one, which is
    the paper's "everything" and what `prompts=None` does for all. The background's logit is 0. SAM's decoder ends at
    four times the embedding's size; its logits are resized to height and width bilinearly, as SAM's are.

    One input channel is repeated to SAM's three, other numbers go through a learned 1 x 1 convolution.
    `freeze_pretrained` leaves the adapters trainable, the code of prompts on other slices, and the class tokens with
    their hypernetworks; SAM is frozen, its prompt encoder too. With `class_tokens` "frozen" the adapters alone learn,
    as in the paper. If `records_iou`, a pass leaves the IoU that the decoder predicts for the masks as `predicted_iou`
    [B, K - 1, D], and the head that predicts it learns.
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
        class_tokens: ClassTokens = "trained",
        records_iou: bool = False,
        prompts_per_slice: bool = False,
    ) -> None:
        super().__init__()
        self.class_tokens = class_tokens
        self.records_iou = records_iou
        self.prompts_per_slice = prompts_per_slice
        self.predicted_iou: Tensor | None = None
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
        ious: dict[tuple[int, int], Tensor] = {}
        for pairs in groups:
            prompted, iou = self._prompted(embedding.unflatten(0, (batch, depth)), prompts, pairs)
            maps |= prompted
            ious |= iou
        if len(maps) < batch * (self.num_classes - 1):
            masks, scores = self._decode(embedding, self.prompt_encoder.no_clicks())
            automatic, score = masks.unflatten(0, (batch, depth)), scores.unflatten(0, (batch, depth))
            for row in range(batch):
                for index in range(self.num_classes - 1):
                    maps.setdefault((row, index), automatic[row, :, index])
                    ious.setdefault((row, index), score[row, :, index])
        if self.records_iou:
            self.predicted_iou = torch.stack([ious[pair] for pair in sorted(ious)]).unflatten(0, (batch, -1))
        low = torch.stack([maps[pair] for pair in sorted(maps)]).unflatten(0, (batch, -1))  # [B, K - 1, D, h, w]
        full = interpolate(low.flatten(0, 1), tuple(self.patch[1:]), mode="bilinear", align_corners=False)
        full = full.unflatten(0, (batch, -1))
        return torch.cat([torch.zeros_like(full[:, :1]), full], dim=1)

    def freeze_to_adapters(self) -> None:
        """Freeze all but the adapters, and what belongs to the classes unless that is frozen, too."""
        super().freeze_to_adapters()
        if self.records_iou:
            self.get_submodule("mask_decoder.iou_prediction_head").requires_grad_(True)
        if self.class_tokens == "frozen":
            frozen = (*CLASS_PARTS, "slice_prompts.")
            learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            self.saved_frozen = frozenset(name for name in learning if name.startswith(frozen))
            freeze(self, keep=learning - self.saved_frozen)

    def _groups(self, prompts: Prompts | None, batch: int) -> list[list[tuple[int, int]]]:
        """The (case, class) pairs that have a prompt; those of one group have as many points and all or none a box."""
        if prompts is None:
            return []
        prompts.check("medsa", cases=batch, classes=self.num_classes)
        groups = defaultdict(list)
        if self.prompts_per_slice:
            return self._groups_of_own_slices(prompts)
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

    def _groups_of_own_slices(self, prompts: Prompts) -> list[list[tuple[int, int]]]:
        """The (case, class) pairs that have a prompt: with a box, with boxes of single slices, with points alone."""
        boxed = ~prompts.boxes.isnan().any(-1)
        pointed = (prompts.labels >= 0).any(-1)
        most = self.prompt_encoder.max_points
        slices = prompts.points[..., 0].round()[..., None, :] == prompts.points[..., 0].round()[..., None]
        fullest = int((slices & (prompts.labels >= 0)[..., None, :]).sum(-1).max()) + 2 * bool(boxed.any())
        if most is not None and fullest > most:
            raise UsageError(
                f"a slice has {fullest} points, a box counting for two: EfficientSAM's prompts hold {most}; give "
                "fewer, or use another backbone"
            )
        cornered = (prompts.labels >= TOP_LEFT).any(-1)
        pairs = (boxed, cornered & ~boxed, pointed & ~boxed & ~cornered)
        return [[(row, index) for row, index in pair.nonzero().tolist()] for pair in pairs if pair.any()]

    def _prompted(
        self, embedding: Tensor, prompts: Prompts | None, pairs: list[tuple[int, int]]
    ) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]]:
        """embedding [B, D, C, h, w] -> for each pair the class's map [D, 4 h, 4 w], and its predicted IoU [D]."""
        assert prompts is not None
        rows, classes = torch.tensor(pairs, device=embedding.device).unbind(1)
        labels, boxes = prompts.labels[rows, classes], prompts.boxes[rows, classes]
        box = None if boxes.isnan().any() else boxes
        depth = embedding.shape[1]
        if self.prompts_per_slice:
            with torch.autocast(embedding.device.type, enabled=False):
                tokens = self.slice_prompts.of_own_slice(
                    self.prompt_encoder, prompts.points[rows, classes], labels, box, depth
                )
            return self._decoded_pairs(embedding, tokens, pairs)
        given = labels >= 0
        points = prompts.points[rows, classes][given].unflatten(0, (len(pairs), -1))
        labels = labels[given].unflatten(0, (len(pairs), -1))
        with torch.autocast(embedding.device.type, enabled=False):  # bfloat16 would move the clicks
            tokens = self.slice_prompts(self.prompt_encoder, points, labels, box, depth)
        return self._decoded_pairs(embedding, tokens, pairs)

    def _decoded_pairs(
        self, embedding: Tensor, tokens: Tensor, pairs: list[tuple[int, int]]
    ) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]]:
        """embedding [B, D, C, h, w], tokens [pairs * D, T, C] -> map and predicted IoU of each (case, class) pair."""
        rows = torch.tensor(pairs, device=embedding.device)[:, 0]
        logits, iou = self._decode(embedding[rows].flatten(0, 1), tokens)
        logits, iou = logits.unflatten(0, (len(pairs), -1)), iou.unflatten(0, (len(pairs), -1))
        return (
            {pair: logits[number, :, pair[1]] for number, pair in enumerate(pairs)},
            {pair: iou[number, :, pair[1]] for number, pair in enumerate(pairs)},
        )

    def _decode(self, embedding: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """embedding [N, C, h, w], prompt tokens [N or 1, T, C] -> logits of all classes but 0 [N, K - 1, 4 h, 4 w] and
        their predicted IoU [N, K - 1].
        """
        return decode(self.mask_decoder, self.prompt_encoder, embedding, tokens)

    def train(self, mode: bool = True) -> "MedSA":
        """As ever, but frozen batch norms (MobileSAM's) keep the statistics of the published weights."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def load_pretrained(self, path: str | Path) -> LoadReport:
        """Fill SAM's parts from a published checkpoint; errors as in `sam.checkpoints.load_published`.

        Every class starts as SAM's first mask, the one for clear prompts.
        """
        report = super().load_pretrained(path)
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
    hyper_width: int | None = None,
    adapters: Places = "both",
    layers: Sequence[int] | None = None,
    class_tokens: ClassTokens = "trained",
    iou_head: bool = False,
    slice_prompts: Literal["codes", "own"] = "codes",
    zero_init: bool = True,
    checkpointing: bool = False,
) -> MedSA:
    """Med-SA for a patch (D, H, W) of 1 or 3 channels and `num_classes` classes, background included.

    `rank` is that of all adapters, `scale` the paper's s of those parallel to an MLP. `sd_trans` says how space and
    depth come together: "add" (the default: both enter the adapter), "add_output" (the paper's: depth is added to the
    attention's output), "concatenate", "concatenate_halves" (without parameters), "cross" (attention), or "none" for
    slices on their own. `conditioning` is how the decoder's first adapter knows the prompt: "hyper" (HyP-Adpt), "add",
    "concatenate", or "none". `hyper_width` is the fixed length of HyP-Adpt's inner embeddings (the paper's Table 7a
    grows as with 64); without it is the rank. The encoder's `adapters` are behind the attention, parallel to the MLP
    ("mlp") or both, in all blocks or in `layers` first to last, counted from 1. `class_tokens` are "trained" along, or
    "frozen" at SAM's first mask. With `iou_head` the decoder's prediction of its masks' IoU learns (training's
    `iou_weight`). With `slice_prompts` "codes" a prompt is known on all slices by codes of the distance, with "own" on
    its own slice alone, as in the paper, where every slice has one. `adapter="lora"` is a control: LoRA in the image
    encoder instead of its adapters, and no depth branch, which would have no adapter to enter by.

    UsageError: other channels, no foreground class, an unknown choice, a rank below 1, or a height or width that the
    backbone's token size does not divide.
    """
    if in_channels < 1:
        raise UsageError(f"medsa got in_channels={in_channels}: give 1 or more")
    if num_classes < 2:
        raise UsageError(f"medsa got num_classes={num_classes}: give at least 2, the background and a foreground class")
    if rank < 1:
        raise UsageError(f"medsa's option rank is {rank}: give 1 or more; the paper's is 64")
    check_choice("class_tokens", class_tokens, get_args(ClassTokens))
    check_choice("slice_prompts", slice_prompts, ("codes", "own"))
    if hyper_width is not None and (hyper_width < 1 or conditioning != "hyper"):
        raise UsageError(
            f"medsa's option hyper_width is {hyper_width} with conditioning={conditioning!r}: give 1 or more, with "
            "conditioning='hyper'"
        )
    combination = _combination(sd_trans, adapter=adapter, adapters=adapters, layers=layers)
    size = get_encoder_size(backbone)
    image_size = (patch[1], patch[2])
    shared: dict[str, Any] = {"rank": rank, "zero_init": zero_init}
    encoder: dict[str, Any] = {"image_size": image_size, "checkpointing": checkpointing, **shared}
    if adapter == "lora":
        image_encoder = lora_encoder(size, **encoder)
    else:
        blocks = (layers[0], layers[1]) if layers else None
        image_encoder = adapted_encoder(
            size, scale=scale, combination=combination, places=adapters, layers=blocks, **encoder
        )
    return MedSA(
        image_encoder=image_encoder,
        prompt_encoder=build_prompt_encoder(size, image_size=image_size),
        slice_prompts=SlicePrompts(size.out_chans),
        mask_decoder=adapted_decoder(
            size,
            masks=num_classes - 1,
            scale=scale,
            conditioning=conditioning,
            hyper_width=hyper_width,
            **shared,
        ),
        along_depth=combination != "none",
        in_channels=in_channels,
        patch=patch,
        class_tokens=class_tokens,
        records_iou=iou_head,
        prompts_per_slice=slice_prompts == "own",
    )


def _combination(
    sd_trans: Combination | None, *, adapter: str, adapters: Places, layers: Sequence[int] | None
) -> Combination:
    """How space and depth come together. UsageError for choices that leave the depth branch no place to enter by."""
    check_choice("adapter", adapter, ("bottleneck", "lora"))
    check_choice("adapters", adapters, get_args(Places))
    if layers is not None and len(layers) != 2:
        raise UsageError(f"medsa's option layers is {list(layers)}: give the first and the last block")
    lora = adapter == "lora"
    if lora and (adapters != "both" or layers is not None):
        raise UsageError("medsa with adapter='lora' has no other adapters: leave the options adapters and layers out")
    enters = not lora and adapters != "mlp"
    if not enters and sd_trans not in (None, "none") and (lora or sd_trans != "add_output"):
        choice = f"adapter={adapter!r}" if lora else f"adapters={adapters!r}"
        raise UsageError(
            f"medsa with {choice} has no adapter by which "
            f"the depth branch {sd_trans!r} could enter: leave sd_trans out, or use adapter='bottleneck' with "
            "adapters='both'"
        )
    return sd_trans or ("add" if enters else "none")
