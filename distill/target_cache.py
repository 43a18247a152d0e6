"""Teacher targets on disk: one file per case, in compressed chunks of which a training patch reads the few it needs.

A file holds a head (magic, shape K D H W, chunk D H W), an index (bytes and CRC-32 of every chunk), the CRC-32 of
both, and the chunks: uint8 levels of all classes, each a zstd frame. All of it is covered by a checksum.
"""

import struct
import zlib
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from ..errors import IntegrityError

Triple = tuple[int, int, int]
_MAGIC = b"samkdT1\n"
_HEAD = struct.Struct("<8s7I")
_SUM = struct.Struct("<I")


def quantise(probabilities: np.ndarray) -> np.ndarray:
    """uint8 levels [K, ...] of probabilities [K, ...], rounded, 255 for 1; the likeliest class stays so: where rounding
    makes it equal to a class before it, it goes up by one level.
    """
    levels = np.empty(probabilities.shape, np.uint8)
    for level, values in zip(levels, probabilities, strict=True):
        level[...] = np.rint(values * 255)
    likeliest = probabilities.argmax(0)
    torn = levels.argmax(0) != likeliest
    levels[(likeliest[torn], *np.nonzero(torn))] += 1
    return levels


def chunk_of(patch: Triple) -> Triple:
    """A quarter of the patch along each axis: a patch anywhere then touches at most 125 chunks, 1.95 patches large."""
    d, h, w = (-(-size // 4) for size in patch)
    return d, h, w


def encode(levels: np.ndarray, chunk: Triple) -> bytes:
    """The file of levels uint8 [K, D, H, W]; the same levels give the same bytes."""
    compressor = zstandard.ZstdCompressor()
    pieces = (levels[(slice(None), *box)] for box in _boxes(levels.shape, chunk))
    packed = [compressor.compress(piece.tobytes()) for piece in pieces]
    index = np.array([(len(frame), zlib.crc32(frame)) for frame in packed], "<u4")
    head = _HEAD.pack(_MAGIC, *levels.shape, *chunk) + index.tobytes()
    return b"".join((head, _SUM.pack(zlib.crc32(head)), *packed))


@dataclass(frozen=True, eq=False)
class TargetFile:
    """Levels uint8 [K, D, H, W] on disk: ``file[:, d0:d1, h0:h1, w0:w1]`` reads and checks the chunks it touches."""

    path: Path
    shape: tuple[int, int, int, int]
    chunk: Triple
    index: np.ndarray  # [N, 3]: first byte, bytes and CRC-32 of each chunk

    @classmethod
    def open(cls, path: Path) -> "TargetFile":
        """Raises IntegrityError for a file that is cut short, has grown or whose head is damaged."""
        with path.open("rb") as stream:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size or not head.startswith(_MAGIC):
                raise _damaged(path, "its head is broken")
            _, *numbers = _HEAD.unpack(head)
            shape, chunk = tuple(numbers[:4]), tuple(numbers[4:])
            count = prod(-(-size // max(side, 1)) for size, side in zip(shape[1:], chunk, strict=True))
            rest = path.stat().st_size - _HEAD.size - _SUM.size
            if 8 * count > rest:
                raise _damaged(path, "its head is broken")
            table = stream.read(8 * count)
            if stream.read(_SUM.size) != _SUM.pack(zlib.crc32(head + table)):
                raise _damaged(path, "its head is broken")
        lengths, sums = np.frombuffer(table, "<u4").reshape(-1, 2).astype(np.int64).T
        if int(lengths.sum()) != rest - len(table):
            raise _damaged(path, f"it has {rest} bytes where {len(table) + int(lengths.sum())} were written")
        starts = _HEAD.size + len(table) + _SUM.size + np.cumsum(lengths) - lengths
        return cls(path, shape, chunk, np.stack([starts, lengths, sums], axis=1))

    def __getitem__(self, key: tuple[slice, slice, slice, slice], /) -> np.ndarray:
        """Raises IntegrityError for a chunk whose bytes are not those that were written."""
        _, *wanted = (range(*side.indices(size)) for side, size in zip(key, self.shape, strict=True))
        result = np.empty((self.shape[0], *map(len, wanted)), np.uint8)
        if not result.size:
            return result
        counts = [-(-size // side) for size, side in zip(self.shape[1:], self.chunk, strict=True)]
        touched = [
            range(side.start // width, (side.stop - 1) // width + 1)
            for side, width in zip(wanted, self.chunk, strict=True)
        ]
        decompressor = zstandard.ZstdDecompressor()
        with self.path.open("rb", buffering=0) as stream:
            for place in product(*touched):
                box = _box(place, self.shape, self.chunk)
                start, length, checksum = self.index[np.ravel_multi_index(place, counts)]
                stream.seek(start)
                frame = stream.read(length)
                if zlib.crc32(frame) != checksum:
                    raise _damaged(self.path, f"the chunk of voxels {_spelled(box)} does not match its checksum")
                chunk = np.frombuffer(decompressor.decompress(frame), np.uint8)
                chunk = chunk.reshape(-1, *(side.stop - side.start for side in box))
                source, target = [slice(None)], [slice(None)]
                for side, asked in zip(box, wanted, strict=True):
                    low, high = max(side.start, asked.start), min(side.stop, asked.stop)
                    source.append(slice(low - side.start, high - side.start))
                    target.append(slice(low - asked.start, high - asked.start))
                result[tuple(target)] = chunk[tuple(source)]
        return result

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        everything = self[:, :, :, :]
        return everything if dtype is None else everything.astype(dtype)


def _boxes(shape: tuple[int, ...], chunk: Triple) -> list[tuple[slice, ...]]:
    counts = (range(-(-size // side)) for size, side in zip(shape[1:], chunk, strict=True))
    return [_box(place, shape, chunk) for place in product(*counts)]


def _box(place: tuple[int, ...], shape: tuple[int, ...], chunk: Triple) -> tuple[slice, ...]:
    return tuple(
        slice(number * side, min((number + 1) * side, size))
        for number, side, size in zip(place, chunk, shape[1:], strict=True)
    )


def _spelled(box: tuple[slice, ...]) -> str:
    return " x ".join(f"{side.start}:{side.stop}" for side in box)


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: these cached teacher targets are damaged: {what}; delete the file, it is made anew")
