"""Medical SAM Adapter and the published weights that it adapts."""

import re
from pathlib import Path

import pytest
import torch
from helpers.base_models import base_of, published
from helpers.prompts import prompts
from helpers.teachers import MEDSA_BACKBONES, tiny_teacher
from safetensors.torch import load_file, save_file
from torch import nn

from samkd.errors import BadInputError
from samkd.teachers import build_teacher


@pytest.mark.parametrize("backbone", MEDSA_BACKBONES)
@pytest.mark.parametrize("conditioning", ["hyper", "add", "concatenate"])
@pytest.mark.parametrize("zero_init", [True, False])
def test_untouched_it_is_its_base(backbone: str, conditioning: str, zero_init: bool):
    model = tiny_teacher("medsa", backbone=backbone, conditioning=conditioning, zero_init=zero_init).eval()
    base = base_of(model, backbone)
    image = torch.randn(1, 1, 3, 64, 64)
    point, box = ((1.0, 30.0, 20.0), 1), (1.0, 10.0, 12.0, 1.0, 40.0, 50.0)
    places, kinds = torch.tensor([[[20.0, 30.0], [12.0, 10.0], [50.0, 40.0]]]), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        embedding = base["image_encoder"](image[0].transpose(0, 1).expand(-1, 3, -1, -1))
        encoder, decoder = base["prompt_encoder"], base["mask_decoder"]
        if backbone.startswith("efficient"):
            alone = clicked = boxed = ()
            tokens = [
                encoder(places[:, :0], kinds[:, :0]),
                encoder(places[:, :1], kinds[:, :1]),
                encoder(places, kinds),
            ]
        else:
            click = (places[:, :1], kinds[:, :1])
            calls = [encoder(None, None, None), encoder(click, None, None)]
            calls.append(encoder(click, places[:, 1:].flatten(1), None))
            tokens, (alone, clicked, boxed) = [call[0] for call in calls], [(call[1],) for call in calls]
        expected = [
            nn.functional.interpolate(
                decoder(embedding, encoder.get_dense_pe(), sparse, *dense)[0], (64, 64), mode="bilinear"
            )
            for sparse, dense in zip(tokens, (alone, clicked, boxed), strict=True)
        ]
        automatic = model(image)[0, 1:].transpose(0, 1)
        assert torch.allclose(automatic, expected[0], atol=1e-5, rtol=1e-4) == zero_init
        # A prompt in slice 1 is there what it is in SAM.
        clicked = model(image, prompts(points=[(0, 0, *point)]))[0, 1, 1]
        assert torch.allclose(clicked, expected[1][1, 0], atol=1e-5, rtol=1e-4) == zero_init
        boxed = model(image, prompts(points=[(0, 0, *point)], boxes=[(0, 0, box)]))[0, 1, 1]
        assert torch.allclose(boxed, expected[2][1, 0], atol=1e-5, rtol=1e-4) == zero_init
        assert not torch.allclose(boxed, clicked, atol=1e-3)


@pytest.mark.parametrize("backbone", ["vit_tiny", "mobile_vit_t"])
def test_frozen_it_learns_adapters_and_class_tokens_only(backbone: str):
    model = tiny_teacher("medsa", backbone=backbone, zero_init=False)
    model.freeze_pretrained()
    model.train()
    tuned = re.compile(
        r"image_encoder\..*\.adapters\.(attention|mlp)\.|mask_decoder\.transformer\.layers\.\d\.\w+_adapter\."
        r"|slice_prompts\.codes|mask_decoder\.(mask_tokens|output_hypernetworks_mlps)\."
    )
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(tuned.match(name)), name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    given = prompts(points=[(0, 0, (1.0, 20.0, 20.0), 1)])
    model(torch.randn(1, 1, 3, 64, 64), given).square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same & trained == set()
    assert before.keys() - same == trained  # batch norms keep their statistics


