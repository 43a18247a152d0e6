"""A teacher's embeddings on disk: each slice is encoded once, and what is read is what was written."""

from pathlib import Path

import pytest
import torch
from helpers.encoder_sizes import TINY
from helpers.teachers import tiny_teacher
from torch import nn

from samkd.configs.schema import Augmentation
from samkd.distill.embedding_cache import CachedEncoder, cache_embeddings
from samkd.errors import IntegrityError, UsageError
from samkd.sam.build import build_image_encoder

SIDE = 64
BYTES = 32 + 2 * TINY.out_chans * 4 * 4


@pytest.fixture
def cached(tmp_path: Path) -> CachedEncoder:
    torch.manual_seed(0)
    return CachedEncoder(build_image_encoder(TINY, image_size=(SIDE, SIDE)).eval(), tmp_path, limit=1e6)


def test_each_slice_is_encoded_once(cached: CachedEncoder):
    images = torch.rand(3, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = cached.encoder(images)
    encoded = []
    cached.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
    torch.testing.assert_close(cached(images[:2]), expected[:2], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(cached(images), expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(cached(images), cached(images)) and encoded == [2, 1]
    sizes = [path.stat().st_size for path in cached.folder.iterdir()]
    assert sizes == [BYTES] * 3 and cached.written == 3 * BYTES


def test_a_slice_that_stands_twice_in_a_batch(cached: CachedEncoder):
    image = torch.rand(1, 3, SIDE, SIDE)
    twice = cached(image.expand(2, -1, -1, -1))
    assert torch.equal(twice[0], twice[1]) and cached.written == BYTES


def test_what_is_there_counts_towards_the_limit(cached: CachedEncoder):
    cached(torch.rand(2, 3, SIDE, SIDE))
    full = CachedEncoder(cached.encoder, cached.folder, limit=2.5 * BYTES)
    with pytest.raises(UsageError, match=r"take more than the limit .*; raise --cache-limit"):
        full(torch.rand(1, 3, SIDE, SIDE))
    assert len(list(cached.folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-2], lambda content: content[:40] + b"!" + content[41:]])
def test_a_damaged_file_is_named(cached: CachedEncoder, damage):
    image = torch.rand(1, 3, SIDE, SIDE)
    cached(image)
    (path,) = cached.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match=rf"{path.name}: this cached embedding is damaged; delete the file"):
        cached(image)


def test_only_a_network_with_an_encoder_and_slices_that_come_again(tmp_path: Path):
    network = tiny_teacher("medsa", patch=(3, SIDE, SIDE))
    with pytest.raises(UsageError, match="under an augmentation no slice comes twice"):
        cache_embeddings([("a", network)], Augmentation(contrast=0.1), cache=tmp_path, limit=1e6)
    with pytest.raises(UsageError, match="no image encoder"):
        cache_embeddings([("a", nn.Identity())], Augmentation(), cache=tmp_path, limit=1e6)
