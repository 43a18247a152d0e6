"""The switches that the tables of the four papers need: what each leaves out or adds, and what it equals."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.prompts import prompts
from helpers.teachers import tiny_teacher
from torch import nn

from samkd.configs.load import load_config
from samkd.configs.teacher_options import TEACHER_OPTIONS
from samkd.errors import UsageError
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder
from samkd.teachers import TEACHERS, build_teacher
from samkd.teachers.freezing import adapter_names
from samkd.training.checkpoint import load_weights, save_weights, trainable_state

SHAPE = ("backbone", "in_channels", "num_classes", "patch")


def full_size(name: str, *, backbone: str, patch: tuple[int, int, int], classes: int, **options: Any) -> Any:
    with torch.device("meta"):
        model = build_teacher(name, backbone=backbone, in_channels=1, num_classes=classes, patch=patch, **options)
    model.freeze_pretrained()
    return model


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def sam_file(backbone: str, path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    """A published checkpoint of SAM's layout with random weights."""
    preset = get_backbone(backbone)
    parts = nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(preset, image_size=size),
            "prompt_encoder": build_prompt_encoder(preset, image_size=size),
            "mask_decoder": MaskDecoder(preset.decoder, channels=preset.out_chans, masks=4, stages=2),
        }
    )
    torch.save(parts.state_dict(), path)
    return path


# --- what a config may say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_the_schema_of_options_is_the_builders_signature(name: str):
    import importlib

    module, builder = TEACHERS[name].split(":")
    signature = inspect.signature(getattr(importlib.import_module(f"samkd.teachers.{module}"), builder))
    of_builder = {key: value.default for key, value in signature.parameters.items() if key not in SHAPE}
    of_schema = TEACHER_OPTIONS[name]().model_dump()
    assert {**of_builder, "tune": "adapters"} == of_schema


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.options={rankk: 3}", r"teacher 'masam' has no option rankk: choose among adapter_channels, adapters"),
        ("teacher.options={rank: 0}", r"rank: Input should be greater than or equal to 1 \(given: 0\)"),
        ("teacher.options={adapters: beside}", r"adapters: Input should be 'before', 'after', 'both' or 'none'"),
        ("teacher.options={tune: half}", r"tune: Input should be 'adapters', 'decoder' or 'all'"),
    ],
)
def test_a_config_with_a_wrong_option_is_refused_when_it_is_read(override: str, message: str):
    with pytest.raises(UsageError, match=message):
        load_config("phantom", [override])


# --- what learns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["masam", "medsa", "sam3d", "autosam"])
def test_tune_says_what_learns(name: Any):
    adapters, decoder, everything = (tiny_teacher(name, tune=tune) for tune in ("adapters", "decoder", "all"))
    for model in (adapters, decoder, everything):
        model.freeze_pretrained()
    assert adapter_names(adapters) <= {key for key, p in adapters.named_parameters() if p.requires_grad}
    learning = {key for key, p in decoder.named_parameters() if p.requires_grad}
    assert learning == {
        key
        for key, _ in decoder.named_parameters()
        if key.startswith(("prompt_encoder.", "slice_prompts.", "mask_decoder."))
    }
    assert all(p.requires_grad for p in everything.parameters())
    # What no published file holds is in the run's own file, whatever learns.
    new = {key for key, p in adapters.named_parameters() if p.requires_grad}
    assert new <= trainable_state(decoder).keys()
    with pytest.raises(UsageError, match="option tune is 'half'"):
        tiny_teacher(name, tune="half")


