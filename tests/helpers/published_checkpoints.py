"""Keys and shapes of the published checkpoints, and files that hold them without their size.

SAM's come from its own constructors; MobileSAM's and EfficientSAM's are written down from their authors' names, and
tests/sam/test_published.py holds them against the conformance vectors at the vectors' sizes.
"""

from itertools import pairwise

import torch
from segment_anything import sam_model_registry
from torch import Tensor

from samkd.sam.presets import Backbone, EfficientViTSize, TinyViTSize, get_encoder_size

Manifest = dict[str, tuple[int, ...]]


def named(prefix: str, shapes: Manifest) -> Manifest:
    return {f"{prefix}.{key}": shape for key, shape in shapes.items()}


def affine(prefix: str, width: int) -> Manifest:
    return named(prefix, {"weight": (width,), "bias": (width,)})


def linear(prefix: str, inputs: int, outputs: int) -> Manifest:
    return named(prefix, {"weight": (outputs, inputs), "bias": (outputs,)})


def conv_bn(prefix: str, inputs: int, outputs: int, kernel: int = 1) -> Manifest:
    statistics: Manifest = {"running_mean": (outputs,), "running_var": (outputs,), "num_batches_tracked": ()}
    shapes = {"c.weight": (outputs, inputs, kernel, kernel), **affine("bn", outputs), **named("bn", statistics)}
    return named(prefix, shapes)


def neck(inputs: int, outputs: int) -> Manifest:
    convolutions: Manifest = {"neck.0.weight": (outputs, inputs, 1, 1), "neck.2.weight": (outputs, outputs, 3, 3)}
    return convolutions | affine("neck.1", outputs) | affine("neck.3", outputs)


