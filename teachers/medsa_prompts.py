"""How prompts in a volume reach the slices that Medical SAM Adapter decodes one by one."""

import torch
from torch import Tensor, nn

from ..sam.efficient_sam import BOTTOM_RIGHT, TOP_LEFT, EfficientPromptEncoder
from ..sam.presets import EfficientViTSize, EncoderSize
from ..sam.prompt_encoder import PromptEncoder, build_prompt_encoder

AnyPromptEncoder = PromptEncoder | EfficientPromptEncoder
WAVELENGTHS = (4, 8, 16, 32, 64, 128)  # slices


class SlicePrompts(nn.Module):
    """Points and boxes of a volume as tokens of every slice.

    On its own slice a point is SAM's click, and on the slices that it spans a box is SAM's box, two corners. On every
    other slice each of these tokens says that a click or corner lies above or below: SAM's embedding of "not a point",
    at the same place in the plane, with a learned code of what it is and how many slices away (for a box, from its
    nearer face). The codes start at zero and are combinations of sines and cosines of the distance.
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(4, 2 * len(WAVELENGTHS), channels))  # outside, inside, the two corners
        frequencies = 2 * torch.pi / torch.tensor(WAVELENGTHS, dtype=torch.float32)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def adapter_parameters(self) -> list[str]:
        return ["codes"]

    def forward(
        self, encoder: AnyPromptEncoder, points: Tensor, labels: Tensor, boxes: Tensor | None, depth: int
    ) -> Tensor:
        """points [N, P, 3] as (d, h, w), labels [N, P] of 0 or 1, boxes [N, 6] -> tokens [N * depth, T, C].

        What `encoder` fills up with is left as it is. P may be 0 if there are boxes.
        """
        places, kinds, first, last = points[..., 1:].flip(-1), labels, points[..., 0], points[..., 0]
        if boxes is not None:
            corners = torch.stack([boxes[:, [2, 1]], boxes[:, [5, 4]]], dim=1)
            places = torch.cat([places, corners], dim=1)
            kinds = torch.cat([kinds, kinds.new_tensor([[TOP_LEFT, BOTTOM_RIGHT]]).expand(len(kinds), -1)], dim=1)
            first = torch.cat([first, boxes[:, [0, 0]]], dim=1)
            last = torch.cat([last, boxes[:, [3, 3]]], dim=1)
        here = clicks(encoder, places, kinds)
        count = kinds.shape[1]
        slices = torch.arange(depth, device=places.device)[:, None]
        first, last = first.round()[:, None], last.round()[:, None]
        distance = (slices - last).clamp(min=0) + (slices - first).clamp(max=0)  # [N, depth, T], 0 where it is
        phase = distance[..., None] * self.frequencies
        waves = torch.cat([phase.sin(), phase.cos()], dim=-1)
        elsewhere = torch.einsum("ndtf,ntfc->ndtc", waves, self.codes[kinds]) + _nowhere(encoder, places)[:, None]
        tokens = here[:, None].expand(-1, depth, -1, -1)
        seen = torch.where((distance == 0)[..., None], tokens[:, :, :count], elsewhere)
        return torch.cat([seen, tokens[:, :, count:]], dim=2).flatten(0, 1)


def clicks(encoder: AnyPromptEncoder, places: Tensor, kinds: Tensor) -> Tensor:
    """The encoder's own tokens for places [N, T, 2] as (x, y) of kinds [N, T]: points first, then a box's two corners.

    [N, T or more, C]: SAM's adds a "not a point" where there is no box, EfficientSAM's fills up to its `max_points`.
    """
    if isinstance(encoder, EfficientPromptEncoder):
        return encoder(places.clamp(min=0), kinds)  # it takes negative coordinates for no point
    count = kinds.shape[1]
    boxed = count > 1 and int(kinds[0, -1]) == BOTTOM_RIGHT
    points = count - 2 if boxed else count
    given = (places[:, :points], kinds[:, :points]) if points else None
    return encoder(given, places[:, points:].flatten(1) if boxed else None, None)[0]


def _nowhere(encoder: AnyPromptEncoder, places: Tensor) -> Tensor:
    """The embedding of no point, at places [N, T, 2]: [N, T, C]."""
    if isinstance(encoder, EfficientPromptEncoder):
        return encoder.pe_layer.forward_with_coords(places + 0.5, encoder.image_size) + encoder.invalid_points.weight
    return encoder.pe_layer.forward_with_coords(places + 0.5, encoder.input_image_size) + (
        encoder.not_a_point_embed.weight
    )


def no_clicks(encoder: AnyPromptEncoder) -> Tensor:
    """The tokens of an empty prompt: [1, 0, C] in SAM."""
    if isinstance(encoder, EfficientPromptEncoder):
        weight = encoder.invalid_points.weight
        return encoder(weight.new_zeros(1, 0, 2), weight.new_zeros(1, 0))
    return encoder(None, None, None)[0]


def prompt_encoder(size: EncoderSize, *, image_size: tuple[int, int]) -> AnyPromptEncoder:
    """The prompt encoder that belongs to the image encoder."""
    if not isinstance(size, EfficientViTSize):
        return build_prompt_encoder(size, image_size=image_size)
    grid = (image_size[0] // size.patch_size, image_size[1] // size.patch_size)
    return EfficientPromptEncoder(size.out_chans, image_size=image_size, grid=grid, max_points=size.max_points)