@pytest.mark.parametrize("options", [{"tune": "decoder"}, {"tune": "decoder", "adapters": "none", "fact": False}])
def test_a_run_that_tunes_the_decoder_is_put_together_again(options: dict[str, Any], tmp_path: Path):
    file = sam_file("vit_tiny", tmp_path / "sam.pth")
    first, second = (tiny_teacher("masam", zero_init=False, **options) for _ in range(2))
    for model in (first, second):
        model.load_pretrained(file)
        model.freeze_pretrained()
    save_weights(first, tmp_path / "run.safetensors")
    load_weights(second, tmp_path / "run.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# --- MA-SAM ---------------------------------------------------------------------------------------------------------


def test_masam_without_adapters_and_fact_is_sams_encoder():
    model = tiny_teacher("masam", adapters="none", fact=False).eval()
    base = ImageEncoder(get_backbone("vit_tiny"), image_size=(64, 64)).eval()
    assert model.image_encoder.state_dict().keys() == base.state_dict().keys()
    assert not adapter_names(model) and model.factors is None
    base.load_state_dict(model.image_encoder.state_dict())
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.image_encoder(images, 5), base(images))


def test_masam_without_one_of_the_two_has_the_others_parameters_alone():
    both, no_fact, no_adapters = (
        tiny_teacher("masam", **options) for options in ({}, {"fact": False}, {"adapters": "none"})
    )
    assert adapter_names(no_fact) == {name for name in adapter_names(both) if "adapter" in name}
    assert adapter_names(no_adapters) == {name for name in adapter_names(both) if "adapter" not in name}
    image = torch.randn(1, 1, 5, 64, 64)
    for model in (both, no_fact, no_adapters):
        model.eval()
        model.load_state_dict({key: value for key, value in both.state_dict().items() if key in model.state_dict()})
    with torch.no_grad():  # at the start neither changes anything
        torch.testing.assert_close(no_fact(image), both(image))
        torch.testing.assert_close(no_adapters(image), both(image))


def test_masam_rows_of_the_papers_table_9_at_full_size():
    """ViT-H, 12 organs: FacT is 0.21 M (U and V of 1280 x 32, 64 matrices of 32 x 32), the 3-D adapters 91.4 M."""
    shared: dict[str, Any] = {"backbone": "vit_h", "patch": (5, 512, 512), "classes": 13}
    counts = {
        row: trained(full_size("masam", **shared, **options))
        for row, options in {
            "decoder": {"adapters": "none", "fact": False, "tune": "decoder"},
            "full": {"adapters": "none", "fact": False, "tune": "all"},
            "fact": {"adapters": "none"},
            "adapters": {"fact": False},
            "ours": {},
        }.items()
    }
    fact = 2 * 1280 * 32 + 32 * 2 * 32 * 32
    adapter = 2 * 1280 + 2 * 1280 * 384 + 3 * 384**2 + 384
    assert counts["fact"] - counts["decoder"] == fact == 147_456
    assert counts["adapters"] - counts["decoder"] == 64 * adapter
    assert counts["ours"] == counts["decoder"] + fact + 64 * adapter
    assert counts["full"] > 630e6


# --- Medical SAM Adapter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "paper"), [(1, 1.58e6), (16, 4.33e6), (32, 7.19e6), (64, 13.10e6), (256, 48.67e6)])
def test_hyp_adpt_of_a_fixed_width_grows_as_the_papers_table_7a(rank: int, paper: float):
    """0.18 M per rank all the way; 0.7 to 1.0 M of the paper's are unexplained, about SAM's hypernetworks and IoU head.

    At the width's own rank it is the network without a width.
    """
    options: dict[str, Any] = {"backbone": "vit_h", "patch": (1, 1024, 1024), "classes": 13, "rank": rank}
    count = trained(full_size("medsa", **options, hyper_width=64, class_tokens="frozen"))
    assert 0.6e6 < paper - count < 1.05e6
    if rank == 64:
        assert count == trained(full_size("medsa", **options, class_tokens="frozen")) == 12_400_768


