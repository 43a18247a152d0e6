"""3DSAM-adapter against numbers taken from its authors' code, with and without points."""

import re
from pathlib import Path

import pytest
import torch
from helpers.conformance import TOLERANCE, Vectors, assert_conforms, errors, of_kind, read
from torch import Tensor, nn

from samkd.sam.checkpoints import canonical_state
from samkd.sam.presets import Backbone, DecoderSize
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.sam3d.model import AUTHORS_KEYS, SAM3D, build_sam3d
from samkd.teachers.volumetric.attention import CubeAttention


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def backbone_of(vectors: Vectors) -> Backbone:
    """The JSON leaves the number of blocks and those with long tables to the weights."""
    sizes, weights = vectors.sizes, vectors.weights
    depth = sum(name.endswith(".attn.rel_pos_d") for name in weights)
    rows = [len(weights[f"img_encoder.blocks.{index}.attn.rel_pos_d"]) for index in range(depth)]
    layers = {name.split(".")[3] for name in weights if name.startswith("prompt_encoder.transformer.layers.")}
    return Backbone(
        "conformance",
        dim=sizes["embed_dim"],
        depth=depth,
        heads=sizes["num_heads"],
        global_attn_indexes=tuple(i for i in range(depth) if rows[i] != 2 * sizes["window_size"] - 1),
        window=sizes["window_size"],
        patch_size=sizes["patch_size"],
        out_chans=sizes["out_chans"],
        mlp_ratio=sizes["mlp_ratio"],
        decoder=DecoderSize(depth=len(layers), heads=sizes["prompt_heads"], mlp_dim=sizes["prompt_mlp_dim"]),
    )


def sam3d_of(vectors: Vectors) -> SAM3D:
    sizes = vectors.sizes
    height, width, depth = sizes["crop_hwd"]
    model = build_sam3d(
        backbone=backbone_of(vectors),
        in_channels=vectors.inputs["crop"].shape[1],
        num_classes=sizes["num_classes"],
        patch=(depth, height, width),
        upsample=sizes["up"],
        slices=sizes["num_slice"],
        cube=sizes["cubic_window_size"],
        positions=sizes["img_size"] // sizes["patch_size"],
        decoder_channels=sizes["mlahead_channels"],
    )
    state = canonical_state(vectors.weights, renames=AUTHORS_KEYS)
    del state["prompt_encoder.positional_encoding_gaussian_matrix"]  # computed by the authors, never used
    model.load_state_dict(state)
    return model.eval()


def points_of(vectors: Vectors, classes: int) -> Prompts:
    """The file's points for class 1, none for any other."""
    given = vectors.inputs["points_d_w_h"][..., [0, 2, 1]]
    points = given[:, None].repeat(1, classes - 1, 1, 1)
    labels = torch.full(points.shape[:3], -1)
    labels[:, 0] = 1
    return Prompts(points, labels, torch.full((len(points), classes - 1, 6), torch.nan))


