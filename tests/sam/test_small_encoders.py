"""TinyViT and EfficientSAM's parts beyond what the vectors show: other sizes, gradients, prompts, students' heads."""

import pytest
import torch
from torch import Tensor, nn

from samkd.sam.build import build_image_encoder
from samkd.sam.checkpoints import match_published
from samkd.sam.efficient_sam import EfficientMaskDecoder, EfficientPromptEncoder
from samkd.sam.presets import DecoderSize, EfficientViTSize, TinyViTSize
from samkd.sam.tiny_vit import TinyBlock

TINY = TinyViTSize("tiny", dims=(8, 12, 16, 24), depths=(1, 1, 1, 1), heads=(1, 2, 2, 3), windows=(3, 3, 4, 3))
EFFICIENT = EfficientViTSize("efficient", dim=24, depth=2, heads=2, out_chans=32, upscaling=(16, 8))
DECODER = DecoderSize(heads=4, mlp_dim=24, iou_hidden=16)


@pytest.mark.parametrize("size", [TINY, EFFICIENT], ids=lambda size: size.name)
@pytest.mark.parametrize("image_size", [(16, 16), (48, 80), (112, 96)])
def test_any_multiple_of_16_and_every_parameter_learns(size, image_size: tuple[int, int]):
    encoder = build_image_encoder(size, image_size=image_size)
    embedding = encoder(torch.randn(2, 3, *image_size))
    assert embedding.shape == (2, size.out_chans, image_size[0] // 16, image_size[1] // 16)
    embedding.square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_checkpointing_changes_nothing():
    torch.manual_seed(1)
    plain = build_image_encoder(EFFICIENT, image_size=(32, 48))
    saving = build_image_encoder(EFFICIENT, image_size=(32, 48), checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 48)
    for encoder in (plain, saving):
        encoder(images).square().sum().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_positions_at_the_pretraining_size_are_the_table():
    encoder = build_image_encoder(EFFICIENT, image_size=(224, 224))
    table = encoder.get_parameter("pos_embed")
    images = torch.zeros(1, 3, 224, 224)
    seen: list[Tensor] = []
    blocks = encoder.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(images)
    bias = encoder.get_parameter("patch_embed.proj.bias")
    torch.testing.assert_close(seen[0].flatten(1, 2), table[:, 1:] + bias)


def test_blocks_with_adapters():
    class Adapted(TinyBlock):
        def forward(self, x: Tensor, gain: float) -> Tensor:
            return gain * self.feed(self.mix(self.attend(x)))

    encoder = build_image_encoder(TINY, image_size=(32, 32), make_block=Adapted).eval()
    base = build_image_encoder(TINY, image_size=(32, 32)).eval()
    base.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images, 1.0), base(images))
        assert (encoder(images, 2.0) - base(images)).abs().max() > 1e-3


def test_prompts_are_filled_up_and_cut():
    prompts = EfficientPromptEncoder(32, image_size=(64, 96), grid=(4, 6), max_points=4).eval()
    points, labels = torch.tensor([[[10.0, 20.0], [90.0, 5.0]]]), torch.tensor([[2, 0]])
    with torch.no_grad():
        sparse = prompts(points, labels)
        none = prompts(torch.zeros(1, 0, 2), torch.zeros(1, 0))
        many = prompts(points.repeat(1, 3, 1), labels.repeat(1, 3))
        outside = prompts(torch.tensor([[[-7.0, -3.0]]]), torch.tensor([[-1]]))
    assert sparse.shape == none.shape == many.shape == (1, 4, 32)
    for rest in (sparse[:, 2:], none, outside):
        torch.testing.assert_close(rest, none[:, :1].expand_as(rest))
    torch.testing.assert_close(many[:, :2], sparse[:, :2])
    torch.testing.assert_close(many[:, 2:], sparse[:, :2])
    position = prompts.pe_layer.forward_with_coords(points + 0.5, (64, 96))
    torch.testing.assert_close(sparse[:, 1], position[:, 1])  # label 0: its place, and nothing else
    torch.testing.assert_close(sparse[:, 0], position[:, 0] + prompts.bbox_top_left_embeddings.weight)
    assert prompts.get_dense_pe().shape == (1, 32, 4, 6)


def test_decoder_over_images_and_over_prompts():
    decoder = EfficientMaskDecoder(DECODER, channels=32, masks=5, widths=(16, 8, 8)).eval()
    images, position, sparse = torch.randn(3, 32, 2, 3), torch.randn(1, 32, 2, 3), torch.randn(2, 4, 32)
    with torch.no_grad():
        logits, iou = decoder(images, position, sparse[:1])
        alone, _ = decoder(images[1:2], position, sparse[:1])
        by_prompt, _ = decoder(images[1:2], position, sparse)
        automatic, _ = decoder(images, position, torch.zeros(1, 0, 32))
    assert logits.shape == automatic.shape == (3, 5, 16, 24)
    assert iou.shape == (3, 5)
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_prompt[:1], alone, rtol=1e-4, atol=1e-5)


def whole(masks: int, widths: tuple[int, ...]) -> nn.ModuleDict:
    encoder = build_image_encoder(EFFICIENT, image_size=(64, 64))
    prompts = EfficientPromptEncoder(32, image_size=(64, 64), grid=encoder.grid)
    decoder = EfficientMaskDecoder(DECODER, channels=32, masks=masks, widths=widths)
    return nn.ModuleDict({"image_encoder": encoder, "prompt_encoder": prompts, "mask_decoder": decoder})


def test_a_decoder_for_classes_takes_the_published_trunk():
    state = whole(4, (16, 8)).state_dict()
    model = whole(6, (16, 8, 8, 8))
    _, report = match_published(model, state)
    kept = {key.rsplit(".", 1)[0] for key in report.loaded if "upscaling" in key}
    assert kept == {f"mask_decoder.final_output_upscaling_layers.{layer}" for layer in ("0.0", "0.1", "1.0")}
    assert all(key in report.loaded for key in state if key.startswith("mask_decoder.transformer."))
    assert set(report.loaded) | set(report.reinitialised) == set(model.state_dict())
    assert "mask_decoder.mask_tokens.weight" in report.dropped
