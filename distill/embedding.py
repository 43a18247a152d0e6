"""A student's image embedding against its teachers' (the decoupled distillation of MobileSAM, Zhang et al. 2023)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from ..sam.prompted_sam import PromptedSAM
from ..students.small_sam.model import SmallSAM


class EmbeddingMatch(nn.Module):
    """Mean squared distance of image embeddings of the same slices, the student's through a learned 1x1 projection.

    Embeddings are [B * D, C, h, w] in all networks of SAM's kind that encode slices; a teacher's are interpolated to
    the student's tokens. MobileSAM has no projection, for its student has its teacher's width; nor has this without
    `projection`. `teachers` are (name, network, share of the sum). Raises UsageError for a network that encodes no
    slices, and without a projection for another width. `image` [1, C, *patch] is any patch; each network is run on it
    once, to know the width of its embedding.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[tuple[str, nn.Module, float]],
        image: Tensor,
        *,
        projection: bool = True,
    ) -> None:
        super().__init__()
        self._shares = [share for _, _, share in teachers]
        networks = [("the student", student), *((f"teacher {name}", network) for name, network, _ in teachers)]
        # In lists: they are no part of this module, whose parameters are the projections'.
        self._networks = [network for _, network in networks]
        self._encoders = [_image_encoder(name, network) for name, network in networks]
        widths = [
            _embedding_width(name, network, encoder, image)
            for (name, network), encoder in zip(networks, self._encoders, strict=True)
        ]
        if not projection and len(set(widths)) > 1:
            raise UsageError(
                f"distillation.projection: the student's embedding has {widths[0]} channels, its teachers' "
                f"{', '.join(map(str, widths[1:]))}; set it to true"
            )
        self.projections = nn.ModuleList(
            nn.Conv2d(widths[0], width, 1) if projection else nn.Identity() for width in widths[1:]
        )

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """The embeddings of the forward passes inside the block, the student's first; the last where there are more."""
        with recorded(self._encoders) as embeddings:
            yield embeddings

    def of_images(self, image: Tensor) -> Tensor:
        """The distance for images [B, C, *patch] without decoding any mask, in networks that encode apart."""
        student, *teachers = self._networks
        with self.recording() as embeddings:
            _encode(student, image)
            with torch.no_grad():
                for teacher in teachers:
                    _encode(teacher.to(image.device).eval(), image)
        return self(embeddings)

    def forward(self, embeddings: Sequence[Tensor]) -> Tensor:
        """The mean over the teachers, by their shares, of the mean over slices, channels and tokens.

        `embeddings` are the student's and then each teacher's, as `recording` has them after the block.
        """
        student, *teachers = embeddings
        total = student.new_zeros(())
        for share, projection, teacher in zip(self._shares, self.projections, teachers, strict=True):
            target = F.interpolate(teacher.float(), student.shape[2:], mode="bilinear", antialias=True)
            total = total + share * (projection(student) - target).square().mean()
        return total


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list of the last output of each module inside the block, in their order; an empty tensor before its first."""
    outputs = [torch.empty(0)] * len(modules)

    def keep(index: int, output: Any) -> None:
        outputs[index] = output

    handles = [
        module.register_forward_hook(lambda module, inputs, output, index=index: keep(index, output))
        for index, module in enumerate(modules)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _image_encoder(name: str, network: nn.Module) -> nn.Module:
    encoder = getattr(network, "image_encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UsageError(f"distillation.embedding: {name} has no image encoder of SAM's kind; set it to 0")
    return encoder


def _encode(network: nn.Module, image: Tensor) -> None:
    """Run the network as far as its image embedding, where it can be run so far, else to its end."""
    encode = network.encode if isinstance(network, PromptedSAM | SmallSAM) else network
    encode(image)


def _embedding_width(name: str, network: nn.Module, encoder: nn.Module, image: Tensor) -> int:
    """C of the network's embedding. Raises UsageError when it does not encode slices."""
    training = network.training
    with torch.no_grad(), recorded([encoder]) as outputs:
        _encode(network.eval(), image.to(next(network.parameters()).device))
    network.train(training)
    (embedding,) = outputs
    if not isinstance(embedding, Tensor) or embedding.ndim != 4:
        raise UsageError(f"distillation.embedding: {name} does not encode slice by slice; set it to 0")
    return embedding.shape[1]
