"""A teacher's image embeddings on disk: a slice that training sees again is not encoded again.

A file holds the sha256 of its numbers and the numbers, float16. It is named after the encoder's input, its folder after
the teacher's weights.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..configs.schema import Augmentation
from ..errors import IntegrityError, UsageError
from ..sam.base import Encoder
from ..volumes.files import atomic_path, make_folder

_SUM = 32  # bytes


class CachedEncoder(nn.Module):
    """An image encoder that does not learn: images [N, 3, H, W] -> its embedding [N, C, h, w], rounded to float16.

    Raises UsageError when the files of `folder` would take more than `limit` bytes, IntegrityError for a damaged one.
    """

    def __init__(self, encoder: Encoder, folder: Path, *, limit: float) -> None:
        super().__init__()
        self.encoder = encoder.to(memory_format=torch.channels_last)  # LiteMedSAM's takes 40 % less time so on a CPU
        self.folder, self.limit = make_folder(folder), limit
        self.shape = (encoder.out_chans, *encoder.grid)
        self.written = sum(path.stat().st_size for path in folder.glob("*.embedding"))

    def forward(self, images: Tensor) -> Tensor:
        paths = [self.folder / f"{_digest(image)}.embedding" for image in images]
        missing = {path: number for number, path in enumerate(paths) if not path.exists()}
        if missing:
            with torch.no_grad():
                embeddings = self.encoder(images[list(missing.values())])
            for path, embedding in zip(missing, embeddings, strict=True):
                self._write(path, embedding)
        return torch.stack([self._read(path) for path in paths]).to(images)

    def _write(self, path: Path, embedding: Tensor) -> None:
        numbers = embedding.half().cpu().numpy().tobytes()
        self.written += _SUM + len(numbers)
        if self.written > self.limit:
            raise UsageError(
                f"{self.folder}: the teacher's embeddings take more than the limit of {self.limit / 1e9:.3g} GB; raise "
                "--cache-limit, or set distillation.cache_embeddings to false"
            )
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(numbers).digest() + numbers)

    def _read(self, path: Path) -> Tensor:
        content = path.read_bytes()
        numbers = content[_SUM:]
        if hashlib.sha256(numbers).digest() != content[:_SUM] or len(numbers) != 2 * int(np.prod(self.shape)):
            raise IntegrityError(f"{path}: this cached embedding is damaged; delete the file, it is made anew")
        return torch.from_numpy(np.frombuffer(numbers, np.float16).reshape(self.shape).astype(np.float32))


def cache_embeddings(
    teachers: Sequence[tuple[str, nn.Module]], augmentation: Augmentation, *, cache: Path, limit: float
) -> None:
    """Put a CachedEncoder in the place of each teacher's image encoder; a teacher is its weights' sha256 and network.

    Raises UsageError for a network without an encoder of SAM's kind, and with an augmentation, under which no slice
    comes twice.
    """
    if augmentation != Augmentation():
        raise UsageError(
            "distillation.cache_embeddings: under an augmentation no slice comes twice; set student.training."
            "augmentation to {}, or cache_embeddings to false"
        )
    for sha256, network in teachers:
        encoder = getattr(network, "image_encoder", None)
        if not isinstance(encoder, Encoder):
            raise UsageError(
                "distillation.cache_embeddings: a teacher has no image encoder of SAM's kind; set it to false"
            )
        network.image_encoder = CachedEncoder(encoder, cache / "embeddings" / sha256[:16], limit=limit)


def _digest(image: Tensor) -> str:
    """What decides an embedding besides the weights: the pixels and their grid."""
    pixels = image.detach().float().contiguous().cpu().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32]
