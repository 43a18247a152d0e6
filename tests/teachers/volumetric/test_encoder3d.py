"""The encoder that 3DSAM-adapter and AutoSAM Adapter share, part by part."""

from typing import Any

import pytest
import torch
from helpers.teachers import tiny_teacher
from torch import nn
from torch.nn.functional import interpolate

from samkd.sam.vit import Attention
from samkd.teachers.volumetric.attention import CubeAttention, from_cubes, to_cubes
from samkd.teachers.volumetric.encoder import DepthwiseAdapter


def test_slices_are_upsampled_after_the_embedding_as_well_as_before_it():
    """The authors up-sample the whole volume first."""
    model = tiny_teacher("sam3d")
    encoder, image = model.image_encoder, torch.randn(2, 1, *model.patch)
    whole = interpolate(image, scale_factor=encoder.upsample, mode="trilinear").expand(-1, 3, -1, -1, -1)
    tokens = torch.stack([encoder.patch_embed(volume.transpose(0, 1)) for volume in whole])
    tokens = encoder.slice_embed(tokens.permute(0, 4, 2, 3, 1)).permute(0, 2, 3, 4, 1)
    assert tokens.shape == (2, 4, 6, 2, 96)
    pos_embed, depth_embed = encoder.pos_embed, encoder.depth_embed
    with torch.no_grad():
        pos_embed.zero_()
        depth_embed.zero_()
    torch.testing.assert_close(encoder.embed(image), tokens, rtol=1e-4, atol=1e-5)


def test_positions_reach_every_axis():
    encoder = tiny_teacher("sam3d", patch=(16, 32, 48)).image_encoder
    nn.init.normal_(encoder.depth_embed)
    tokens = encoder.embed(torch.zeros(1, 1, 16, 32, 48))[0]
    for axis in range(3):
        assert (tokens.diff(dim=axis).abs().amax(-1) > 1e-4).all()
    assert tokens.shape[:3] == (8, 12, 4)


@pytest.mark.parametrize("grid", [(4, 8, 4), (3, 5, 2), (1, 9, 4)])
def test_cubes_round_trip(grid: tuple[int, int, int]):
    x = torch.randn(2, *grid, 6)
    cubes = to_cubes(x, 4)
    assert cubes.shape[1:] == (4, 4, 4, 6)
    assert torch.equal(from_cubes(cubes, grid), x)


def test_attention_of_one_slice_is_that_of_sam():
    ours, sam = CubeAttention(24, 3, reach=5), Attention(24, num_heads=3, use_rel_pos=True, input_size=(5, 5))
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.ones_(ours.lr)
    sam.load_state_dict({key: value for key, value in ours.state_dict().items() if key in sam.state_dict()})
    x = torch.randn(2, 5, 5, 24)
    torch.testing.assert_close(ours(x[:, :, :, None])[:, :, :, 0], sam(x), rtol=1e-4, atol=1e-5)


def test_silent_adapters_leave_the_base_as_it_is():
    encoder, image = tiny_teacher("sam3d").image_encoder, torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        adapted = encoder(image)
        blocks: Any = encoder.blocks
        for block in blocks:
            nn.init.zeros_(block.adapter.up.weight)
            nn.init.zeros_(block.adapter.up.bias)
        silent = encoder(image)
        for block in blocks:
            block.adapter = nn.Identity()
        base = encoder(image)
    assert all(torch.equal(*pair) for pair in zip(silent, base, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(adapted, base, strict=True))


def test_an_adapter_that_starts_at_zero_would_never_learn():
    """Why this teacher has no zero_init: the authors' ReLU after the up-projection."""
    x = torch.randn(1, 4, 4, 4, 8)
    for zero in (False, True):
        adapter = DepthwiseAdapter(8)
        if zero:
            nn.init.zeros_(adapter.up.weight)
            nn.init.zeros_(adapter.up.bias)
        adapter(x).square().sum().backward()
        for parameter in adapter.parameters():
            assert parameter.grad is not None and parameter.grad.any() != zero
