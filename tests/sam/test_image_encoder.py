from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling import MaskDecoder as PublishedDecoder
from torch import nn

from samkd.errors import UsageError
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import BACKBONES, Backbone, DecoderSize, get_backbone
from samkd.sam.vit import ImageEncoder

SMALL = Backbone("small", dim=24, depth=3, heads=2, global_attn_indexes=(1,), window=3, patch_size=8, out_chans=32)


def published(backbone: Backbone, side: int) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=side,
        patch_size=backbone.patch_size,
        embed_dim=backbone.dim,
        depth=backbone.depth,
        num_heads=backbone.heads,
        mlp_ratio=backbone.mlp_ratio,
        out_chans=backbone.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
        use_rel_pos=True,
        window_size=backbone.window,
        global_attn_indexes=backbone.global_attn_indexes,
    )


@pytest.mark.parametrize("window", [0, 3, 4])
def test_equals_sams_own_encoder_forward_and_backward(window: int):
    backbone = Backbone("small", 24, 3, 2, (1,), window=window, patch_size=8, out_chans=32)
    theirs = published(backbone, 64)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = ImageEncoder(backbone, image_size=(64, 64))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    expected, result = theirs(images), ours(images)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (result * weights).sum().backward()
    for (name, parameter), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None and reference.grad is not None
        scale = reference.grad.abs().max()
        assert (parameter.grad - reference.grad).abs().max() <= 1e-4 * scale, name


def test_normalisation_constants_are_sams():
    theirs = {name: m.eps for name, m in published(SMALL, 64).named_modules() if hasattr(m, "eps")}
    ours = ImageEncoder(SMALL, image_size=(64, 64)).named_modules()
    assert {name: m.eps for name, m in ours if hasattr(m, "eps")} == theirs


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_presets_have_the_published_keys_and_shapes(name: str):
    with torch.device("meta"):
        theirs = published(BACKBONES[name], 1024).state_dict()
        ours = ImageEncoder(BACKBONES[name], image_size=(1024, 1024)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_rectangular_image():
    encoder = ImageEncoder(SMALL, image_size=(32, 56))
    assert encoder(torch.randn(1, 3, 32, 56)).shape == (1, 32, 4, 7)
    with pytest.raises(UsageError, match=r"32x60.*multiples of 8"):
        ImageEncoder(SMALL, image_size=(32, 60))


@pytest.mark.parametrize("prompts", [1, 3])
def test_two_stage_decoder_equals_sams_own(prompts: int):
    size = DecoderSize(depth=2, heads=4, mlp_dim=24, iou_hidden=16)
    ours = MaskDecoder(size, channels=32, masks=4, stages=2).eval()
    theirs = PublishedDecoder(transformer_dim=32, transformer=ours.transformer, iou_head_hidden_dim=16).eval()
    theirs.load_state_dict(ours.state_dict())
    embedding, position = torch.randn(1, 32, 4, 6), torch.randn(1, 32, 4, 6)
    sparse, dense = torch.randn(prompts, 2, 32), torch.randn(prompts, 32, 4, 6)
    with torch.no_grad():
        expected = theirs.predict_masks(embedding, position, sparse, dense)
        result = ours(embedding, position, sparse, dense)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(("stages", "scale"), [(3, 8), (4, 16)])
def test_progressive_decoder_over_a_batch_of_images(stages: int, scale: int):
    decoder = MaskDecoder(DecoderSize(heads=4, mlp_dim=24, iou_hidden=16), channels=64, masks=5, stages=stages).eval()
    embeddings, position, dense = torch.randn(3, 64, 2, 3), torch.randn(1, 64, 2, 3), torch.randn(1, 64, 2, 3)
    sparse = torch.zeros(1, 0, 64)
    with torch.no_grad():
        logits, iou = decoder(embeddings, position, sparse, dense)
        alone, _ = decoder(embeddings[1:2], position, sparse, dense)
    assert logits.shape == (3, 5, 2 * scale, 3 * scale)
    assert iou.shape == (3, 5)
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-4, atol=1e-6)


def test_decoder_refuses_channels_it_cannot_halve():
    with pytest.raises(UsageError, match="48 embedding channels must be a multiple of 32"):
        MaskDecoder(DecoderSize(), channels=48, masks=2, stages=4)


def test_get_backbone():
    assert get_backbone("vit_h").dim == 1280
    assert get_backbone(SMALL) is SMALL
    with pytest.raises(UsageError, match=r"unknown backbone 'vit_x'.*vit_b, vit_l, vit_h"):
        get_backbone("vit_x")
