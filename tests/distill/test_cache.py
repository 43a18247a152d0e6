"""The target file: what goes in comes out, in any piece; the likeliest class survives; no byte may change."""

import numpy as np
import pytest

from samkd.distill.target_cache import TargetFile, chunk_of, encode, quantise
from samkd.errors import IntegrityError

RNG = np.random.default_rng(0)


def levels(shape=(3, 13, 20, 17)) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def written(tmp_path):
    made = levels()
    path = tmp_path / "case.targets"
    path.write_bytes(encode(made, (4, 5, 6)))
    return made, path


def test_any_piece_is_what_was_written(written):
    made, path = written
    file = TargetFile.open(path)
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
    assert encode(made, (4, 5, 6)) == encode(made.copy(), (4, 5, 6))
    flat = np.zeros((7, 64, 64, 64), np.uint8)
    assert len(encode(flat, (16, 16, 16))) < flat.nbytes / 500


def test_every_flipped_byte_is_noticed(tmp_path):
    made = levels((2, 5, 6, 7))
    content = encode(made, (3, 3, 3))
    path = tmp_path / "case.targets"
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"case\.targets: .* damaged"):
            np.asarray(TargetFile.open(path))
    assert IntegrityError.exit_code == 4


@pytest.mark.parametrize("content", [lambda c: c[:20], lambda c: c[:-1], lambda c: c + b"x", lambda c: b""])
def test_a_file_cut_short_or_grown_is_refused_when_opened(tmp_path, content):
    path = tmp_path / "case.targets"
    path.write_bytes(content(encode(levels(), (4, 5, 6))))
    with pytest.raises(IntegrityError, match="damaged"):
        TargetFile.open(path)


def test_damage_elsewhere_does_not_disturb_a_piece(written):
    made, path = written
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    file = TargetFile.open(path)
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