@pytest.mark.parametrize("zero_init", [True, False])
def test_hyp_adpt_of_a_width_generates_weights_from_rank_to_width_and_back(zero_init: bool):
    model = tiny_teacher("medsa", hyper_width=6, zero_init=zero_init)
    adapter: Any = model.mask_decoder.get_submodule("transformer.layers.0.prompt_adapter")
    assert adapter.shapes == ((8, 6), (6, 6), (6, 8))
    given = prompts(points=[(0, 0, (1.0, 20.0, 20.0), 1)])
    logits = model(torch.randn(1, 1, 3, 64, 64), given)
    nn.functional.cross_entropy(logits, torch.randint(4, (1, 3, 64, 64))).backward()
    assert bool(adapter.hyper[0].weight.grad.any()) != zero_init  # behind an up-projection of zeros nothing learns yet


def test_medsa_without_conditioning_has_plain_adapters():
    model = tiny_teacher("medsa", conditioning="none", zero_init=False).eval()
    adapter: Any = model.mask_decoder.get_submodule("transformer.layers.0.prompt_adapter")
    assert sorted(name for name, _ in adapter.named_parameters()) == [
        "down.bias",
        "down.weight",
        "up.bias",
        "up.weight",
    ]
    x = torch.randn(2, 3, 128)
    torch.testing.assert_close(adapter(x, torch.randn(2, 5, 128)), adapter.up(adapter.down(x).relu()))


@pytest.mark.parametrize(
    ("adapters", "parts"), [("attention", {"attention"}), ("mlp", {"mlp"}), ("both", {"attention", "mlp"})]
)
def test_medsas_adapters_sit_where_the_switch_says(adapters: str, parts: set[str]):
    model = tiny_teacher("medsa", adapters=adapters, sd_trans="none", zero_init=False)
    names = {re.findall(r"adapters\.(\w+)\.", name)[0] for name in adapter_names(model.image_encoder)}
    assert names == parts
    block: Any = model.image_encoder.get_submodule("blocks.1")
    x = torch.randn(3, 4, 4, 96)
    y = x + block.attn(block.norm1(x))
    if "attention" in parts:
        y = y + block.adapters.attention(block.attn(block.norm1(x)))
    z = block.norm2(y)
    beside = 0.05 * block.adapters.mlp(z) if "mlp" in parts else 0
    torch.testing.assert_close(block(x), y + block.mlp(z) + beside)


def test_medsas_layers_have_adapters_and_the_others_are_sams():
    model = tiny_teacher("medsa", layers=[2, 2], sd_trans="none", zero_init=False)
    assert {name.split(".")[1] for name in adapter_names(model.image_encoder)} == {"1"}
    shared: dict[str, Any] = {"backbone": "vit_h", "patch": (1, 1024, 1024), "classes": 2, "class_tokens": "frozen"}
    counts = [trained(full_size("medsa", **shared, layers=layers)) for layers in ([1, 16], [17, 32], None)]
    assert counts[0] == counts[1]
    assert counts[2] - counts[0] == 16 * 2 * (64 * 1280 * 2 + 64 + 1280)
    with pytest.raises(UsageError, match=r"layers is \[2, 40\]: vit_tiny has the blocks 1 to"):
        tiny_teacher("medsa", layers=[2, 40])
    with pytest.raises(UsageError, match="give the first and the last block"):
        tiny_teacher("medsa", layers=[2])


def test_the_papers_sd_trans_adds_the_depth_branch_to_the_attentions_output():
    model = tiny_teacher("medsa", sd_trans="add_output", zero_init=False)
    assert model.state_dict().keys() == tiny_teacher("medsa").state_dict().keys()
    block: Any = model.image_encoder.get_submodule("blocks.1")
    x = torch.randn(6, 4, 4, 96)
    along = block.attn(block.norm1(x).view(2, 3, 16, 96).transpose(1, 2).reshape(32, 3, 1, 96))
    along = along.view(2, 16, 3, 96).transpose(1, 2).reshape(6, 4, 4, 96)
    both = block.attn(block.norm1(x)) + along
    y = x + both + block.adapters.attention(both)
    z = block.norm2(y)
    torch.testing.assert_close(block(x, 3), y + block.mlp(z) + 0.05 * block.adapters.mlp(z))
    alone: Any = tiny_teacher("medsa", sd_trans="add_output", adapters="mlp").image_encoder.get_submodule("blocks.1")
    alone.load_state_dict({key: value for key, value in block.state_dict().items() if ".attention." not in key})
    y = x + both
    z = block.norm2(y)
    torch.testing.assert_close(alone(x, 3), y + block.mlp(z) + 0.05 * block.adapters.mlp(z))


