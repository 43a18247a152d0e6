"""A student's image embedding against its teachers' (the decoupled distillation of MobileSAM, Zhang et al. 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError


class EmbeddingMatch(nn.Module):
    """Mean squared distance of image embeddings of the same slices, the student's through a learned 1x1 projection.

    The embeddings are those of the networks' last forward passes, [B * D, C, h, w] in all of SAM's kind that encode
    slices; a teacher's are interpolated to the student's tokens. MobileSAM has no projection, for its student has its
    teacher's width. `teachers` are (name, network, share of the sum). Raises UsageError for a network that encodes no
    slices. `image` [1, C, *patch] is any patch; each network is run on it once.
    """

    def __init__(self, student: nn.Module, teachers: Sequence[tuple[str, nn.Module, float]], image: Tensor) -> None:
        super().__init__()
        self._shares = [share for _, _, share in teachers]
        self._student = _Embedding("the student", student, image)
        self._teachers = [_Embedding(f"teacher {name}", network, image) for name, network, _ in teachers]
        width = self._student.last.shape[1]
        self.projections = nn.ModuleList(nn.Conv2d(width, each.last.shape[1], 1) for each in self._teachers)

    def forward(self) -> Tensor:
        """The mean over the teachers, by their shares, of the mean over slices, channels and tokens."""
        found = self._student.last
        total = found.new_zeros(())
        for share, projection, teacher in zip(self._shares, self.projections, self._teachers, strict=True):
            wanted = F.interpolate(teacher.last.float(), found.shape[2:], mode="bilinear", antialias=True)
            total = total + share * (projection(found) - wanted).square().mean()
        return total


class _Embedding:
    """What a network's image encoder gave last."""

    def __init__(self, name: str, network: nn.Module, image: Tensor) -> None:
        encoder = getattr(network, "image_encoder", None)
        if not isinstance(encoder, nn.Module):
            raise UsageError(f"distillation.embedding: {name} has no image encoder of SAM's kind; set it to 0")
        encoder.register_forward_hook(self._keep)
        training = network.training
        with torch.no_grad():
            network.eval()(image.to(next(network.parameters()).device))
        network.train(training)
        if not isinstance(self.last, Tensor) or self.last.ndim != 4:
            raise UsageError(f"distillation.embedding: {name} does not encode slice by slice; set it to 0")

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.last = output
