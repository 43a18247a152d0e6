"""EfficientSAM's prompt encoder and mask decoder (Xiong et al. 2024), which differ from SAM's throughout.

GELU for ReLU, layer norm over channels and space at once, no dense prompt, and positions that stay in the tokens.
"""

import torch
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn.functional import pad

from .base import BOTTOM_RIGHT, INVALID, TOP_LEFT, PromptEncoder
from .presets import DecoderSize

POINT = 1  # the kind of a point inside


class EfficientPromptEncoder(PromptEncoder):
    """Points, and boxes as two points, for images of (H, W) pixels embedded on a (h, w) `grid`."""

    def __init__(
        self, channels: int, *, image_size: tuple[int, int], grid: tuple[int, int], max_points: int = 6
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = grid
        self.max_points: int = max_points
        self.pe_layer = PositionEmbeddingRandom(channels // 2)
        self.invalid_points = nn.Embedding(1, channels)
        self.point_embeddings = nn.Embedding(1, channels)
        self.bbox_top_left_embeddings = nn.Embedding(1, channels)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, channels)

    def get_dense_pe(self) -> Tensor:
        """The position of every cell of the embedding: [1, C, h, w]."""
        return self.pe_layer(self.grid)[None]

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """points [P, T, 2] as (x, y) in pixels, labels [P, T] -> sparse prompts [P, max_points, C].

        Labels: 1 point, 2 and 3 a box's top left and bottom right, -1 none, 0 nothing but its position (there is no
        embedding of points outside). T is filled up with -1 or cut to `max_points`; negative coordinates count as -1.
        """
        rest = self.max_points - points.shape[1]
        points = pad(points, (0, 0, 0, rest), value=-1.0)
        labels = pad(labels, (0, rest), value=INVALID)[..., None]
        points = torch.where(points < 0, -1.0, points) + 0.5
        kinds = {
            INVALID: self.invalid_points,
            POINT: self.point_embeddings,
            TOP_LEFT: self.bbox_top_left_embeddings,
            BOTTOM_RIGHT: self.bbox_bottom_right_embeddings,
        }
        sparse = self.pe_layer.forward_with_coords(points, self.image_size)
        for label, embedding in kinds.items():
            sparse = sparse + (labels == label) * embedding.weight
        return sparse

    def clicks(self, places: Tensor, kinds: Tensor) -> Tensor:
        """[N, `max_points`, C]; negative coordinates would count as no point, so they become 0."""
        return self(torch.where((kinds == INVALID)[..., None], -1.0, places.clamp(min=0)), kinds)

    def nowhere(self, places: Tensor) -> Tensor:
        return self.pe_layer.forward_with_coords(places + 0.5, self.image_size) + self.invalid_points.weight

    def no_clicks(self, *, places: int = 0) -> Tensor:
        """[1, `max_points`, C], whatever `places` says."""
        weight = self.invalid_points.weight
        return self(weight.new_zeros(1, 0, 2), weight.new_zeros(1, 0))

    def no_mask(self) -> None:
        """EfficientSAM has no embedding of masks."""


class MLP(nn.Module):
    """`hidden_layers` linear layers with GELU, then a linear one."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, hidden_layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * hidden_layers]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(width, hidden), nn.GELU()) for width in widths[:hidden_layers])
        )
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x))


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; each with a residual and a norm after it."""

    def __init__(self, channels: int, size: DecoderSize, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(channels, size.heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, size.heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, size.mlp_dim, channels, hidden_layers=1)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, size.heads, downsample_rate=2)

    def forward(self, tokens: Tensor, image: Tensor, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """tokens [P, T, C], image [P, h * w, C] and the positions of both -> tokens, image."""
        token_positions, image_positions = positions
        if not self.first:
            tokens = tokens + token_positions
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens, tokens))
        attended = self.cross_attn_token_to_image(tokens + token_positions, image + image_positions, image)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(image + image_positions, tokens + token_positions, tokens)
        return tokens, self.norm4(image + attended)


class TwoWayTransformer(nn.Module):
    """Prompt tokens and image attend to each other."""

    def __init__(self, channels: int, size: DecoderSize) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(channels, size, first=index == 0) for index in range(size.depth))
        self.final_attn_token_to_image = Attention(channels, size.heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, source: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """source [P, C, h, w], position [1, C, h, w], tokens [P, T, C] -> tokens [P, T, C], image [P, h * w, C]."""
        image, image_positions = source.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
        token_positions = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, (token_positions, image_positions))
        attended = self.final_attn_token_to_image(tokens + token_positions, image + image_positions, image)
        return self.norm_final_attn(tokens + attended), image


def upscaling(channels: int, widths: tuple[int, ...]) -> nn.ModuleList:
    """x2 transposed convolutions to each of `widths`, GELU after each; all but the last are normalised."""
    inputs = (channels, *widths)
    norms = [nn.GroupNorm(1, width) for width in widths[:-1]] + [nn.Identity()]
    return nn.ModuleList(
        nn.Sequential(nn.ConvTranspose2d(width, target, kernel_size=2, stride=2), norm, nn.GELU())
        for width, target, norm in zip(inputs, widths, norms, strict=False)
    )


class EfficientMaskDecoder(nn.Module):
    """`masks` tokens give `masks` logit maps, all of them returned, at 2 ** len(`widths`) times the embedding's size.

    `widths` are those of the x2 up-sampling stages. State-dict keys are those of the published files.
    """

    def __init__(self, size: DecoderSize, *, channels: int, masks: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.masks = masks
        self.transformer = TwoWayTransformer(channels, size)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.final_output_upscaling_layers = upscaling(channels, widths)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, widths[-1], hidden_layers=2) for _ in range(masks)
        )
        self.iou_prediction_head = MLP(channels, size.iou_hidden, masks, hidden_layers=2)

    def forward(self, embedding: Tensor, position: Tensor, sparse: Tensor, dense: None = None) -> tuple[Tensor, Tensor]:
        """embedding [N, C, h, w], position [1, C, h, w], sparse prompts [P, T, C]; there are no dense prompts.

        N and P broadcast: one of them is 1, or they are equal. Returns logits [max(N, P), masks, 2**stages * h,
        2**stages * w] and predicted IoU [max(N, P), masks].
        """
        batch = embedding.shape[0] if sparse.shape[0] == 1 else sparse.shape[0]  # len() would fix it in an export
        embedding, sparse = embedding.expand(batch, -1, -1, -1), sparse.expand(batch, -1, -1)
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        queries, keys = self.transformer(embedding, position, torch.cat([tokens, sparse], dim=1))
        upscaled = keys.transpose(1, 2).reshape(embedding.shape)
        for stage in self.final_output_upscaling_layers:
            upscaled = stage(upscaled)
        weights = torch.stack(
            [mlp(queries[:, 1 + index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return logits, self.iou_prediction_head(queries[:, 0])
