"""MobileSAM's TinyViT against numbers taken from its authors' code."""

from pathlib import Path

import pytest
import torch
from helpers.conformance import TOLERANCE, Vectors, assert_conforms, errors, of_kind, read, tiny_vit_of
from torch import Tensor, nn

from samkd.sam.checkpoints import canonical_state
from samkd.sam.tiny_vit import Attention, TinyBlock, TinyViT


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def encoder_of(vectors: Vectors) -> TinyViT:
    side = vectors.sizes["img_size"]
    encoder = TinyViT(tiny_vit_of(vectors.sizes), image_size=(side, side))
    state = canonical_state(vectors.weights)
    encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith(encoder.unused)})
    return encoder.eval()


def taps_of(encoder: TinyViT, vectors: Vectors) -> dict[str, Tensor]:
    """Every output in the file, seen through hooks; the authors' stages and blocks give tokens [1, h * w, C]."""
    taps: dict[str, Tensor] = {}

    def keep(name: str, *, channels_last: bool):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            taps[name] = output[:1].flatten(1, 2) if channels_last else output[:1].flatten(2).transpose(1, 2)

        return hook

    for index, stage in enumerate(encoder.layers):
        stage.register_forward_hook(keep(f"layer{index}", channels_last=False))
        assert isinstance(stage.blocks, nn.Sequential | nn.ModuleList)
        for position, block in enumerate(stage.blocks):
            block.register_forward_hook(
                keep(f"layer{index}_block{position}", channels_last=isinstance(block, TinyBlock))
            )
    taps["image_embedding"] = encoder(vectors.inputs["image"])
    assert set(taps) >= set(vectors.outputs), set(vectors.outputs) - set(taps)
    return {name: taps[name] for name in vectors.outputs}


@pytest.mark.parametrize("path", of_kind("mobilesam"))
def test_mobilesam(path: Path):
    vectors = read(path)
    assert_conforms(taps_of(encoder_of(vectors), vectors), vectors.outputs)


def mutate(encoder: TinyViT, mutation: str) -> None:
    for module in encoder.modules():
        if mutation == "tanh gelu" and isinstance(module, nn.GELU):
            module.approximate = "tanh"
        if mutation == "attention scale" and isinstance(module, Attention):
            module.scale = 1.01 * float(module.scale)  # pyright: ignore[reportArgumentType]
        if mutation == "bias axes" and isinstance(module, Attention):
            biases = module.get_parameter("attention_biases")
            side = int(biases.shape[1] ** 0.5)
            biases.copy_(biases.unflatten(1, (side, side)).transpose(1, 2).flatten(1))


@pytest.mark.parametrize("path", of_kind("mobilesam"))
@pytest.mark.parametrize("mutation", ["tanh gelu", "attention scale", "bias axes"])
def test_mutation_is_caught(path: Path, mutation: str):
    vectors = read(path)
    encoder = encoder_of(vectors)
    mutate(encoder, mutation)
    assert errors(taps_of(encoder, vectors), vectors.outputs)["image_embedding"] > 2 * TOLERANCE


@pytest.mark.parametrize("path", of_kind("mobilesam"))
def test_padding_changes_only_the_windows_it_is_in(path: Path):
    """A grid that windows do not divide: the first, whole windows of a block are those of the grid that they divide."""
    vectors = read(path)
    block = encoder_of(vectors).layers[1].blocks[0]  # pyright: ignore[reportIndexIssue]
    assert isinstance(block, TinyBlock)
    window = block.window
    tokens = torch.randn(1, 2 * window, 2 * window, vectors.sizes["embed_dims"][1])
    cropped = block.attend(tokens[:, : 2 * window - 3, : window + 2])
    assert cropped.shape[1:3] == (2 * window - 3, window + 2)
    torch.testing.assert_close(cropped[:, :window, :window], block.attend(tokens)[:, :window, :window])
