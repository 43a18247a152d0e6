"""SAM and MA-SAM against numbers taken from their authors' code."""

import re
from pathlib import Path

import pytest
import torch
from helpers.conformance import TOLERANCE, Vectors, assert_conforms, backbone_of, errors, of_kind, read
from torch import Tensor, nn

from samkd.sam.checkpoints import canonical_state
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import Backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import Attention, ImageEncoder
from samkd.teachers.masam.adapters import Adapter3D, FacT, SharedFactors
from samkd.teachers.masam.model import AUTHORS_KEYS, MASAM, build_masam


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# --- MA-SAM ---------------------------------------------------------------------------------------------------------


def masam_of(vectors: Vectors) -> MASAM:
    sizes = vectors.sizes
    model = build_masam(
        backbone=backbone_of(sizes),
        in_channels=vectors.inputs["volume"].shape[2],
        num_classes=sizes["num_classes"] + 1,
        patch=(sizes["d"], sizes["img_size"], sizes["img_size"]),
        rank=sizes["fact_rank"],
        scale=sizes["fact_scale"],
        adapter_channels=sizes["adapter_channels"],
    )
    model.load_state_dict(canonical_state(vectors.weights, renames=AUTHORS_KEYS))
    return model.eval()


def masam_taps(model: MASAM, vectors: Vectors) -> dict[str, Tensor]:
    """Every output in the file, seen through hooks, and the volume's logits out of `forward`."""
    taps: dict[str, Tensor] = {}

    def keep(name: str, pick=lambda output: output):
        return lambda module, inputs, output: taps.update({name: pick(output)})

    def keep_input(name: str):
        return lambda module, inputs: taps.update({name: inputs[0]})

    model.image_encoder.register_forward_hook(keep("image_embedding"))
    model.mask_decoder.output_upscaling.register_forward_hook(
        keep("decoder/upscaled_first_slice", lambda output: output[:1])
    )
    model.mask_decoder.register_forward_hook(keep("low_res_logits", lambda output: output[0]))
    model.mask_decoder.register_forward_hook(keep("iou_predictions", lambda output: output[1]))
    for index, block in enumerate(model.image_encoder.blocks):
        assert isinstance(block.adapter1, nn.Module) and isinstance(block.adapter2, nn.Module)
        block.register_forward_pre_hook(keep_input(f"block{index}/input"))
        block.adapter1.register_forward_hook(keep(f"block{index}/after_adapter1"))
        block.adapter2.register_forward_pre_hook(keep_input(f"block{index}/after_attention"))
        block.adapter2.register_forward_hook(keep(f"block{index}/after_adapter2"))
        block.register_forward_hook(keep(f"block{index}/output"))
    logits = model(vectors.inputs["volume"].transpose(1, 2))
    assert torch.equal(logits.transpose(1, 2).flatten(0, 1), taps["low_res_logits"])
    assert set(taps) >= set(vectors.outputs), set(vectors.outputs) - set(taps)
    return {name: taps[name] for name in vectors.outputs}


@pytest.mark.parametrize("path", of_kind("masam"))
def test_masam(path: Path):
    vectors = read(path)
    assert_conforms(masam_taps(masam_of(vectors), vectors), vectors.outputs)


@pytest.mark.parametrize("path", of_kind("masam"))
@pytest.mark.parametrize("mutation", ["tanh gelu", "attention scale"])
def test_masam_mutation_is_caught(path: Path, mutation: str):
    vectors = read(path)
    model = masam_of(vectors)
    mutate(model.image_encoder, mutation)
    result = errors(masam_taps(model, vectors), vectors.outputs)
    assert result["image_embedding"] > 2 * TOLERANCE
    assert result["low_res_logits"] > TOLERANCE


def mutate(encoder: ImageEncoder, mutation: str) -> None:
    for module in encoder.modules():
        if mutation == "tanh gelu" and isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if mutation == "attention scale" and isinstance(module, Attention):
            module.scale = 1.01 * float(module.scale)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("path", of_kind("masam_fact"))
def test_fact(path: Path):
    vectors = read(path)
    sizes = vectors.sizes
    factors = SharedFactors(sizes["dim"], sizes["r"])
    fact = FacT(sizes["dim"], factors, scale=sizes["s"], dropout=0.1)
    parts = nn.ModuleDict({"qkv": fact, "factors": factors}).eval()
    parts.load_state_dict(canonical_state(vectors.weights, renames=AUTHORS_KEYS))
    x = vectors.inputs["x"]
    base = nn.functional.linear(x, fact.weight, fact.bias)
    assert_conforms({"qkv": fact(x), "qkv_without_fact": base}, vectors.outputs)