def test_concatenation_without_parameters_reads_half_of_each_branch():
    model = tiny_teacher("medsa", sd_trans="concatenate_halves", zero_init=False)
    assert (
        trained(model)
        == trained(tiny_teacher("medsa", sd_trans="add"))
        < trained(tiny_teacher("medsa", sd_trans="concatenate"))
    )
    adapter: Any = model.image_encoder.get_submodule("blocks.0.adapters.attention")
    space, depth = torch.randn(2, 3, 4, 4, 96), torch.randn(2, 3, 4, 4, 96)
    mixed = torch.cat([space[..., :48], depth[..., 48:]], dim=-1)
    torch.testing.assert_close(adapter(space, depth), adapter.up(adapter.down(mixed).relu()))


@pytest.mark.parametrize(
    "options",
    [
        {"conditioning": "none"},
        {"adapters": "mlp"},
        {"layers": [1, 1]},
        {"sd_trans": "concatenate_halves"},
        {"hyper_width": 6},
    ],
)
def test_untouched_every_choice_of_medsa_is_its_base(options: dict[str, Any]):
    """But SD-Trans as the paper has it, which changes SAM's output by itself."""
    model, base = tiny_teacher("medsa", **options).eval(), tiny_teacher("medsa").eval()
    own = base.state_dict()
    shared = {key: value for key, value in model.state_dict().items() if own.get(key, value).shape == value.shape}
    base.load_state_dict(shared, strict=False)
    image, given = torch.randn(1, 1, 3, 64, 64), prompts(points=[(0, 0, (1.0, 20.0, 20.0), 1)])
    with torch.no_grad():
        torch.testing.assert_close(model(image, given), base(image, given))
        torch.testing.assert_close(model(image), base(image))


def test_frozen_class_tokens_leave_the_adapters_alone_to_learn():
    model, other = tiny_teacher("medsa", class_tokens="frozen"), tiny_teacher("medsa")
    for network in (model, other):
        network.freeze_pretrained()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in adapter_names(model) if name != "slice_prompts.codes"
    }
    assert trainable_state(model).keys() == trainable_state(other).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": "mlp", "sd_trans": "add"}, "adapters='mlp' has no adapter by which the depth branch 'add'"),
        ({"adapter": "lora", "sd_trans": "add_output"}, "adapter='lora' has no adapter by which"),
        ({"adapter": "lora", "layers": [1, 2]}, "leave the options adapters and layers out"),
        ({"adapters": "beside"}, "option adapters is 'beside'"),
        ({"class_tokens": "gone"}, "option class_tokens is 'gone'"),
        ({"conditioning": "add", "hyper_width": 4}, "hyper_width is 4 with conditioning='add'"),
    ],
)
def test_choices_of_medsa_that_do_not_fit(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        tiny_teacher("medsa", **options)


# --- 3DSAM-adapter and AutoSAM Adapter ------------------------------------------------------------------------------


def test_the_papers_adapter_of_sam3d_has_the_codes_parameters_and_starts_as_the_identity():
    paper, code = tiny_teacher("sam3d", adapter="paper"), tiny_teacher("sam3d")
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (paper, code)]
    assert shapes[0] == shapes[1]
    x = torch.randn(1, 2, 3, 4, 96)
    adapters: list[Any] = [model.image_encoder.get_submodule("blocks.0.adapter") for model in (paper, code)]
    assert torch.equal(adapters[0](x), x) and not torch.allclose(adapters[1](x), x)
    with torch.device("meta"):
        full = build_teacher(
            "sam3d", backbone="vit_b", in_channels=1, num_classes=2, patch=(128, 128, 128), adapter="paper"
        )
    full.freeze_pretrained()
    assert trained(full) == pytest.approx(25.46e6, abs=5e3)
    assert trained(full.get_submodule("image_encoder")) == pytest.approx(15.21e6, abs=5e3)


