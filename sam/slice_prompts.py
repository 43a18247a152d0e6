"""How prompts in a volume reach the slices that a decoder of SAM's segments one by one."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .base import BOTTOM_RIGHT, INVALID, TOP_LEFT, PromptEncoder

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

    @staticmethod
    def of_own_slice(
        encoder: PromptEncoder, points: Tensor, labels: Tensor, boxes: Tensor | None, depth: int
    ) -> Tensor:
        """Tokens [N * depth, T, C] of every slice's own prompts alone, as SAM's for a picture.

        points [N, P, 3] as (d, h, w), labels [N, P] of 0, 1, of 2 and 3 for a box's corners, or -1, boxes [N, 6]. T is
        the largest number on a slice; a slice with fewer is filled up with "not a point".
        """
        slices = torch.arange(depth, device=points.device)[:, None]
        here = (points[..., 0].round()[:, None] == slices) & (labels >= 0)[:, None]  # [N, depth, P]
        order = here.int().argsort(dim=-1, descending=True, stable=True)[..., : int(here.sum(-1).max())]
        rows = torch.arange(len(points), device=points.device)[:, None, None]
        places = points[..., 1:].flip(-1)[rows, order]  # [N, depth, T, 2]
        kinds = torch.where(here.gather(-1, order), labels[rows, order], INVALID)
        if boxes is not None:
            first, last = boxes[:, [0, 3]].round().unbind(1)
            met = (slices[:, 0] >= first[:, None]) & (slices[:, 0] <= last[:, None])  # [N, depth]
            corners = torch.stack([boxes[:, [2, 1]], boxes[:, [5, 4]]], dim=1)
            places = torch.cat([places, corners[:, None].expand(-1, depth, -1, -1)], dim=2)
            corner = kinds.new_tensor([TOP_LEFT, BOTTOM_RIGHT])
            kinds = torch.cat([kinds, torch.where(met[..., None], corner, INVALID)], dim=2)
        elif not (labels >= TOP_LEFT).any():
            missing = encoder.in_place_of_a_box
            places, kinds = pad(places, (0, 0, 0, missing)), pad(kinds, (0, missing), value=INVALID)
        return encoder.clicks(places.flatten(0, 1), kinds.flatten(0, 1))

    def forward(
        self, encoder: PromptEncoder, points: Tensor, labels: Tensor, boxes: Tensor | None, depth: int
    ) -> Tensor:
        """points [N, P, 3] as (d, h, w), labels [N, P] of 0, 1 or -1, boxes [N, 6] -> tokens [N * depth, T, C].

        Labels of -1 and boxes of NaN become "not a point" on every slice, and so does, in SAM, a box that is None.
        What EfficientSAM's encoder fills up with is left as it is. P may be 0 if there are boxes.
        """
        places, kinds, first, last = points[..., 1:].flip(-1), labels, points[..., 0], points[..., 0]
        if boxes is not None:
            given = ~boxes.isnan().any(-1, keepdim=True)
            boxes = torch.where(given, boxes, 0.0)
            corners = torch.stack([boxes[:, [2, 1]], boxes[:, [5, 4]]], dim=1)
            places = torch.cat([places, corners], dim=1)
            kinds = torch.cat([kinds, torch.where(given, kinds.new_tensor([TOP_LEFT, BOTTOM_RIGHT]), INVALID)], dim=1)
            first = torch.cat([first, boxes[:, [0, 0]]], dim=1)
            last = torch.cat([last, boxes[:, [3, 3]]], dim=1)
        else:
            missing = encoder.in_place_of_a_box
            places, kinds = pad(places, (0, 0, 0, missing)), pad(kinds, (0, missing), value=INVALID)
            first, last = pad(first, (0, missing)), pad(last, (0, missing))
        here = encoder.clicks(places, kinds)
        count = kinds.shape[1]
        slices = torch.arange(depth, device=places.device)[:, None]
        first, last = first.round()[:, None], last.round()[:, None]
        distance = (slices - last).clamp(min=0) + (slices - first).clamp(max=0)  # [N, depth, T], 0 where it is
        phase = distance[..., None] * self.frequencies
        waves = torch.cat([phase.sin(), phase.cos()], dim=-1)
        codes = self.codes[kinds.clamp(min=0)]
        elsewhere = torch.einsum("ndtf,ntfc->ndtc", waves, codes) + encoder.nowhere(places)[:, None]
        tokens = here[:, None].expand(-1, depth, -1, -1)
        as_it_is = (distance == 0) | (kinds == INVALID)[:, None]
        seen = torch.where(as_it_is[..., None], tokens[:, :, :count], elsewhere)
        return torch.cat([seen, tokens[:, :, count:]], dim=2).flatten(0, 1)
