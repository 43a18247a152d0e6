"""AutoSAM Adapter against numbers taken from its authors' code, its generator wired as there and as in the paper."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.conformance import TOLERANCE, Vectors, assert_conforms, errors, of_kind, read
from torch import Tensor, nn

from samkd.sam.checkpoints import canonical_state
from samkd.sam.presets import Backbone
from samkd.teachers.autosam.model import AUTHORS_KEYS, AutoSAM, build_autosam
from samkd.teachers.autosam.prompt_generator import PromptGenerator
from samkd.teachers.volumetric.attention import CubeAttention

WIRINGS = {"first": "final/logits_B_cls_D_H_W", "last": "variant_paper_prompt_on_last/logits_before_last_resize"}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def backbone_of(vectors: Vectors) -> Backbone:
    """The JSON leaves the number of blocks and those with long tables to the weights."""
    sizes, weights = vectors.sizes, vectors.weights
    depth = sum(name.endswith(".attn.rel_pos_d") for name in weights)
    rows = [len(weights[f"img_encoder.blocks.{index}.attn.rel_pos_d"]) for index in range(depth)]
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
    )


def autosam_of(vectors: Vectors, *, prompt_from: str) -> AutoSAM:
    sizes = vectors.sizes
    depth, height, width = sizes["crop_dhw"]
    model = build_autosam(
        backbone=backbone_of(vectors),
        in_channels=vectors.inputs["crop"].shape[1],
        num_classes=sizes["num_classes"],
        patch=(depth, height, width),
        prompt_from=prompt_from,
        adapter="code",
        upsample=sizes["up"],
        slices=sizes["num_slice"],
        cube=sizes["cubic_window_size"],
        positions=sizes["img_size"] // sizes["patch_size"],
        decoder_channels=sizes["mlahead_channels"],
    )
    h, w, d = zip(*sizes["unet_scale"], strict=True)
    model.prompt_generator = PromptGenerator(
        sizes["out_chans"], width=sizes["unet_base_ch"], pools=list(zip(h, w, d, strict=True))
    )
    model.load_state_dict(canonical_state(vectors.weights, renames=AUTHORS_KEYS))
    return model.eval()


def taps_of(vectors: Vectors, *, mutation: str = "") -> dict[str, Tensor]:
    """Every output in the file, out of both wirings, and without a generator (the paper's ablation)."""
    image, stride = vectors.inputs["crop"], vectors.sizes["variant_stride"]
    model = autosam_of(vectors, prompt_from="last")
    mutate(model, mutation)
    last, logits = run(model, vectors)
    small = last["cls"].permute(0, 1, 4, 2, 3)
    resized = nn.functional.interpolate(small, image.shape[2:], mode="trilinear", align_corners=True)
    torch.testing.assert_close(logits, resized)
    without: list[Any] = []
    model.mask_decoder.cls.register_forward_hook(lambda module, inputs, output: without.append(output))
    *deeper, shallowest = reversed(model.image_encoder(image))
    model.mask_decoder(model.mask_decoder.shallow(deeper), shallowest, image)

    model = autosam_of(vectors, prompt_from="first")
    mutate(model, mutation)
    taps, logits = run(model, vectors)
    taps |= {
        WIRINGS["first"]: logits,
        WIRINGS["last"]: strided(small, stride),
        "variant_paper_prompt_on_last/apg_out": strided(last["apg/out"], vectors.sizes["token_tap_stride"]),
        "variant_no_prompt/logits_before_last_resize": strided(without[0].permute(0, 1, 4, 2, 3), stride),
    }
    expected = {name for name in vectors.outputs if not name.startswith("loss/")}  # our loss leaves background out
    assert set(taps) >= expected, expected - set(taps)
    return {name: taps[name] for name in expected}


def run(model: AutoSAM, vectors: Vectors) -> tuple[dict[str, Tensor], Tensor]:
    """What hooks see, under the file's names and in the authors' layout (which ours is inside), and the logits."""
    encoder, generator, decoder = model.image_encoder, model.prompt_generator, model.mask_decoder
    assert generator is not None
    stride = vectors.sizes["token_tap_stride"]
    taps: dict[str, Tensor] = {}

    def keep(name: str, stride: int = 1):
        return lambda module, inputs, output: taps.update({name: strided(output, stride)})

    def keep_tokens(name: str):
        return lambda module, inputs, output: taps.update({name: output[:, ::stride, ::stride, ::stride]})

    def keep_image(module, inputs) -> None:
        taps["dec/img_resized_1_1_H_W_D"] = strided(inputs[0][:, -model.in_channels :], stride)

    def keep_first(module, inputs) -> None:
        taps["enc/tokens_in_1_H_W_D_C"] = inputs[0][:, ::stride, ::stride, ::stride]

    encoder.slice_embed.register_forward_hook(keep("enc/slice_embed_1_C_H_W_D", stride))
    encoder.blocks[0].register_forward_pre_hook(keep_first)
    for index, block in enumerate(encoder.blocks):
        block.get_submodule("adapter").register_forward_hook(keep_tokens(f"enc/block{index}_adapter"))
        block.register_forward_hook(keep_tokens(f"enc/block{index}"))
    for index, neck in enumerate(encoder.necks):
        neck.register_forward_hook(keep(f"enc/feature{index}_1_C_H_W_D"))
    generator.stem.register_forward_hook(keep("apg/inc", stride))
    for index, (down, up) in enumerate(zip(generator.down, generator.up, strict=True), start=1):
        down.register_forward_hook(keep(f"apg/down{index}", stride if index == 1 else 1))
        up.register_forward_hook(keep(f"apg/up{index}", stride if index > 2 else 1))
    generator.register_forward_hook(keep("apg/out"))
    for index, head in enumerate(decoder.heads, start=2):
        head.get_submodule("5").register_forward_hook(keep(f"dec/head{index}_before_upsampling", stride))
    decoder.cls[0].register_forward_pre_hook(keep_image)
    decoder.cls[2].register_forward_hook(keep("dec/cls_hidden_stride4", 4))
    decoder.cls.register_forward_hook(keep("cls"))
    logits = model(vectors.inputs["crop"])
    return taps, logits


def strided(x: Tensor, stride: int) -> Tensor:
    """Every `stride`-th voxel of [B, C, ...]."""
    return x[:, :, ::stride, ::stride, ::stride]


def mutate(model: AutoSAM, mutation: str) -> None:
    for module in model.modules():
        if mutation == "tanh gelu" and isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if mutation == "attention scale" and isinstance(module, CubeAttention):
            module.scale = 1.01 * float(module.scale)  # pyright: ignore[reportArgumentType]
        if mutation == "relative axes" and isinstance(module, CubeAttention):
            module.rel_pos_h, module.rel_pos_d = module.rel_pos_d, module.rel_pos_h
        if mutation == "instance norm eps" and isinstance(module, nn.InstanceNorm3d):
            module.eps = 1e-3


@pytest.mark.parametrize("path", of_kind("autosam"))
def test_autosam(path: Path):
    vectors = read(path)
    assert_conforms(taps_of(vectors), vectors.outputs)


@pytest.mark.parametrize("path", of_kind("autosam"))
@pytest.mark.parametrize("mutation", ["tanh gelu", "attention scale", "relative axes", "instance norm eps"])
def test_mutation_is_caught(path: Path, mutation: str):
    vectors = read(path)
    result = errors(taps_of(vectors, mutation=mutation), vectors.outputs)
    assert all(result[name] > 2 * TOLERANCE for name in (*WIRINGS.values(), "apg/out"))
    assert (result["enc/feature3_1_C_H_W_D"] > 2 * TOLERANCE) == (mutation != "instance norm eps")


@pytest.mark.parametrize("path", of_kind("autosam"))
def test_the_other_wiring_is_caught(path: Path):
    vectors = read(path)
    (_, first), (_, last) = (run(autosam_of(vectors, prompt_from=place), vectors) for place in ("first", "last"))
    assert errors({WIRINGS["first"]: first}, vectors.outputs)[WIRINGS["first"]] <= TOLERANCE
    assert errors({WIRINGS["first"]: last}, vectors.outputs)[WIRINGS["first"]] > 0.1


def test_authors_keys_are_all_mapped():
    for path in of_kind("autosam"):
        (file,) = path.values
        if file is not None:
            keys = canonical_state(read(file).weights, renames=AUTHORS_KEYS)
            assert [key for key in keys if re.search(r"img_encoder|neck_3d|linear\d|mlahead|prompt_encoder", key)] == []