def sam3d_taps(model: SAM3D, vectors: Vectors) -> dict[str, Tensor]:
    """Every output in the file, seen through hooks, in the authors' layout (which ours is inside the model)."""
    taps: dict[str, Tensor] = {}
    encoder, sampler, decoder = model.image_encoder, model.prompt_encoder, model.mask_decoder

    def keep(name: str, pick=lambda output: output):
        def hook(module, inputs, output) -> None:
            taps.setdefault(name, pick(output))

        return hook

    def keep_input(name: str, pick=lambda value: value):
        def hook(module, inputs) -> None:
            taps.setdefault(name, pick(inputs[0]))

        return hook

    hooks = [
        encoder.blocks[0].register_forward_pre_hook(keep_input("enc/tokens_in")),
        decoder.cls.register_forward_pre_hook(
            keep_input("decoder/img_resized_1_1_H_W_D", lambda value: value[:, -model.in_channels :])
        ),
        sampler.register_forward_hook(keep("prompt/feature3_prompted")),
        decoder.register_forward_hook(keep("decoder/masks_b_cls_D_H_W")),
    ]
    for index, neck in enumerate(encoder.necks):
        hooks.append(neck.register_forward_hook(keep(f"enc/feature{index}")))
    for index, layer in enumerate(sampler.layers):
        hooks.append(layer.register_forward_hook(keep(f"prompt/layer{index}_image", lambda output: output[0])))
        hooks.append(layer.register_forward_hook(keep(f"prompt/layer{index}_points", lambda output: output[1])))
    for index, block in enumerate(encoder.blocks):
        hooks.append(block.get_submodule("adapter").register_forward_hook(keep(f"enc/block{index}_adapter")))
        hooks.append(block.register_forward_hook(keep(f"enc/block{index}")))
    logits = model(vectors.inputs["crop"], points_of(vectors, model.num_classes))
    raw = taps["decoder/masks_b_cls_D_H_W"]
    torch.testing.assert_close(logits[:, 1], raw[:, 1] - raw[:, 0])
    for hook in hooks:
        hook.remove()
    decoder.register_forward_hook(keep("decoder/masks_auto_no_prompt_b_cls_D_H_W"))
    logits = model(vectors.inputs["crop"])
    raw = taps["decoder/masks_auto_no_prompt_b_cls_D_H_W"]
    assert torch.equal(logits, raw - raw[:, :1])
    assert set(taps) >= set(vectors.outputs), set(vectors.outputs) - set(taps)
    return {name: taps[name] for name in vectors.outputs}


@pytest.mark.parametrize("path", of_kind("sam3d_adapter"))
def test_sam3d(path: Path):
    vectors = read(path)
    assert_conforms(sam3d_taps(sam3d_of(vectors), vectors), vectors.outputs)


@pytest.mark.parametrize("path", of_kind("sam3d_adapter"))
@pytest.mark.parametrize(
    "mutation", ["tanh gelu", "attention scale", "relative axes", "shifted in odd blocks", "points as d, h, w"]
)
def test_mutation_is_caught(path: Path, mutation: str):
    vectors = read(path)
    model = sam3d_of(vectors)
    mutate(model, vectors, mutation)
    result = errors(sam3d_taps(model, vectors), vectors.outputs)
    if mutation != "points as d, h, w":
        assert result["enc/feature3"] > 2 * TOLERANCE
        assert result["decoder/masks_auto_no_prompt_b_cls_D_H_W"] > TOLERANCE
    assert result["prompt/feature3_prompted"] > 2 * TOLERANCE
    assert result["decoder/masks_b_cls_D_H_W"] > TOLERANCE


def mutate(model: SAM3D, vectors: Vectors, mutation: str) -> None:
    for module in model.image_encoder.modules():
        if mutation == "tanh gelu" and isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if mutation == "attention scale" and isinstance(module, CubeAttention):
            module.scale = 1.01 * float(module.scale)  # pyright: ignore[reportArgumentType]
        if mutation == "relative axes" and isinstance(module, CubeAttention):
            module.rel_pos_d, module.rel_pos_w = module.rel_pos_w, module.rel_pos_d
    if mutation == "shifted in odd blocks":
        for even, odd in zip(model.image_encoder.blocks[::2], model.image_encoder.blocks[1::2], strict=True):
            even.shift, odd.shift = odd.shift, even.shift
    if mutation == "points as d, h, w":
        vectors.inputs["points_d_w_h"] = vectors.inputs["points_d_w_h"][..., [0, 2, 1]]


def test_authors_keys_are_all_mapped():
    for path in of_kind("sam3d_adapter"):
        (file,) = path.values
        if file is not None:
            keys = canonical_state(read(file).weights, renames=AUTHORS_KEYS)
            assert [key for key in keys if re.search(r"img_encoder|neck_3d|linear\d|mlahead|transformer", key)] == []
