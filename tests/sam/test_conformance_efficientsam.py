"""EfficientSAM's encoder, prompts and decoder against numbers taken from its authors' code."""

from pathlib import Path

import pytest
import torch
from helpers.conformance import TOLERANCE, Vectors, assert_conforms, efficient_vit_of, errors, of_kind, read
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samkd.sam.checkpoints import canonical_state
from samkd.sam.efficient_sam import EfficientMaskDecoder, EfficientPromptEncoder
from samkd.sam.efficient_vit import Attention, EfficientViT
from samkd.sam.presets import EfficientViTSize

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class EfficientSam(nn.Module):
    def __init__(self, size: EfficientViTSize, side: int, masks: int) -> None:
        super().__init__()
        self.image_encoder = encoder = EfficientViT(size, image_size=(side, side))
        self.prompt_encoder = EfficientPromptEncoder(
            size.out_chans, image_size=encoder.image_size, grid=encoder.grid, max_points=size.max_points
        )
        self.mask_decoder = EfficientMaskDecoder(
            size.decoder, channels=size.out_chans, masks=masks, widths=size.upscaling
        )


def sam_of(vectors: Vectors) -> EfficientSam:
    masks = len(vectors.weights["mask_decoder.mask_tokens.weight"])
    parts = EfficientSam(efficient_vit_of(vectors.sizes), vectors.sizes["img_size"], masks)
    parts.load_state_dict(canonical_state(vectors.weights))
    return parts.eval()


def taps_of(parts: EfficientSam, vectors: Vectors) -> dict[str, Tensor]:
    """Every output in the file, for its only image; what is done to photographs before and after stands here."""
    encoder, prompts, decoder = parts.image_encoder, parts.prompt_encoder, parts.mask_decoder
    taps: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: taps.update({name: output.flatten(1, 2)})

    encoder.blocks[0].register_forward_pre_hook(
        lambda module, inputs: taps.update({"enc/after_pos_embed": inputs[0].flatten(1, 2)})
    )
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(keep(f"enc/block{index}"))
    encoder.blocks[-1].register_forward_hook(keep("enc/last_block"))
    decoder.transformer.register_forward_hook(lambda m, i, output: taps.update({"decoder/queries": output[0]}))

    images, points, labels = (vectors.inputs[name] for name in ("images", "points", "point_labels"))
    full = images.shape[2:]
    if tuple(full) != encoder.image_size:
        images = interpolate(images, encoder.image_size, mode="bilinear")
    images = (images - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]
    scale = torch.tensor([encoder.image_size[1] / full[1], encoder.image_size[0] / full[0]])
    points = torch.where(points < 0, points, points * scale)

    taps["image_embedding"] = encoder(images)
    taps["dense_pe"] = position = prompts.get_dense_pe()
    taps["prompt/sparse"] = sparse = prompts(points.flatten(0, 1), labels.flatten(0, 1))
    embedding = taps["image_embedding"].repeat_interleave(points.shape[1], dim=0)
    logits, iou = (output.unflatten(0, points.shape[:2]) for output in decoder(embedding, position, sparse))
    taps |= {"low_res_masks_multi0": logits[:, :, :1], "iou_multi0": iou[:, :, :1]}
    taps |= {"low_res_masks_multi1": logits[:, :, 1:], "iou_multi1": iou[:, :, 1:]}
    first = interpolate(logits[:, 0, 1:], tuple(full), mode="bicubic")
    taps["full_size_mask_first_query_multi_index0"] = first[:, None, :1]
    assert set(taps) >= set(vectors.outputs), set(vectors.outputs) - set(taps)
    return {name: taps[name] for name in vectors.outputs}


@pytest.mark.parametrize("path", of_kind("efficientsam"))
def test_efficientsam(path: Path):
    vectors = read(path)
    assert_conforms(taps_of(sam_of(vectors), vectors), vectors.outputs)


def mutate(parts: EfficientSam, mutation: str) -> None:
    for module in parts.modules():
        if mutation == "tanh gelu" and isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if mutation == "attention scale" and isinstance(module, Attention):
            module.scale = 1.01 * float(module.scale)  # pyright: ignore[reportArgumentType]
        if mutation == "decoder attention scale" and isinstance(module, DecoderAttention):
            module.q_proj.weight.mul_(1.01)
            module.q_proj.bias.mul_(1.01)
    if mutation == "swapped corners":
        parts.prompt_encoder.bbox_top_left_embeddings, parts.prompt_encoder.bbox_bottom_right_embeddings = (
            parts.prompt_encoder.bbox_bottom_right_embeddings,
            parts.prompt_encoder.bbox_top_left_embeddings,
        )


@pytest.mark.parametrize("path", of_kind("efficientsam"))
@pytest.mark.parametrize(
    ("mutation", "tap"),
    [
        ("tanh gelu", "image_embedding"),
        ("attention scale", "image_embedding"),
        ("tanh gelu", "low_res_masks_multi1"),
        ("decoder attention scale", "low_res_masks_multi1"),
        ("swapped corners", "prompt/sparse"),
    ],
)
def test_mutation_is_caught(path: Path, mutation: str, tap: str):
    vectors = read(path)
    parts = sam_of(vectors)
    mutate(parts, mutation)
    assert errors(taps_of(parts, vectors), vectors.outputs)[tap] > 2 * TOLERANCE
