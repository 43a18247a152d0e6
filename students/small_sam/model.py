"""MobileSAM (Zhang et al. 2023), LiteMedSAM (Ma et al. 2024) and EfficientSAM (Xiong et al. 2024) as students:
automatic, with prompts if given.
"""

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...errors import UsageError
from ...sam.base import INVALID, Encoder, PromptEncoder
from ...sam.build import build_image_encoder
from ...sam.channels import to_three
from ...sam.checkpoints import LoadReport, load_published
from ...sam.image_shape import require_image
from ...sam.mask_decoder import AnyMaskDecoder, build_mask_decoder, decode
from ...sam.presets import EncoderSize, get_encoder_size
from ...sam.prompt_encoder import build_prompt_encoder
from ...sam.prompt_tensors import Prompts
from ...sam.slice_prompts import SlicePrompts
from ...volumes.prompts import KINDS

STUDENT_ENCODERS = {
    "mobilesam": "mobile_vit_t",
    "litemedsam": "litemedsam",
    "efficientsam-ti": "efficient_vit_ti",
    "efficientsam-s": "efficient_vit_s",
}
MAX_POINTS = 6  # per class, besides a box: EfficientSAM's number
Slices = Literal["channels", "depth"]


class SmallSAM(nn.Module):
    """A small SAM over the slices of a patch, which fold into the batch.

    What a slice knows of its neighbours is `slices`: as "channels", the image of slice d is slices d - 1, d and d + 1
    (the first and the last repeated at the ends), for one channel SAM's three as they are; as "depth", slices are
    encoded on their own and meet in the embedding, in a convolution along the depth that starts at zero. Channels
    that are then neither one (repeated) nor three go to three by a learned 1x1 convolution.

    Every foreground class has a mask token; the background's logit is 0, the threshold of SAM's masks. Without prompts
    all classes are decoded at once; a class with prompts is decoded once more with them, and takes its own map from
    there. The decoder always sees `MAX_POINTS` points and a box, "not a point" where there is none, so its graph does
    not depend on the prompts: `encode` and `masks` can be exported apart.
    """

    prompt_kinds: frozenset[str] = KINDS

    def __init__(
        self,
        *,
        image_encoder: Encoder,
        prompt_encoder: PromptEncoder,
        slice_prompts: SlicePrompts,
        mask_decoder: AnyMaskDecoder,
        slices: Slices,
        in_channels: int,
        patch: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.slice_prompts = slice_prompts
        self.mask_decoder = mask_decoder
        self.slices = slices
        self.in_channels = in_channels
        self.num_classes = 1 + mask_decoder.masks
        self.patch = patch
        given = 3 * in_channels if slices == "channels" else in_channels
        self.to_three = to_three(given)
        self.along_depth = None
        if slices == "depth":
            width = image_encoder.out_chans
            self.along_depth = nn.Conv3d(width, width, kernel_size=(3, 1, 1), padding=(1, 0, 0))
            nn.init.zeros_(self.along_depth.weight)
            nn.init.zeros_(self.along_depth.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Tensor:
        """image [B, C, D, H, W], any D -> logits [B, K, D, H, W]. UsageError for another shape of either."""
        return self.decode(self.encode(image), prompts)

    def encode(self, image: Tensor) -> Tensor:
        """image [B, C, D, H, W] -> embedding [B, E, D, h, w], a token for each 16 x 16 pixels (4 x 4 in LiteMedSAM).

        UsageError for another shape.
        """
        require_image(image, network="this student", channels=self.in_channels, patch=self.patch)
        depth = image.shape[2]
        if self.slices == "channels":
            before = torch.cat([image[:, :, :1], image[:, :, :-1]], dim=2)
            after = torch.cat([image[:, :, 1:], image[:, :, -1:]], dim=2)
            image = torch.cat([before, image, after], dim=1)
        slices = self.to_three(image.transpose(1, 2).flatten(0, 1)).expand(-1, 3, -1, -1)
        embedding = self.image_encoder(slices).unflatten(0, (-1, depth)).transpose(1, 2)
        return embedding if self.along_depth is None else embedding + self.along_depth(embedding)

    def decode(self, embedding: Tensor, prompts: Prompts | None = None) -> Tensor:
        """embedding [B, E, D, h, w] -> logits [B, K, D, H, W]. UsageError for prompts of another shape, or too many."""
        with _exact(embedding):  # not `masks` of nothing: OpenVINO 2026.4 gets its constants wrong from the 2nd call on
            tokens = self.prompt_encoder.no_clicks(places=MAX_POINTS + 2)
        automatic = self._decode(embedding, tokens)
        if prompts is None:
            return automatic
        prompts.check("this student", cases=len(embedding), classes=self.num_classes)
        maps = list(automatic.unbind(1))
        given = (prompts.labels >= 0).any(-1) | ~prompts.boxes.isnan().any(-1)
        for value in (1 + given.any(0).nonzero().flatten()).tolist():
            points, labels = _first(prompts.points[:, value - 1], prompts.labels[:, value - 1], value)
            maps[value] = self.masks(embedding, points, labels, prompts.boxes[:, value - 1])[:, value]
        return torch.stack(maps, dim=1)

    def masks(self, embedding: Tensor, points: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """All classes as one prompt per case would have them: embedding [B, E, D, h, w] -> logits [B, K, D, H, W].

        points [B, MAX_POINTS, 3], labels [B, MAX_POINTS], boxes [B, 6] as in `Prompts`, for one class.
        """
        with _exact(embedding):
            tokens = self.slice_prompts(self.prompt_encoder, points, labels, boxes, embedding.shape[2])
        return self._decode(embedding, tokens)

    def _decode(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """embedding [B, E, D, h, w], prompt tokens [B * D or 1, T, E] -> logits [B, K, D, H, W]."""
        slices = embedding.transpose(1, 2).flatten(0, 1)
        logits, _ = decode(self.mask_decoder, self.prompt_encoder, slices, tokens)
        logits = logits.unflatten(0, (-1, embedding.shape[2])).transpose(1, 2)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)

    def load_pretrained(self, path: str | Path) -> LoadReport:
        """Fill SAM's parts from a published checkpoint; errors as in `sam.checkpoints.load_published`.

        Class tokens, their hypernetworks and the two last up-sampling stages start anew, as the report names.
        """
        own = ("slice_prompts.", "to_three.", "along_depth.")
        return load_published(self, path, added=[name for name in self.state_dict() if name.startswith(own)])


def _exact(embedding: Tensor) -> torch.autocast:
    """Positions in float32: bfloat16 would move the clicks."""
    return torch.autocast(embedding.device.type, enabled=False)


def _first(points: Tensor, labels: Tensor, value: int) -> tuple[Tensor, Tensor]:
    """The points of class `value`, [B, P, 3] and [B, P], given ones first, filled up or cut to `MAX_POINTS`."""
    most = int((labels >= 0).sum(-1).max())
    if most > MAX_POINTS:
        raise UsageError(
            f"class {value} has {most} points in one patch, this student takes {MAX_POINTS} and a box: give fewer"
        )
    order = (labels < 0).int().argsort(dim=-1, stable=True)[:, :MAX_POINTS]
    points, labels = points.gather(1, order[..., None].expand(-1, -1, 3)), labels.gather(1, order)
    rest = MAX_POINTS - order.shape[1]
    return pad(points, (0, 0, 0, rest)), pad(labels, (0, rest), value=INVALID)


def build_small_sam(
    encoder: str | EncoderSize,
    *,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    slices: Slices = "channels",
) -> SmallSAM:
    """The student around an image encoder (its name or sizes); the decoder ends at the patch's height and width.

    UsageError: no foreground class, an unknown choice of `slices`, or a height or width that tokens do not divide.
    """
    if num_classes < 2:
        raise UsageError(
            f"this student got num_classes={num_classes}: give at least 2, the background and a foreground class"
        )
    if slices not in get_args(Slices):
        raise UsageError(f"slices is {slices!r}: choose one of {', '.join(get_args(Slices))}")
    size = get_encoder_size(encoder)
    image_size = (patch[1], patch[2])
    image_encoder = build_image_encoder(size, image_size=image_size)
    stages = size.patch_size.bit_length() - 1
    decoder = build_mask_decoder(size, masks=num_classes - 1, stages=stages)
    return SmallSAM(
        image_encoder=image_encoder,
        prompt_encoder=build_prompt_encoder(size, image_size=image_size, max_points=MAX_POINTS + 2),  # a box is two
        slice_prompts=SlicePrompts(size.out_chans),
        mask_decoder=decoder,
        slices=slices,
        in_channels=in_channels,
        patch=patch,
    )


def build_mobilesam(
    *, in_channels: int, num_classes: int, patch: tuple[int, int, int], slices: Slices = "channels"
) -> SmallSAM:
    """MobileSAM: TinyViT and SAM's decoder. UsageError as in build_small_sam."""
    encoder = STUDENT_ENCODERS["mobilesam"]
    return build_small_sam(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch, slices=slices)


def build_litemedsam(
    *, in_channels: int, num_classes: int, patch: tuple[int, int, int], slices: Slices = "channels"
) -> SmallSAM:
    """LiteMedSAM: TinyViT with tokens of 4 x 4 pixels and SAM's decoder. UsageError as in build_small_sam."""
    encoder = STUDENT_ENCODERS["litemedsam"]
    return build_small_sam(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch, slices=slices)


def build_efficientsam_ti(
    *, in_channels: int, num_classes: int, patch: tuple[int, int, int], slices: Slices = "channels"
) -> SmallSAM:
    """EfficientSAM with its tiny ViT. UsageError as in build_small_sam."""
    encoder = STUDENT_ENCODERS["efficientsam-ti"]
    return build_small_sam(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch, slices=slices)


def build_efficientsam_s(
    *, in_channels: int, num_classes: int, patch: tuple[int, int, int], slices: Slices = "channels"
) -> SmallSAM:
    """EfficientSAM with its small ViT. UsageError as in build_small_sam."""
    encoder = STUDENT_ENCODERS["efficientsam-s"]
    return build_small_sam(encoder, in_channels=in_channels, num_classes=num_classes, patch=patch, slices=slices)
