import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import SHARED
from helpers.teachers import SIZES, tiny_teacher
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samkd.errors import BadInputError, UsageError
from samkd.sam.checkpoints import match_published
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder
from samkd.teachers import build_teacher
from samkd.teachers.autosam.prompt_generator import PromptGenerator, poolings
from samkd.teachers.freezing import adapter_names
from samkd.teachers.volumetric.base import NEW, REPLACED
from samkd.training.losses import segmentation_loss

COUNTS = SHARED / "conformance" / "parameter_counts.json"
PATCH = SIZES["autosam"]["patch"]


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit_tiny_p8"])
@pytest.mark.parametrize(("channels", "patch"), [(1, (8, 24, 32)), (3, (16, 8, 20))])
def test_forward_and_backward(backbone: str, channels: int, patch: tuple[int, int, int]):
    model = tiny_teacher("autosam", backbone=backbone, in_channels=channels, patch=patch)
    assert (model.in_channels, model.num_classes, model.patch, model.prompt_kinds) == (channels, 4, patch, frozenset())
    logits = model(torch.randn(2, channels, *patch))
    assert logits.shape == (2, 4, *patch)
    nn.functional.cross_entropy(logits, torch.randint(4, (2, *patch))).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_one_channel_is_repeated_for_the_encoder_and_volumes_of_a_batch_do_not_see_each_other():
    model = tiny_teacher("autosam", adapter="code").eval()
    images = torch.randn(2, 1, *PATCH)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-4, atol=1e-5)
        encoder = model.image_encoder
        for ours, theirs in zip(encoder(images), encoder(images.expand(-1, 3, -1, -1, -1)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", ["paper", "code"])
def test_untouched_adapters_leave_the_encoder_as_it_is(adapter: str):
    encoder = tiny_teacher("autosam", adapter=adapter).image_encoder
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        adapted = encoder(image)
        for block in encoder.blocks:
            block.adapter = nn.Identity()
        base = encoder(image)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(adapted, base, strict=True)) == (adapter == "paper")
    assert bool(encoder.depth_embed.any()) == (adapter == "code")


def test_adapters_learn_from_their_start():
    model = tiny_teacher("autosam")
    model.freeze_pretrained()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(1, 1, *PATCH)).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert adapter_names(model) <= moved


@pytest.mark.parametrize(("prompt_from", "index"), [("last", 3), ("first", 0)])
def test_the_generator_replaces_the_feature_it_reads(prompt_from: str, index: int):
    model = tiny_teacher("autosam", prompt_from=prompt_from).eval()
    prompt = torch.randn(1, 128, 8, 12, 4)
    seen: dict[str, Tensor] = {}

    def replace(module, inputs, output) -> Tensor:
        seen["read"] = inputs[0]
        return prompt

    model.get_submodule("prompt_generator").register_forward_hook(replace)
    for number, head in enumerate(model.mask_decoder.heads):
        head.register_forward_pre_hook(lambda module, inputs, number=number: seen.update({f"head{number}": inputs[0]}))
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        features = model.image_encoder(image)
        model(image)
    assert torch.equal(seen["read"], features[index])
    features[index] = prompt
    assert all(torch.equal(seen[f"head{3 - number}"], features[number]) for number in range(4))
    assert tiny_teacher("autosam").prompted == 3


def test_generator_pools_the_paper_grid_four_times_and_small_ones_as_far_as_they_go():
    assert poolings((32, 32, 32)) == [(2, 2, 2)] * 4
    assert poolings((9, 4, 1)) == [(2, 2, 1), (2, 1, 1), (1, 1, 1), (1, 1, 1)]
    for grid in ((9, 4, 1), (2, 1, 1), (16, 5, 3)):
        feature = torch.randn(2, 8, *grid)
        assert PromptGenerator(8, width=2, pools=poolings(grid))(feature).shape == feature.shape


def test_checkpointing_changes_memory_not_numbers():
    plain, saving = tiny_teacher("autosam"), tiny_teacher("autosam", checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, *PATCH)
    for model in (plain, saving):
        model(image).square().mean().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_stays_close_to_single_precision():
    model = tiny_teacher("autosam").eval()
    image = torch.rand(1, 1, *PATCH)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(image)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_freeze_pretrained_leaves_what_the_authors_tune():
    model = tiny_teacher("autosam")
    model.freeze_pretrained()
    tuned = re.compile(
        r"image_encoder\.(slice_embed|depth_embed|necks)|prompt_generator|mask_decoder"
        r"|image_encoder\.blocks\.\d+\.(adapter|norm[12]|attn\.rel_pos_d)"
    )
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(tuned.match(name)), name


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"no {COUNTS}")
@pytest.mark.parametrize("classes", [14, 16])
def test_parameter_counts(classes: int):
    expected = json.loads(COUNTS.read_text())["AutoSAM Adapter"][f"AutoProSAM vit_b n_out={classes}"]
    with torch.device("meta"):
        model = build_teacher(
            "autosam", backbone="vit_b", in_channels=1, num_classes=classes, patch=(128, 128, 128), adapter="code"
        )
    model.freeze_pretrained()
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model) == expected["total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected["trainable"]
    assert count(model.image_encoder) == expected["image_encoder_total"]
    assert count(model.prompt_generator) == expected["auto_prompt_generator"]
    assert count(model.mask_decoder) == expected["mask_decoder"]


def published_sam(backbone: str, image_size: tuple[int, int]) -> nn.ModuleDict:
    size = get_backbone(backbone)
    return nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(size, image_size=image_size),
            "prompt_encoder": build_prompt_encoder(size, image_size=image_size),
            "mask_decoder": MaskDecoder(size.decoder, channels=size.out_chans, masks=4, stages=2),
        }
    )