@pytest.mark.parametrize("path", of_kind("masam_adapter3d"))
def test_adapter3d(path: Path):
    vectors = read(path)
    adapter = Adapter3D(vectors.sizes["dim"], vectors.sizes["adapter_channels"]).eval()
    state = canonical_state(vectors.weights, renames=AUTHORS_KEYS)
    adapter.load_state_dict({key.removeprefix("wrapped.adapter1."): value for key, value in state.items()})
    taps: dict[str, Tensor] = {}
    adapter.conv.register_forward_hook(lambda m, i, out: taps.update({"conv_out_b_c_d_h_w": out[:, :16]}))
    adapter.act.register_forward_hook(
        lambda m, i, out: taps.update({"gelu_out_first_token": out[..., 0, 0].transpose(1, 2).flatten(0, 1)})
    )
    taps["y"] = adapter(vectors.inputs["x"], vectors.sizes["d"])
    assert_conforms(taps, vectors.outputs)


# --- SAM ------------------------------------------------------------------------------------------------------------

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Sam(nn.Module):
    def __init__(self, backbone: Backbone, side: int, masks: int) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(backbone, image_size=(side, side))
        self.prompt_encoder = build_prompt_encoder(backbone, image_size=(side, side))
        self.mask_decoder = MaskDecoder(backbone.decoder, channels=backbone.out_chans, masks=masks, stages=2)


def sam_of(vectors: Vectors) -> Sam:
    sizes = vectors.sizes
    parts = Sam(backbone_of(sizes), sizes["img_size"], sizes["num_multimask_outputs"] + 1)
    parts.load_state_dict(canonical_state(vectors.weights))
    return parts.eval()


def sam_taps(parts: Sam, vectors: Vectors) -> dict[str, Tensor]:
    encoder, prompts, decoder = parts.image_encoder, parts.prompt_encoder, parts.mask_decoder
    taps: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: taps.update({name: output})

    encoder.patch_embed.register_forward_hook(keep("enc/patch_embed"))
    encoder.blocks[0].register_forward_pre_hook(lambda m, inputs: taps.update({"enc/after_pos_embed": inputs[0]}))
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(keep(f"enc/block{index}"))

    image = vectors.inputs["image_u8range"]
    image = (image - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]
    side = vectors.sizes["img_size"]
    image = nn.functional.pad(image, (0, side - image.shape[3], 0, side - image.shape[2]))
    taps["image_embedding"] = encoder(image)
    taps["dense_pe"] = position = prompts.get_dense_pe()

    points = (vectors.inputs["point_coords"], vectors.inputs["point_labels"])
    given = {"points": points, "box": vectors.inputs["boxes"], "mask": vectors.inputs["mask_inputs"]}
    for case in {name.split("/")[0] for name in vectors.outputs if name.endswith("/iou_multi1")}:
        chosen = {kind: value for kind, value in given.items() if kind in case.split("_")}
        sparse, dense = prompts(chosen.get("points"), chosen.get("box"), chosen.get("mask"))
        masks, iou = decoder(taps["image_embedding"][:1], position, sparse, dense)
        taps |= {f"{case}/sparse": sparse, f"{case}/dense": dense}
        taps |= {f"{case}/low_res_masks_multi0": masks[:, :1], f"{case}/iou_multi0": iou[:, :1]}
        taps |= {f"{case}/low_res_masks_multi1": masks[:, 1:], f"{case}/iou_multi1": iou[:, 1:]}
    # Not ours: SAM's pre- and post-processing of photographs.
    expected = {name for name in vectors.outputs if not re.search("preprocessed|postprocessed", name)}
    assert set(taps) >= expected, expected - set(taps)
    return {name: taps[name] for name in expected}


@pytest.mark.parametrize("path", of_kind("sam_vit"))
def test_sam(path: Path):
    vectors = read(path)
    assert_conforms(sam_taps(sam_of(vectors), vectors), vectors.outputs)


@pytest.mark.parametrize("path", of_kind("sam_vit"))
@pytest.mark.parametrize("mutation", ["tanh gelu", "attention scale"])
def test_sam_mutation_is_caught(path: Path, mutation: str):
    vectors = read(path)
    parts = sam_of(vectors)
    mutate(parts.image_encoder, mutation)
    assert errors(sam_taps(parts, vectors), vectors.outputs)["image_embedding"] > 2 * TOLERANCE
