"""Teacher targets on disk: one file per case, in compressed chunks of which a training patch reads the few it needs.

A file holds a head (magic, shape K D H W, chunk D H W, sha256 of its owner), an index (bytes and CRC-32 of every
chunk), the CRC-32 of both, and the chunks: uint8 levels of all classes, each a zstd frame. All has a checksum.
The owner says which case's targets these are, by which teachers, on which grid; files of earlier releases name none.
"""

import hashlib
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
from ..volumes.files import regular_file

Triple = tuple[int, int, int]
Shape = tuple[int, int, int, int]
_MAGIC, _MAGIC_1 = b"samkdT2\n", b"samkdT1\n"
_HEAD = struct.Struct("<8s7I32s")
_HEAD_1 = struct.Struct("<8s7I")  # of earlier releases
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


def encode(levels: np.ndarray, chunk: Triple, *, owner: str) -> bytes:
    """The file of levels uint8 [K, D, H, W]; the same levels of the same owner give the same bytes."""
    compressor = zstandard.ZstdCompressor()
    pieces = (levels[(slice(None), *box)] for box in _boxes(levels.shape, chunk))
    packed = [compressor.compress(piece.tobytes()) for piece in pieces]
    index = np.array([(len(frame), zlib.crc32(frame)) for frame in packed], "<u4")
    head = _HEAD.pack(_MAGIC, *levels.shape, *chunk, _digest(owner)) + index.tobytes()
    return b"".join((head, _SUM.pack(zlib.crc32(head)), *packed))


@dataclass(frozen=True, eq=False)
class TargetFile:
    """Levels uint8 [K, D, H, W] on disk: ``file[:, d0:d1, h0:h1, w0:w1]`` reads and checks the chunks it touches."""

    path: Path
    shape: Shape
    chunk: Triple
    index: np.ndarray  # [N, 3]: first byte, bytes and CRC-32 of each chunk

    @classmethod
    def open(cls, path: Path, *, owner: str, shape: Shape) -> "TargetFile":
        """The targets of `owner`, whose shape must be K and the size of its grid.

        Raises IntegrityError for a file that is cut short, has grown, is another's, or whose head is damaged.
        """
        with regular_file(path).open("rb") as stream:
            head = stream.read(_HEAD_1.size)
            if head.startswith(_MAGIC):
                head += stream.read(_HEAD.size - _HEAD_1.size)
            elif not head.startswith(_MAGIC_1):
                raise _damaged(path, "its head is broken")
            if len(head) not in (_HEAD.size, _HEAD_1.size):
                raise _damaged(path, "its head is broken")
            k, d, h, w, *chunk_sides = struct.unpack_from("<7I", head, len(_MAGIC))
            size, (chunk_d, chunk_h, chunk_w) = (k, d, h, w), chunk_sides
            chunk = (chunk_d, chunk_h, chunk_w)
            count = prod(-(-side // max(width, 1)) for side, width in zip(size[1:], chunk, strict=True))
            rest = path.stat().st_size - len(head) - _SUM.size
            if 8 * count > rest or not all(chunk):
                raise _damaged(path, "its head is broken")
            table = stream.read(8 * count)
            if stream.read(_SUM.size) != _SUM.pack(zlib.crc32(head + table)):
                raise _damaged(path, "its head is broken")
        if head[_HEAD_1.size :] not in (b"", _digest(owner)) or size != shape:
            raise _damaged(path, f"they are not those of {owner} (shape {list(size)}, expected {list(shape)})")
        lengths, sums = np.frombuffer(table, "<u4").reshape(-1, 2).astype(np.int64).T
        if int(lengths.sum()) != rest - len(table):
            raise _damaged(path, f"it has {rest} bytes where {len(table) + int(lengths.sum())} were written")
        starts = len(head) + len(table) + _SUM.size + np.cumsum(lengths) - lengths
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
        with self.path.open("rb", buffering=0) as stream:
            for place in product(*touched):
                box = _box(place, self.shape, self.chunk)
                start, length, checksum = self.index[np.ravel_multi_index(place, counts)]
                stream.seek(start)
                frame = stream.read(length)
                if zlib.crc32(frame) != checksum:
                    raise _damaged(self.path, f"the chunk of voxels {_spelled(box)} does not match its checksum")
                chunk = self._unpack(frame, box)
                source, target = [slice(None)], [slice(None)]
                for side, asked in zip(box, wanted, strict=True):
                    low, high = max(side.start, asked.start), min(side.stop, asked.stop)
                    source.append(slice(low - side.start, high - side.start))
                    target.append(slice(low - asked.start, high - asked.start))
                result[tuple(target)] = chunk[tuple(source)]
        return result

    def _unpack(self, frame: bytes, box: tuple[slice, ...]) -> np.ndarray:
        """The levels of one chunk; nothing is unpacked that announces another size than the chunk has."""
        shape = (self.shape[0], *(side.stop - side.start for side in box))
        try:
            if zstandard.get_frame_parameters(frame).content_size != prod(shape):
                raise ValueError("it announces another size")
            return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8).reshape(shape)
        except (zstandard.ZstdError, ValueError) as error:
            raise _damaged(self.path, f"the chunk of voxels {_spelled(box)} cannot be unpacked ({error})") from None

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        everything = self[:, :, :, :]
        return everything if dtype is None else everything.astype(dtype)


def _digest(owner: str) -> bytes:
    return hashlib.sha256(owner.encode()).digest()


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
