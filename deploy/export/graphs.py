"""What is converted: the student as one graph, or as an encoder and a decoder that takes prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import ExportRequest


@dataclass(frozen=True)
class Graph:
    """A module without branches on numbers, and what its inputs and its output are called.

    `inputs` holds a float32 example of one patch [1, ...] by name.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    output: str


class Probabilities(nn.Module):
    """image [B, C, *patch] -> class probabilities [B, K, *patch]. A network with a method `for_inference` is taken as
    what that returns; the network itself is left as it is."""

    def __init__(self, network: nn.Module):
        super().__init__()
        rewrite = getattr(network, "for_inference", None)
        self.network = (rewrite() if rewrite else copy.deepcopy(network)).cpu().eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).softmax(1)


class _Encode(nn.Module):
    network: Any

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.encode(image)


class _Decode(_Encode):
    """Labels come as float32, like everything an engine is given."""

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        return self.network.masks(embedding, points, labels.long(), boxes)


def whole(network: nn.Module, *, patch: tuple[int, int, int], in_channels: int) -> Graph:
    """image [N, C, *patch] -> class probabilities [N, K, *patch]."""
    return Graph(Probabilities(network), {"image": torch.zeros(1, in_channels, *patch)}, "probabilities")


def encoder_and_decoder(
    network: nn.Module, *, patch: tuple[int, int, int], in_channels: int, points: int
) -> tuple[Graph, Graph]:
    """image [N, C, *patch] -> embedding, and embedding, points [N, P, 3], labels [N, P] and boxes [N, 6] of one class
    -> logits [N, K, *patch]; the network has `encode` and `masks` as students.small_sam.model.SmallSAM, P is `points`.
    """
    network = copy.deepcopy(network).cpu().eval()
    encode, image = _Encode(network), torch.zeros(1, in_channels, *patch)
    with torch.no_grad():
        embedding = encode(image)
    prompts = {
        "points": torch.zeros(1, points, 3),
        "labels": torch.full((1, points), -1.0),
        "boxes": torch.full((1, 6), torch.nan),
    }
    return (
        Graph(encode, {"image": image}, "embedding"),
        Graph(_Decode(network), {"embedding": embedding, **prompts}, "logits"),
    )


def graphs_of(request: ExportRequest) -> tuple[Graph, ...]:
    """The graph that sees the image, and with prompts the one behind it."""
    if request.points:
        return encoder_and_decoder(
            request.network, patch=request.patch, in_channels=request.in_channels, points=request.points
        )
    return (whole(request.network, patch=request.patch, in_channels=request.in_channels),)
