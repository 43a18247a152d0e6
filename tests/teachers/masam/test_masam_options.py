"""MA-SAM's switches: where its adapters are, which decoder it has, and stacks of RGB frames."""

from typing import Any

import pytest
import torch
from helpers.teachers import tiny_teacher
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samkd.sam.checkpoints import match_published
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder
from samkd.teachers import build_teacher
from samkd.teachers.freezing import adapter_names
from samkd.training.losses import segmentation_loss


def count(model: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def step(model: nn.Module, image: Tensor) -> None:
    labels = torch.randint(4, (len(image), *image.shape[2:]))
    segmentation_loss(model(image), labels).backward()
    torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", ["before", "after", "both"])
def test_the_adapters_of_a_block_sit_where_the_switch_says(adapters: str):
    model = tiny_teacher("masam", adapters=adapters, zero_init=False).eval()
    names = {name.split(".")[3] for name in adapter_names(model) if ".adapter" in name}
    assert names == {"before": {"adapter1"}, "after": {"adapter2"}, "both": {"adapter1", "adapter2"}}[adapters]
    block: Any = model.image_encoder.blocks[1]
    x = torch.randn(5, 4, 4, 96)
    with torch.no_grad():
        y = block.adapter1(x, 5) if block.adapter1 else x
        y = y + block.attn(block.norm1(y))
        y = block.adapter2(y, 5) if block.adapter2 else y
        torch.testing.assert_close(block(x, 5), y + block.mlp(block.norm2(y)))


def test_before_and_after_have_as_many_parameters_and_both_has_one_adapter_more_a_block():
    before, after, both = (tiny_teacher("masam", adapters=adapters) for adapters in ("before", "after", "both"))
    assert count(before) == count(after)
    dim, channels = 96, 32
    adapter = 2 * dim + 2 * dim * channels + 3 * channels**2 + channels
    assert count(both) - count(before) == 4 * adapter
    for model in (before, after, both):
        model.freeze_pretrained()
    assert count(both, trained=True) - count(after, trained=True) == 4 * adapter


def test_before_and_after_part_with_the_first_steps():
    before, after = (
        tiny_teacher("masam", adapters="before", dropout=0.0),
        tiny_teacher("masam", adapters="after", dropout=0.0),
    )
    state = before.state_dict()
    after.load_state_dict({name.replace("adapter1", "adapter2"): value for name, value in state.items()})
    image = torch.randn(1, 1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(before(image), after(image))  # both start as SAM
    for model in (before, after):
        torch.manual_seed(1)
        for _ in range(2):
            step(model, image)
    with torch.no_grad():
        assert not torch.allclose(before(image), after(image), rtol=1e-3, atol=1e-3)


# --- decoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit_tiny_p8"])
@pytest.mark.parametrize("decoder", ["progressive", "multi_scale", "sam"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_decoder_ends_at_full_size_and_learns(backbone: str, decoder: str, checkpointing: bool):
    model = tiny_teacher("masam", backbone=backbone, decoder=decoder, patch=(5, 48, 64), checkpointing=checkpointing)
    model.freeze_pretrained()
    logits = model(torch.randn(2, 1, 5, 48, 64))
    assert logits.shape == (2, 4, 5, 48, 64)
    segmentation_loss(logits, torch.randint(4, (2, 5, 48, 64))).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("mask_decoder.output_", "mask_decoder.skips.", "mask_decoder.mask_tokens")):
            assert parameter.grad is not None and parameter.grad.any(), name
    assert any(name.startswith("mask_decoder.skips.") for name in model.state_dict()) == (decoder == "multi_scale")


def test_sams_own_decoder_is_sams_at_a_quarter_of_the_size():
    model = tiny_teacher("masam", decoder="sam").eval()
    image = torch.randn(1, 1, 5, 64, 64)
    with torch.no_grad():
        embedding = model.image_encoder(image[0].transpose(0, 1).expand(-1, 3, -1, -1), 5)
        sparse, dense = model.prompt_encoder(None, None, None)
        low, _ = model.mask_decoder(embedding, model.prompt_encoder.get_dense_pe(), sparse, dense)
        assert low.shape == (5, 4, 16, 16)
        full = interpolate(low, (64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(image)[0].transpose(0, 1), full)


def test_multi_scale_fusion_reads_the_tokens_behind_blocks_at_equal_distances():
    model = tiny_teacher("masam", decoder="multi_scale").eval()
    behind, joined = {}, {}
    for number, block in enumerate(model.image_encoder.blocks, start=1):
        block.register_forward_hook(lambda m, i, out, number=number: behind.update({number: out}))
    for number, skip in enumerate(model.mask_decoder.get_submodule("skips").children()):
        skip.register_forward_hook(lambda m, inputs, out, number=number: joined.update({number: (inputs, out)}))
    with torch.no_grad():
        model(torch.randn(1, 1, 5, 64, 64))
    for number, block in enumerate((3, 2, 1)):  # the finest map takes the shallowest tokens
        (x, feature), out = joined[number]
        assert torch.equal(feature, behind[block].permute(0, 3, 1, 2))
        assert x.shape == out.shape == (5, 128 // (4 * 2**number), 8 * 2**number, 8 * 2**number)
        assert not torch.equal(x, out)


def test_parameter_counts_of_the_decoders():
    models = {}
    for decoder in ("progressive", "multi_scale", "sam"):
        with torch.device("meta"):
            models[decoder] = build_teacher(
                "masam", backbone="vit_b", in_channels=1, num_classes=13, patch=(5, 512, 512), decoder=decoder
            )
        models[decoder].freeze_pretrained()
    skips = sum(768 * w + w + 2 * w + 9 * 2 * w * w + w + 2 * w for w in (64, 32, 16))
    # SAM's ends at 32 channels: no norm behind its second stage, no third and fourth; its hypernetworks are wider.
    stages = 2 * 32 + (4 * 32 * 16 + 16) + 2 * 16 + (4 * 16 * 8 + 8)
    heads = 13 * (256 + 1) * (32 - 8)
    for trained in (False, True):
        numbers = {decoder: count(model, trained=trained) for decoder, model in models.items()}
        assert numbers["multi_scale"] - numbers["progressive"] == skips == 183_456
        assert numbers["sam"] - numbers["progressive"] == heads - stages == 77_504


@pytest.mark.parametrize("adapters", ["before", "after", "both"])
@pytest.mark.parametrize("decoder", ["progressive", "multi_scale", "sam"])
def test_published_files_fit_every_choice(adapters: str, decoder: str):
    backbone = get_backbone("vit_b")
    with torch.device("meta"):
        model = build_teacher(
            "masam",
            backbone="vit_b",
            in_channels=1,
            num_classes=13,
            patch=(5, 512, 512),
            adapters=adapters,
            decoder=decoder,
        )
        sam = nn.ModuleDict(
            {
                "image_encoder": ImageEncoder(backbone, image_size=(512, 512)),
                "prompt_encoder": build_prompt_encoder(backbone, image_size=(512, 512)),
                "mask_decoder": MaskDecoder(backbone.decoder, channels=256, masks=4, stages=2),
            }
        ).state_dict()
    values, report = match_published(model, sam, added=adapter_names(model))
    assert report.variant == "vit_b" and set(values) | set(report.dropped) == set(sam)
    assert set(report.added) | set(report.reinitialised) | set(values) == set(model.state_dict())
    assert any("skips" in name for name in report.added) == (decoder == "multi_scale")


# --- video ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["progressive", "multi_scale", "sam"])
def test_rgb_frames_train_and_see_their_neighbours(decoder: str):
    """Surgical video in the paper: three channels, the frames in the place of slices."""
    model = tiny_teacher("masam", in_channels=3, patch=(4, 32, 48), decoder=decoder, zero_init=False)
    model.freeze_pretrained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frames = torch.rand(1, 3, 4, 32, 48)
    step(model, frames)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"image_encoder.blocks.0.adapter1.conv.weight", "image_encoder.blocks.3.adapter2.conv.weight"} <= changed
    model.eval()
    for channel in range(3):
        other = frames.clone()
        other[:, channel, 2] = 1 - other[:, channel, 2]
        with torch.no_grad():
            difference = (model(frames) - model(other)).abs().amax(dim=(0, 1, 3, 4))
        assert (difference > 1e-4 * difference[2]).all() and difference[2] > 0
