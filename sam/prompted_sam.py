"""SAM and its relatives with their own tokens: what a click or a box shows, slice by slice, whatever it is."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import UsageError
from .base import BOTTOM_RIGHT, INVALID, TOP_LEFT, Encoder, PromptEncoder
from .build import build_image_encoder
from .image_shape import require_image
from .mask_decoder import AnyMaskDecoder, build_mask_decoder, decode
from .presets import EfficientViTSize, EncoderSize, FineSize, get_encoder_size
from .prompt_encoder import build_prompt_encoder
from .prompt_tensors import Prompts

Convention = Literal["sam", "medsam", "efficientsam"]
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of photographs, in [0, 1]
UNSEEN = -20.0  # the logit of a class on a slice that no prompt of it meets: a probability of 2e-9
MASKS = 4  # the one for clear prompts, and three for a prompt that may mean several things


class PromptedSAM(nn.Module):
    """Every foreground class is what its own prompt shows; without one it is nowhere.

    On a slice a class takes points inside, or one box. A box prompts every slice that it spans, a point its own. The
    background's logit is 0, the threshold of SAM's masks; where the masks of two classes overlap, the larger logit
    wins. `convention` is how the authors use their model:

    - "sam" (SAM, MobileSAM): pixels lose the mean of photographs and are divided by their standard deviation; a box
      or several points take the first mask, a lone point the best of the other three by predicted IoU
    - "medsam" (MedSAM, LiteMedSAM and their students): pixels stay in [0, 1]; the first mask, the only one that these
      were trained to give
    - "efficientsam": pixels as for "sam"; the best of the other three

    The plan brings pixels to [0, 1]. Images have one channel, which is repeated, or three.
    """

    prompt_kinds = frozenset({"point", "box"})
    prompts_required = True

    def __init__(
        self,
        *,
        image_encoder: Encoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: AnyMaskDecoder,
        convention: Convention,
        in_channels: int,
        num_classes: int,
        patch: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.convention = convention
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.patch = patch

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Tensor:
        """image [B, C, D, H, W], any D -> logits [B, K, D, H, W]; nothing is computed for images without prompts.

        UsageError for another shape of either, and for a box of a class beside its points.
        """
        if prompts is None:
            maps = image.new_full((image.shape[0], self.num_classes, *image.shape[2:]), UNSEEN)
            maps[:, 0] = 0
            return maps
        prompts.check("this published model", cases=len(image), classes=self.num_classes)
        embedding = self.encode(image)
        maps = [image.new_zeros(image.shape[0], *image.shape[2:])]
        for index in range(self.num_classes - 1):
            points, labels, boxes = prompts.points[:, index], prompts.labels[:, index], prompts.boxes[:, index]
            points, labels, several = _together(points, labels, boxes, index + 1)
            prompted = bool((labels >= 0).any() or (~boxes.isnan()).any())
            show = self.masks_of_points if several else self.masks
            shown = show(embedding, points, labels, boxes)[:, 1] if prompted else maps[0] + UNSEEN
            maps.append(shown)
        return torch.stack(maps, dim=1)

    def encode(self, image: Tensor) -> Tensor:
        """image [B, C, D, H, W] -> embedding [B, E, D, h, w]. UsageError for another shape."""
        require_image(image, network="this published model", channels=self.in_channels, patch=self.patch)
        slices = image.transpose(1, 2).flatten(0, 1).expand(-1, 3, -1, -1)
        if self.convention != "medsam":
            mean, std = (slices.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
            slices = (slices - mean) / std
        return self.image_encoder(slices).unflatten(0, (-1, image.shape[2])).transpose(1, 2)

    def masks(self, embedding: Tensor, points: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """What a prompt of one class per case shows: embedding [B, E, D, h, w] -> logits [B, K, D, H, W], the same for
        every foreground class.

        points [B, P, 3] (d, h, w), the first of which counts, labels [B, P] of 1 or -1, boxes [B, 6]: NaN for none.
        """
        depth = embedding.shape[2]
        boxed = ~boxes.isnan().any(-1, keepdim=True)  # [B, 1]
        box, point = torch.where(boxed, boxes, 0.0), points[:, 0]
        corners = torch.stack([box[:, [2, 1]], box[:, [5, 4]]], dim=1)
        click = torch.stack([point[:, [2, 1]], torch.zeros_like(point[:, :2])], dim=1)
        first, last = (torch.where(boxed, box[:, at : at + 1], point[:, :1]).round() for at in (0, 3))
        slices = torch.arange(depth, device=embedding.device)
        prompted = (slices >= first) & (slices <= last) & (boxed | (labels[:, :1] > 0))  # [B, D]
        kinds = torch.where(boxed, labels.new_tensor([TOP_LEFT, BOTTOM_RIGHT]), labels.new_tensor([1, INVALID]))
        with torch.autocast(embedding.device.type, enabled=False):  # bfloat16 would move the clicks
            tokens = self.prompt_encoder.clicks(torch.where(boxed[..., None], corners, click), kinds)
        tokens = tokens[:, None].expand(-1, depth, -1, -1).flatten(0, 1)
        return self._decoded(embedding, tokens, clear=boxed, prompted=prompted)

    def masks_of_points(self, embedding: Tensor, points: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """As `masks`, of several points [B, P, 3], each on its own slice; there are no boxes."""
        depth = embedding.shape[2]
        slices = torch.arange(depth, device=embedding.device)[:, None]
        here = (points[:, None, :, 0].round() == slices) & (labels[:, None] > 0)  # [B, D, P]
        clicks = points[:, None, :, [2, 1]].expand(-1, depth, -1, -1)
        kinds = torch.where(here, labels.new_tensor(1), labels.new_tensor(INVALID))
        clicks = torch.cat([clicks, torch.zeros_like(clicks[:, :, :1])], dim=2).flatten(0, 1)
        kinds = torch.cat([kinds, torch.full_like(kinds[:, :, :1], INVALID)], dim=2).flatten(0, 1)
        with torch.autocast(embedding.device.type, enabled=False):  # bfloat16 would move the clicks
            tokens = self.prompt_encoder.clicks(clicks, kinds)
        return self._decoded(embedding, tokens, clear=here.sum(-1) > 1, prompted=here.any(-1))

    def _decoded(self, embedding: Tensor, tokens: Tensor, *, clear: Tensor, prompted: Tensor) -> Tensor:
        """Logits [B, K, D, H, W] from tokens [B * D, N, E]: `clear` prompts [B, D or 1] mean one thing, `prompted`
        slices [B, D] have one.
        """
        depth = embedding.shape[2]
        images = embedding.transpose(1, 2).flatten(0, 1)
        logits, iou = decode(self.mask_decoder, self.prompt_encoder, images, tokens)
        chosen = self._chosen(iou.unflatten(0, (-1, depth)), clear).flatten()
        index = chosen[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        size = (self.patch[1], self.patch[2])
        full = interpolate(logits.gather(1, index), size, mode="bilinear", align_corners=False)
        full = full.unflatten(0, (-1, depth)).transpose(1, 2)  # [B, 1, D, H, W]
        shown = torch.where(prompted[:, None, :, None, None], full, UNSEEN)
        return torch.cat([torch.zeros_like(shown), shown.expand(-1, self.num_classes - 1, -1, -1, -1)], dim=1)

    def _chosen(self, iou: Tensor, boxed: Tensor) -> Tensor:
        """Predicted IoU [B, D, 4], boxed [B, D or 1] -> the number of the mask that is taken, [B, D]."""
        best = 1 + iou[..., 1:].argmax(-1)
        if self.convention == "efficientsam":
            return best
        return torch.where(boxed, 0, best) if self.convention == "sam" else torch.zeros_like(best)


def _together(points: Tensor, labels: Tensor, boxes: Tensor, value: int) -> tuple[Tensor, Tensor, bool]:
    """The points of class `value` without empty places, [B, P, 3] and [B, P], and whether a case has several.

    UsageError for points beside a box.
    """
    counts = (labels >= 0).sum(-1)
    if bool((counts.bool() & ~boxes.isnan().any(-1)).any()):
        count = 1 + int(counts.max())
        raise UsageError(f"class {value} has {count} prompts in one patch: give points or one box a slice")
    most = max(1, int(counts.max()))
    order = (labels < 0).int().sort(dim=-1, stable=True).indices[:, :most]
    return points.gather(1, order[..., None].expand(-1, -1, 3)), labels.gather(1, order), most > 1


def prompted_parts(
    encoder: str | EncoderSize,
    *,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    convention: Convention | None = None,
) -> dict[str, Any]:
    """What a PromptedSAM around an image encoder (its name or sizes) is built of, for a patch (D, H, W).

    `convention` is "medsam" for LiteMedSAM and its students, "efficientsam" for EfficientSAM and "sam" for the others,
    unless it is given: MedSAM's files cannot be told from SAM's. UsageError: other channels than one or three, no
    foreground class, an unknown convention, or a height or width that tokens do not divide.
    """
    if in_channels not in (1, 3):
        raise UsageError(f"a published model takes 1 or 3 channels, not {in_channels}; choose one, or train a medsa")
    if num_classes < 2:
        raise UsageError(f"published got num_classes={num_classes}: give at least 2, the background and a class")
    size = get_encoder_size(encoder)
    if convention is None:
        convention = "efficientsam" if isinstance(size, EfficientViTSize) else "sam"
        convention = "medsam" if isinstance(size, FineSize) or size.name == "litemedsam" else convention
    if convention not in get_args(Convention):
        raise UsageError(f"convention is {convention!r}: choose one of {', '.join(get_args(Convention))}")
    image_size = (patch[1], patch[2])
    return {
        "image_encoder": build_image_encoder(size, image_size=image_size),
        "prompt_encoder": build_prompt_encoder(size, image_size=image_size),
        "mask_decoder": build_mask_decoder(size, masks=MASKS, stages=2),
        "convention": convention,
        "in_channels": in_channels,
        "num_classes": num_classes,
        "patch": patch,
    }