def tiny_vit_manifest(size: TinyViTSize) -> Manifest:
    first, *_ = dims = size.dims
    kernel = size.stem_kernel
    keys = conv_bn("patch_embed.seq.0", 3, first // 2, kernel) | conv_bn("patch_embed.seq.2", first // 2, first, kernel)
    for index in range(size.depths[0]):
        block, hidden = f"layers.0.blocks.{index}", int(first * size.expand_ratio)
        keys |= conv_bn(f"{block}.conv1", first, hidden) | conv_bn(f"{block}.conv2", 1, hidden, 3)
        keys |= conv_bn(f"{block}.conv3", hidden, first)
    for stage in range(1, len(dims)):
        dim, hidden = dims[stage], int(dims[stage] * size.mlp_ratio)
        for index in range(size.depths[stage]):
            block = f"layers.{stage}.blocks.{index}"
            keys[f"{block}.attn.attention_biases"] = (size.heads[stage], size.windows[stage] ** 2)
            keys |= affine(f"{block}.attn.norm", dim) | linear(f"{block}.attn.qkv", dim, 3 * dim)
            keys |= linear(f"{block}.attn.proj", dim, dim) | affine(f"{block}.mlp.norm", dim)
            keys |= linear(f"{block}.mlp.fc1", dim, hidden) | linear(f"{block}.mlp.fc2", hidden, dim)
            keys |= conv_bn(f"{block}.local_conv", 1, dim, size.local_conv)
    for stage, (dim, out) in enumerate(pairwise(dims)):
        merge = f"layers.{stage}.downsample"
        keys |= conv_bn(f"{merge}.conv1", dim, out) | conv_bn(f"{merge}.conv2", 1, out, 3)
        keys |= conv_bn(f"{merge}.conv3", out, out)
    return keys | neck(dims[-1], size.out_chans)


def classifier_manifest(size: TinyViTSize) -> Manifest:
    """MobileSAM's file holds the classifier of its pretraining; LiteMedSAM's does not."""
    return affine("norm_head", size.dims[-1]) | linear("head", size.dims[-1], 1000)


def efficient_vit_manifest(size: EfficientViTSize) -> Manifest:
    dim, hidden, token = size.dim, int(size.dim * size.mlp_ratio), size.patch_size
    keys: Manifest = {"pos_embed": (1, 1 + (224 // token) ** 2, dim)}
    keys |= {"patch_embed.proj.weight": (dim, 3, token, token), "patch_embed.proj.bias": (dim,)}
    for index in range(size.depth):
        block = f"blocks.{index}"
        keys |= affine(f"{block}.norm1", dim) | affine(f"{block}.norm2", dim)
        keys |= linear(f"{block}.attn.qkv", dim, 3 * dim) | linear(f"{block}.attn.proj", dim, dim)
        keys |= linear(f"{block}.mlp.fc1", dim, hidden) | linear(f"{block}.mlp.fc2", hidden, dim)
    return keys | neck(dim, size.out_chans)


def efficient_sam_manifest(size: EfficientViTSize) -> Manifest:
    channels, decoder = size.out_chans, size.decoder
    keys: Manifest = named("image_encoder", efficient_vit_manifest(size))
    keys["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, channels // 2)
    for name in ("invalid_points", "point_embeddings", "bbox_top_left_embeddings", "bbox_bottom_right_embeddings"):
        keys[f"prompt_encoder.{name}.weight"] = (1, channels)
    transformer: Manifest = attention("final_attn_token_to_image", channels, channels // 2)
    transformer |= affine("norm_final_attn", channels)
    for index in range(decoder.depth):
        layer = attention("self_attn", channels, channels)
        layer |= attention("cross_attn_token_to_image", channels, channels // 2)
        layer |= attention("cross_attn_image_to_token", channels, channels // 2)
        layer |= {key: shape for norm in range(1, 5) for key, shape in affine(f"norm{norm}", channels).items()}
        layer |= linear("mlp.layers.0.0", channels, decoder.mlp_dim) | linear("mlp.fc", decoder.mlp_dim, channels)
        transformer |= named(f"layers.{index}", layer)
    keys |= named("mask_decoder.transformer", transformer)
    keys |= {"mask_decoder.iou_token.weight": (1, channels), "mask_decoder.mask_tokens.weight": (4, channels)}
    inputs = channels
    for index, width in enumerate(size.upscaling):
        stage = f"mask_decoder.final_output_upscaling_layers.{index}"
        keys |= {f"{stage}.0.weight": (inputs, width, 2, 2), f"{stage}.0.bias": (width,)}
        keys |= affine(f"{stage}.1", width) if index < len(size.upscaling) - 1 else {}
        inputs = width
    heads = [(f"output_hypernetworks_mlps.{mask}", channels, inputs) for mask in range(4)]
    for name, hidden, outputs in [*heads, ("iou_prediction_head", decoder.iou_hidden, 4)]:
        head = linear("layers.0.0", channels, hidden) | linear("layers.1.0", hidden, hidden)
        keys |= named(f"mask_decoder.{name}", head | linear("fc", hidden, outputs))
    return keys


def attention(prefix: str, channels: int, inner: int) -> Manifest:
    keys = linear("q_proj", channels, inner) | linear("k_proj", channels, inner)
    return named(prefix, keys | linear("v_proj", channels, inner) | linear("out_proj", inner, channels))


def sam_manifest(name: str) -> Manifest:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in sam_model_registry[name]().state_dict().items()}


def manifest(name: str) -> Manifest:
    """The published file of an image encoder: the whole state of SAM or of one of its small relatives."""
    size = get_encoder_size(name)
    if isinstance(size, Backbone):
        return sam_manifest(name)
    if isinstance(size, EfficientViTSize):
        return efficient_sam_manifest(size)
    assert isinstance(size, TinyViTSize)
    rest = {key: shape for key, shape in sam_manifest("vit_b").items() if not key.startswith("image_encoder.")}
    classifier = {} if name == "litemedsam" else classifier_manifest(size)
    return named("image_encoder", tiny_vit_manifest(size) | classifier) | rest


def state_of(shapes: Manifest) -> dict[str, Tensor]:
    """Every tensor is one number that is repeated, so that vit_h needs no 2.5 GB."""
    return {key: torch.full((1,), 0.5).expand(shape) if shape else torch.tensor(1) for key, shape in shapes.items()}