def test_points_change_the_features_that_the_switch_names():
    model = tiny_teacher("sam3d", prompted_features=[1, 3, 4]).eval()
    assert sorted(model.shallow_prompts) == ["1", "3"]
    assert trained(model) - trained(tiny_teacher("sam3d")) == 2 * trained(model.prompt_encoder)
    given = prompts(batch=1, classes=2, points=[(0, 0, (1.0, 5.0, 9.0), 1)])
    image = torch.randn(1, 1, 8, 16, 24)
    seen: dict[str, int] = {}
    for level, encoder in model.shallow_prompts.items():
        encoder.register_forward_hook(lambda module, inputs, output, level=level: seen.update({level: 1}))
    with torch.no_grad():
        prompted, automatic = model(image, given), model(image)
    assert seen == {"1": 1, "3": 1}
    assert not torch.allclose(prompted[:, 1], automatic[:, 1]) and torch.equal(prompted[:, 2], automatic[:, 2])
    for levels in ([1, 2], [0, 4]):
        with pytest.raises(UsageError, match="prompted_features is"):
            tiny_teacher("sam3d", prompted_features=levels)


def test_autosam_without_its_generator_decodes_the_features_as_they_are():
    model = tiny_teacher("autosam", prompt_from="none").eval()
    assert model.prompt_generator is None and not any("prompt_generator" in name for name in model.state_dict())
    image = torch.randn(1, 1, 16, 32, 48)
    with torch.no_grad():
        *deeper, shallowest = reversed(model.encode(image))
        torch.testing.assert_close(
            model(image), model.mask_decoder(model.mask_decoder.shallow(deeper), shallowest, image)
        )


def test_autosams_decoder_at_full_resolution_sees_the_image_itself():
    full, half = (tiny_teacher("autosam", decoder_resolution=size).eval() for size in ("full", "half"))
    half.load_state_dict(full.state_dict())
    seen = []
    for model in (full, half):
        model.mask_decoder.get_submodule("cls.0").register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0])
        )
    image = torch.randn(1, 1, 16, 32, 48)
    with torch.no_grad():
        logits = [model(image) for model in (full, half)]
    assert [tuple(maps.shape[2:]) for maps in seen] == [(32, 48, 16), (16, 24, 8)]
    assert torch.equal(seen[0][:, -1], image[:, 0].permute(0, 2, 3, 1))
    assert logits[0].shape == logits[1].shape == (1, 4, 16, 32, 48)


@pytest.mark.parametrize("name", ["masam", "medsa", "autosam", "sam3d"])
def test_switches_at_their_defaults_leave_the_state_dict_and_the_first_weights_alone(name: Any):
    torch.manual_seed(0)
    plain = tiny_teacher(name)
    options = {key: value for key, value in TEACHER_OPTIONS[name]().model_dump().items() if value is not None}
    torch.manual_seed(0)
    said = tiny_teacher(name, **{**options, **SIZED[name]})
    assert plain.state_dict().keys() == said.state_dict().keys()
    assert all(torch.equal(value, said.state_dict()[key]) for key, value in plain.state_dict().items())


SIZED: dict[str, dict[str, Any]] = {
    "masam": {"rank": 4},
    "medsa": {"rank": 8},
    "autosam": {"positions": 8},
    "sam3d": {"cube": 4, "positions": 8},
}