@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h"])
@pytest.mark.parametrize("patch", [(128, 128, 128), (48, 192, 96)])
def test_published_files_fit_whatever_the_patch(backbone: str, patch: tuple[int, int, int]):
    with torch.device("meta"):
        model = build_teacher("autosam", backbone=backbone, in_channels=1, num_classes=14, patch=patch)
        sam = published_sam(backbone, (1024, 1024)).state_dict()
    added = adapter_names(model) | {name for name in model.state_dict() if NEW.match(name)}
    values, report = match_published(model, sam, added=added, replaced=REPLACED)
    assert report.variant == backbone and report.interpolated == ()
    assert set(values) == {key for key in sam if key.startswith("image_encoder.") and ".neck." not in key}


@pytest.mark.parametrize(("side", "interpolated"), [(64, False), (128, True)])
def test_load_pretrained_accounts_for_every_key(tmp_path: Path, side: int, interpolated: bool):
    sam = published_sam("vit_tiny_p8", (side, side))
    for parameter in sam.parameters():
        nn.init.normal_(parameter)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    model = tiny_teacher("autosam")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.load_pretrained(tmp_path / "sam.pth")
    assert report.variant == "vit_tiny_p8"
    kinds = [report.loaded, report.reinitialised, report.added]
    assert sorted(key for kind in kinds for key in kind) == sorted(model.state_dict())
    assert sorted([*report.loaded, *report.dropped]) == sorted(sam.state_dict())
    tables = {f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (1, 3) for axis in "hw"}
    assert set(report.interpolated) == (tables | {"image_encoder.pos_embed"} if interpolated else set())
    after, theirs = model.state_dict(), sam.state_dict()
    for key in report.loaded:
        if key not in report.interpolated:
            assert torch.equal(after[key], theirs[key]), key
    for key in (*report.reinitialised, *report.added):
        if key.endswith(".rel_pos_d"):
            h, w = (after[key.replace("_d", f"_{axis}")] for axis in "hw")
            assert torch.equal(after[key], (h + w) / 2), key
        else:
            assert torch.equal(after[key], before[key]), key


def test_load_pretrained_refuses_another_backbone_and_leaves_the_model_alone(tmp_path: Path):
    torch.save(published_sam("vit_tiny", (64, 64)).state_dict(), tmp_path / "sam.pth")
    model = tiny_teacher("autosam")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInputError, match=r"sam\.pth.*vit_tiny\b"):
        model.load_pretrained(tmp_path / "sam.pth")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_survive_a_safetensors_round_trip_and_load_as_base(tmp_path: Path):
    model, twin, third = (tiny_teacher("autosam").eval() for _ in range(3))
    blocks: Any = model.image_encoder.blocks
    for block in blocks:
        nn.init.normal_(block.adapter.up.weight)
        nn.init.normal_(block.attn.rel_pos_d)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert third.load_pretrained(tmp_path / "weights.safetensors").added == ()
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(model(image), twin(image)) and torch.equal(model(image), third(image))


@pytest.mark.slow
def test_it_learns_one_case_by_heart():
    """Two ellipsoids in noise, all axes of different length: a turned axis would not reach the mark."""
    model = tiny_teacher("autosam", num_classes=3)
    d, h, w = torch.meshgrid(*(torch.arange(float(size)) for size in PATCH), indexing="ij")
    labels = torch.zeros(1, *PATCH, dtype=torch.long)
    labels[0][((d - 6) / 4) ** 2 + ((h - 11) / 7) ** 2 + ((w - 14) / 10) ** 2 < 1] = 1
    labels[0][((d - 11) / 3) ** 2 + ((h - 22) / 6) ** 2 + ((w - 33) / 9) ** 2 < 1] = 2
    image = (torch.tensor([0.0, 1.0, -1.0])[labels] + 0.3 * torch.randn(1, *PATCH))[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(30):
        logits = model(image)
        optimizer.zero_grad()
        segmentation_loss(logits, labels).backward()
        optimizer.step()
    result = logits.argmax(1)
    for label in (1, 2):
        both = ((result == label) & (labels == label)).sum()
        assert 2 * both / ((result == label).sum() + (labels == label).sum()) > 0.85


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.*vit_b"),
        ({"backbone": "mobile_vit_t"}, "not one of SAM's own ViTs"),
        ({"in_channels": 2}, "1 channel .* or 3, not 2"),
        ({"patch": (18, 32, 48)}, "18x32x48.*multiples of 4, 4, 4.*change the patch"),
        ({"patch": (16, 32, 50)}, "16x32x50.*multiples of"),
        ({"patch": (16, 0, 48)}, "multiples of"),
        ({"patch": (4, 4, 4)}, "more than one token"),
        ({"prompt_from": "middle"}, "'middle'.*first, last"),
        ({"adapter": "lora"}, "'lora'.*paper, code"),
        ({"prompts": 4}, "no option prompts.*prompt_from, adapter"),
    ],
)
def test_bad_options(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tiny_teacher("autosam", **changes)


@pytest.mark.parametrize("shape", [(1, 3, *PATCH), (1, 1, 16, 32, 32), (1, 1, 20, 32, 48), PATCH])
def test_wrong_image_shape(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"expected \[B, 1, 16, 32, 48\]"):
        tiny_teacher("autosam")(torch.zeros(shape))


def test_prompts_are_refused():
    with pytest.raises(UsageError, match="takes no prompts"):
        tiny_teacher("autosam")(torch.zeros(1, 1, *PATCH), prompts=torch.zeros(1))