@pytest.mark.parametrize(("backbone", "blocks", "dim"), [("vit_b", 12, 768), ("vit_l", 24, 1024), ("vit_h", 32, 1280)])
def test_parameter_counts(backbone: str, blocks: int, dim: int):
    """ViT-H tunes 12.55 M for a binary task, 2.0 % of SAM; the paper says about 13 M of 636 M.

    Each further class adds its token and hypernetwork, 0.14 M.
    """

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    def bottleneck(width: int) -> int:
        return linear(width, 64) + linear(64, width)

    hyper = linear(256, 64) + 64 + 3 * linear(64, 64 * 64)
    class_parts = 256 + 2 * linear(256, 256) + linear(256, 32)
    expected = blocks * 2 * bottleneck(dim) + 2 * (3 * bottleneck(256) + hyper) + 4 * 12 * 256
    for classes in (2, 14):
        with torch.device("meta"):
            model = build_teacher("medsa", backbone=backbone, in_channels=1, num_classes=classes, patch=(5, 1024, 1024))
        model.freeze_pretrained()
        tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert tuned == expected + (classes - 1) * class_parts
        if (backbone, classes) == ("vit_h", 2):
            assert tuned == 12_553_120


@pytest.mark.parametrize("backbone", MEDSA_BACKBONES)
@pytest.mark.parametrize("organs", [1, 4, 5])
def test_load_pretrained_accounts_for_every_key(backbone: str, organs: int, tmp_path: Path):
    sam = published(backbone, image_size=(128, 128))
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    model = tiny_teacher("medsa", backbone=backbone, num_classes=organs + 1)
    report = model.load_pretrained(tmp_path / "sam.pth")
    assert report.variant == backbone
    kinds = [report.loaded, report.reinitialised, report.added]
    assert sorted(key for kind in kinds for key in kind) == sorted(model.state_dict())
    assert set(report.loaded) | set(report.dropped) == set(sam.state_dict())
    ours, theirs = model.state_dict(), sam.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in report.loaded if key not in report.interpolated)
    tokens = "mask_decoder.mask_tokens.weight"
    assert torch.equal(ours[tokens], theirs[tokens][:1].expand(organs, -1))
    for key in theirs:
        if key.startswith("mask_decoder.output_hypernetworks_mlps.0."):
            for index in range(organs):
                assert torch.equal(ours[key.replace("mlps.0.", f"mlps.{index}.")], theirs[key]), key


def test_load_pretrained_refuses_another_backbone(tmp_path: Path):
    torch.save(published("vit_tiny").state_dict(), tmp_path / "sam.pth")
    with pytest.raises(BadInputError, match=r"sam\.pth.*(vit_tiny|wrong shape)"):
        tiny_teacher("medsa", backbone="vit_tiny_p8").load_pretrained(tmp_path / "sam.pth")


def test_weights_survive_a_safetensors_round_trip(tmp_path: Path):
    model, twin = tiny_teacher("medsa", zero_init=False).eval(), tiny_teacher("medsa", zero_init=False).eval()
    nn.init.normal_(model.slice_prompts.codes)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    image, given = torch.randn(1, 1, 3, 64, 64), prompts(points=[(0, 1, (1.0, 20.0, 20.0), 1)])
    with torch.no_grad():
        assert torch.equal(model(image, given), twin(image, given))


@pytest.mark.parametrize("backbone", ["vit_tiny", "efficient_vit_ti"])
def test_lora_control(backbone: str):
    model = tiny_teacher("medsa", backbone=backbone, adapter="lora").eval()
    model.freeze_pretrained()
    tuned = {name for name, p in model.image_encoder.named_parameters() if p.requires_grad}
    assert tuned and all(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.[qv]_(down|up)\.weight", name) for name in tuned)
    base = base_of(model, backbone)["image_encoder"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.image_encoder(images), base(images))
        qkv = model.image_encoder.get_submodule("blocks.0.attn.qkv")
        x = torch.randn(2, qkv.in_features)  # pyright: ignore[reportArgumentType, reportCallIssue]
        nn.init.ones_(qkv.q_up.weight)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        q, k, v = (qkv(x) - nn.functional.linear(x, qkv.weight, qkv.bias)).chunk(3, dim=-1)  # pyright: ignore
        assert q.abs().min() > 0 and not k.any() and not v.any()
        assert not torch.equal(model.image_encoder(images), base(images))
