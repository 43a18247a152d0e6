import json
import re
from pathlib import Path

import pytest
import torch
from helpers.paths import SHARED
from helpers.teachers import tiny_teacher
from safetensors.torch import load_file, save_file
from torch import nn

from samkd.errors import BadInputError, UsageError
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder
from samkd.teachers import TEACHERS, build_teacher

COUNTS = SHARED / "conformance" / "parameter_counts.json"


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit_tiny_p8"])
@pytest.mark.parametrize(("channels", "size"), [(1, (64, 64)), (3, (32, 48))])
def test_forward_and_backward(backbone: str, channels: int, size: tuple[int, int]):
    model = tiny_teacher("masam", backbone=backbone, in_channels=channels, patch=(5, *size))
    assert (model.in_channels, model.num_classes, model.patch) == (channels, 4, (5, *size))
    logits = model(torch.randn(2, channels, 5, *size))
    assert logits.shape == (2, 4, 5, *size)
    assert torch.isfinite(logits).all()
    nn.functional.cross_entropy(logits, torch.randint(4, (2, 5, *size))).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = r"prompt_encoder\.(point_embeddings|not_a_point_embed|mask_downscaling)|mask_decoder\.iou_prediction_head"
    assert without == {name for name, _ in model.named_parameters() if re.match(unused, name)}


def test_any_number_of_slices_and_one_channel_is_repeated():
    model = tiny_teacher("masam").eval()
    rgb = tiny_teacher("masam", in_channels=3).eval()
    rgb.load_state_dict(model.state_dict())
    image = torch.randn(1, 1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), rgb(image.expand(-1, 3, -1, -1, -1)))


def test_stacks_of_a_batch_do_not_see_each_other():
    model = tiny_teacher("masam", zero_init=False).eval()
    nn.init.normal_(model.get_parameter("factors.v.weight"))
    images = torch.randn(2, 1, 5, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero_init", [True, False])
def test_untouched_adapters_leave_sam_as_it_is(zero_init: bool):
    model = tiny_teacher("masam", zero_init=zero_init)
    base = ImageEncoder(get_backbone("vit_tiny"), image_size=(64, 64))
    state = model.image_encoder.state_dict()
    base.load_state_dict({key: state[key] for key in base.state_dict()})
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.image_encoder(images, 5), base(images)) == zero_init


def test_checkpointing_changes_memory_not_numbers():
    plain, saving = tiny_teacher("masam", dropout=0.0), tiny_teacher("masam", dropout=0.0, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 5, 64, 64)
    for model in (plain, saving):
        model(image).square().mean().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_stays_close_to_single_precision():
    model = tiny_teacher("masam").eval()
    image = torch.rand(1, 1, 5, 64, 64)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(image)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_freeze_pretrained_leaves_adapters_and_decoders_trainable():
    model = tiny_teacher("masam")
    model.freeze_pretrained()
    tuned = re.compile(
        r"factors\.[uv]\.|image_encoder\.blocks\.\d+\.adapter[12]\.|image_encoder\.blocks\.\d+\.attn\.qkv\.[qv]_sigma\."
        r"|prompt_encoder\.|mask_decoder\."
    )
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(tuned.match(name)), name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    published = ImageEncoder(get_backbone("vit_tiny"), image_size=(64, 64))
    assert frozen == {f"image_encoder.{name}" for name, _ in published.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(1, 1, 5, 64, 64)).square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["factors.v.weight"], after["factors.v.weight"])


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"no {COUNTS}")
@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h"])
@pytest.mark.parametrize("organs", [12, 13])
def test_parameter_counts(backbone: str, organs: int):
    expected = json.loads(COUNTS.read_text())[f"MA-SAM {backbone} num_classes={organs} img512 rank32"]
    with torch.device("meta"):
        model = build_teacher("masam", backbone=backbone, in_channels=1, num_classes=organs + 1, patch=(5, 512, 512))
    model.freeze_pretrained()
    assert sum(p.numel() for p in model.parameters()) == expected["total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected["trainable"]


def test_weights_survive_a_safetensors_round_trip(tmp_path: Path):
    model, twin = tiny_teacher("masam").eval(), tiny_teacher("masam").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    image = torch.randn(1, 1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), twin(image))


def published_sam(image_size: tuple[int, int]) -> nn.ModuleDict:
    backbone = get_backbone("vit_tiny")
    return nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(backbone, image_size=image_size),
            "prompt_encoder": build_prompt_encoder(backbone, image_size=image_size),
            "mask_decoder": MaskDecoder(backbone.decoder, channels=backbone.out_chans, masks=4, stages=2),
        }
    )


def test_load_pretrained_accounts_for_every_key(tmp_path: Path):
    sam = published_sam((128, 128))
    for parameter in sam.parameters():
        nn.init.normal_(parameter)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    model = tiny_teacher("masam")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.load_pretrained(tmp_path / "sam.pth")
    assert report.variant == "vit_tiny"
    kinds = [report.loaded, report.reinitialised, report.added]
    assert sorted(key for kind in kinds for key in kind) == sorted(model.state_dict())
    assert sorted([*report.loaded, *report.dropped]) == sorted(sam.state_dict())
    assert sorted(report.interpolated) == sorted(
        ["image_encoder.pos_embed"]
        + [f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (1, 3) for axis in "hw"]
    )
    after, theirs = model.state_dict(), sam.state_dict()
    for key in report.loaded:
        if key not in report.interpolated:
            assert torch.equal(after[key], theirs[key]), key
    for key in (*report.reinitialised, *report.added):
        assert torch.equal(after[key], before[key]), key


def test_load_pretrained_refuses_another_backbone_and_leaves_the_model_alone(tmp_path: Path):
    torch.save(published_sam((64, 64)).state_dict(), tmp_path / "sam.pth")
    model = tiny_teacher("masam", backbone="vit_tiny_p8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInputError, match=r"sam\.pth.*SAM \(vit_tiny\), .* SAM \(vit_tiny_p8\)"):
        model.load_pretrained(tmp_path / "sam.pth")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.*vit_b"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"patch": (5, 64, 60)}, "64x60.*multiples of 16"),
        ({"patch": (5, 0, 64)}, "multiples of 16"),
        ({"ranks": 4}, "no option ranks.*rank, scale"),
        ({"adapters": "beside"}, "option adapters is 'beside': choose one of before, after, both, none"),
        ({"decoder": "unet"}, "option decoder is 'unet': choose one of progressive, multi_scale, sam"),
    ],
)
def test_bad_options(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tiny_teacher("masam", **changes)


def test_unknown_teacher_lists_the_known():
    with pytest.raises(UsageError, match=f"unknown teacher 'sam'.*{next(iter(TEACHERS))}"):
        build_teacher("sam", backbone="vit_b", in_channels=1, num_classes=2, patch=(5, 64, 64))


@pytest.mark.parametrize("shape", [(1, 3, 5, 64, 64), (1, 1, 5, 64, 32), (1, 5, 64, 64)])
def test_wrong_image_shape(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"expected \[B, 1, D, 64, 64\]"):
        tiny_teacher("masam")(torch.zeros(shape))
