"""The target file: what goes in comes out, in any piece; the likeliest class survives; no byte may change."""

import struct
import zlib

import numpy as np
import pytest
import zstandard

from samkd.distill.target_cache import TargetFile, chunk_of, encode, quantise
from samkd.errors import IntegrityError

RNG = np.random.default_rng(0)
OWNER, SHAPE = "teachers-plan/case", (3, 13, 20, 17)


def levels(shape=SHAPE) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def written(tmp_path):
    made = levels()
    path = tmp_path / "case.targets"
    path.write_bytes(encode(made, (4, 5, 6), owner=OWNER))
    return made, path


def test_any_piece_is_what_was_written(written):
    made, path = written
    file = TargetFile.open(path, owner=OWNER, shape=SHAPE)
    assert file.shape == made.shape
    np.testing.assert_array_equal(np.asarray(file), made)
    for _ in range(50):
        low = [int(RNG.integers(0, size)) for size in made.shape[1:]]
        high = [int(RNG.integers(a, size + 1)) for a, size in zip(low, made.shape[1:], strict=True)]
        d, h, w = (slice(a, b) for a, b in zip(low, high, strict=True))
        piece = (slice(None), d, h, w)
        np.testing.assert_array_equal(file[piece], made[piece])


def test_the_same_levels_give_the_same_bytes_and_empty_space_costs_little():
    made = levels()
    assert encode(made, (4, 5, 6), owner=OWNER) == encode(made.copy(), (4, 5, 6), owner=OWNER)
    flat = np.zeros((7, 64, 64, 64), np.uint8)
    assert len(encode(flat, (16, 16, 16), owner=OWNER)) < flat.nbytes / 500


def test_every_flipped_byte_is_noticed(tmp_path):
    made = levels((2, 5, 6, 7))
    content = encode(made, (3, 3, 3), owner=OWNER)
    path = tmp_path / "case.targets"
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"case\.targets: .* damaged"):
            np.asarray(TargetFile.open(path, owner=OWNER, shape=(2, 5, 6, 7)))
    assert IntegrityError.exit_code == 4


@pytest.mark.parametrize("content", [lambda c: c[:20], lambda c: c[:-1], lambda c: c + b"x", lambda c: b""])
def test_a_file_cut_short_or_grown_is_refused_when_opened(tmp_path, content):
    path = tmp_path / "case.targets"
    path.write_bytes(content(encode(levels(), (4, 5, 6), owner=OWNER)))
    with pytest.raises(IntegrityError, match="damaged"):
        TargetFile.open(path, owner=OWNER, shape=SHAPE)


def test_damage_elsewhere_does_not_disturb_a_piece(written):
    made, path = written
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    file = TargetFile.open(path, owner=OWNER, shape=SHAPE)
    np.testing.assert_array_equal(file[:, 0:4, 0:5, 0:6], made[:, 0:4, 0:5, 0:6])
    with pytest.raises(IntegrityError, match=r"voxels 12:13 x 15:20 x 12:17"):
        file[:, 12:13, 19:20, 16:17]


def test_a_chunk_is_a_quarter_of_the_patch():
    assert chunk_of((96, 96, 96)) == (24, 24, 24)
    assert chunk_of((1, 30, 512)) == (1, 8, 128)


@pytest.mark.parametrize("classes", [3, 7, 14])
def test_quantising_keeps_the_likeliest_class_and_rounds_by_half_a_level(classes):
    logits = RNG.normal(0, 0.02, (classes, 40, 40, 40)).astype(np.float32)  # nearly equal: many ties
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    made = quantise(probabilities)
    assert made.dtype == np.uint8
    assert np.count_nonzero(np.rint(probabilities * 255).argmax(0) != probabilities.argmax(0)) > 100
    np.testing.assert_array_equal(made.argmax(0), probabilities.argmax(0))
    error = np.abs(made / 255 - probabilities)
    assert error.max() <= 1.5 / 255 + 1e-6
    assert np.mean(error <= 0.5 / 255 + 1e-6) > 0.9


def test_another_cases_targets_and_another_grid_are_refused(written):
    _, path = written
    with pytest.raises(IntegrityError, match="not those of teachers-plan/other"):
        TargetFile.open(path, owner="teachers-plan/other", shape=SHAPE)
    for shape in ((2, *SHAPE[1:]), (*SHAPE[:3], 18)):
        with pytest.raises(IntegrityError, match="expected"):
            TargetFile.open(path, owner=OWNER, shape=shape)


def of_release_1(content: bytes) -> bytes:
    """The same file as earlier releases wrote it: without its owner."""
    head, rest = b"samkdT1\n" + content[8:36], content[68:]
    index = len(rest) - len(rest.partition(b"\x28\xb5\x2f\xfd")[2]) - 4 - 4  # up to the head's sum
    return head + rest[:index] + struct.pack("<I", zlib.crc32(head + rest[:index])) + rest[index + 4 :]


def test_a_file_of_an_earlier_release_is_read(written):
    made, path = written
    path.write_bytes(of_release_1(path.read_bytes()))
    np.testing.assert_array_equal(np.asarray(TargetFile.open(path, owner="anybody's", shape=SHAPE)), made)
    with pytest.raises(IntegrityError, match="expected"):
        TargetFile.open(path, owner="anybody's", shape=(3, 13, 20, 18))


def resummed(content: bytes, frame: bytes) -> bytes:
    """A file of one chunk with another frame in it, and sums that are right."""
    head = content[:68] + struct.pack("<2I", len(frame), zlib.crc32(frame))
    return head + struct.pack("<I", zlib.crc32(head)) + frame


@pytest.mark.parametrize("size", [10, 2 << 20, None])
def test_a_chunk_is_not_unpacked_beyond_its_size(tmp_path, size):
    """One that announces another size than the chunk has, and one that announces none."""
    content = encode(levels((2, 3, 3, 3)), (3, 3, 3), owner=OWNER)
    zeros = bytes(size or 2 << 20)
    frame = zstandard.ZstdCompressor(write_content_size=size is not None).compress(zeros)
    path = tmp_path / "case.targets"
    path.write_bytes(resummed(content, frame))
    file = TargetFile.open(path, owner=OWNER, shape=(2, 3, 3, 3))
    with pytest.raises(IntegrityError, match="cannot be unpacked"):
        np.asarray(file)
