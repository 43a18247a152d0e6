"""3DSAM-adapter's prompt encoder: points become tokens by sampling the image's own feature (Gong et al. 2023)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad, scaled_dot_product_attention

from ...sam.presets import DecoderSize

QUERIES = 10  # learned tokens that carry what the points say to the image


class Attention(nn.Module):
    """Attention between two sequences in `inner` channels; keys are those of SAM's decoder."""

    def __init__(self, channels: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)

    def forward(self, queries: Tensor, tokens: Tensor, given: Tensor | None = None) -> Tensor:
        """queries [B, N, C] look at tokens [B, M, C], at those that are `given` [B, M] -> [B, N, C]."""
        q, k, v = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, queries), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        mask = None if given is None else given[:, None, None]
        return self.out_proj(scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, hidden)
        self.lin2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.lin1(x).relu())


class SamplerLayer(nn.Module):
    """Learned queries and points attend to each other, the image to the queries.

    It is SAM's two-way block without positions and without the tokens' look at the image. The authors build
    `cross_attn_token_to_image` all the same and never call it: it is in their files and in the paper's 25.46 M.
    """

    def __init__(self, channels: int, size: DecoderSize) -> None:
        super().__init__()
        self.global_query = nn.Parameter(0.1 * torch.randn(1, QUERIES, channels))
        self.self_attn = Attention(channels, channels, size.heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, channels // 2, size.heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, size.mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, channels // 2, size.heads)

    def forward(self, image: Tensor, points: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, N, C], points [B, P, C], which of them are `given` [B, P] -> image, points."""
        tokens = torch.cat([self.global_query.expand(len(points), -1, -1), points], dim=1)
        given = pad(given, (QUERIES, 0), value=True)
        tokens = self.norm2(tokens + self.norm1(self.self_attn(tokens, tokens, given)))
        queries, points = tokens.split([QUERIES, points.shape[1]], dim=1)
        queries = self.norm3(queries + self.mlp(queries))
        return self.norm4(image + self.cross_attn_image_to_token(image, queries)), points


class VisualSampler(nn.Module):
    """A feature of the volume, changed by what lies at the prompted points.

    A point is nothing but the feature there: no coordinate enters, nor whether it lies inside or outside.
    """

    def __init__(self, channels: int, size: DecoderSize) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SamplerLayer(channels, size) for _ in range(size.depth))

    def forward(self, feature: Tensor, points: Tensor, given: Tensor, volume: tuple[int, int, int]) -> Tensor:
        """feature [B, C, h, w, d] of a `volume` of (D, H, W) voxels -> the same shape.

        points [B, P, 3] are voxels (d, h, w), `given` [B, P] says which of them count.
        """
        depth, height, width = volume
        sizes = points.new_tensor([depth, width, height])
        places = (2 * points[..., [0, 2, 1]] + 1) / sizes - 1  # grid_sample counts axes from the last
        sampled = grid_sample(feature, places[:, :, None, None].to(feature.dtype), align_corners=False)
        tokens, image = sampled.flatten(2).transpose(1, 2), feature.flatten(2).transpose(1, 2)
        for layer in self.layers:
            image, tokens = layer(image, tokens, given)
        return image.transpose(1, 2).reshape(feature.shape)
