import json
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samkd.errors import BadInputError, UsageError
from samkd.sam.image_encoder import Attention, ImageEncoder
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.prompts import Prompts
from samkd.teachers import build_teacher
from samkd.teachers.sam3d import SAM3D
from samkd.teachers.sam3d_attention import CubeAttention, from_cubes, to_cubes
from samkd.teachers.sam3d_encoder import DepthwiseAdapter
from samkd.training.checkpoint import load_weights, save_weights
from samkd.training.losses import segmentation_loss

COUNTS = Path(__file__).resolve().parents[2].parent / "shared" / "conformance" / "parameter_counts.json"


@pytest.fixture(autouse=True)
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def tiny(**changes) -> SAM3D:
    settings = {
        "backbone": "vit_tiny_p8",
        "in_channels": 1,
        "num_classes": 3,
        "patch": (8, 16, 24),
        "cube": 4,
        "positions": 8,
        "decoder_channels": 8,
    }
    model = build_teacher("sam3d", **(settings | changes))
    assert isinstance(model, SAM3D)
    return model


def prompts(points: list, labels: list) -> Prompts:
    """points [B][K - 1][P] of (d, h, w), labels alike; no boxes."""
    given = torch.tensor(points, dtype=torch.float32)
    return Prompts(given, torch.tensor(labels), torch.full((*given.shape[:2], 6), torch.nan))


@pytest.mark.parametrize(
    ("backbone", "patch", "options"),
    [
        ("vit_tiny_p8", (8, 16, 24), {}),
        ("vit_tiny", (8, 16, 12), {}),
        ("vit_tiny", (32, 64, 48), {"upsample": 1}),
        ("vit_tiny_p8", (3, 32, 48), {"upsample": 1, "slices": 1}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_and_backward(backbone: str, patch: tuple[int, int, int], options: dict, channels: int):
    model = tiny(backbone=backbone, patch=patch, in_channels=channels, **options)
    assert (model.in_channels, model.num_classes, model.patch) == (channels, 3, patch)
    image = torch.randn(2, channels, *patch)
    asked = prompts(torch.rand(2, 2, 3, 3).tolist(), [[[1, 1, 0], [-1, -1, -1]], [[1, -1, -1], [0, -1, 1]]])
    for given in (None, asked):
        model.zero_grad()
        logits = model(image, given)
        assert logits.shape == (2, 3, *patch)
        assert torch.isfinite(logits).all() and (logits[:, 0] == 0).all()
        nn.functional.cross_entropy(logits, torch.randint(3, (2, *patch))).backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        unused = r"prompt_encoder\." + ("" if given is None else r"layers\.\d\.cross_attn_token_to_image\.")
        assert without == {name for name, _ in model.named_parameters() if re.match(unused, name)}


def test_slices_are_upsampled_after_the_embedding_as_well_as_before_it():
    """The authors up-sample the whole volume first."""
    model = tiny()
    encoder, image = model.image_encoder, torch.randn(2, 1, *model.patch)
    whole = interpolate(image, scale_factor=encoder.upsample, mode="trilinear").expand(-1, 3, -1, -1, -1)
    tokens = torch.stack([encoder.patch_embed(volume.transpose(0, 1)) for volume in whole])
    tokens = encoder.slice_embed(tokens.permute(0, 4, 2, 3, 1)).permute(0, 2, 3, 4, 1)
    assert tokens.shape == (2, 4, 6, 2, 96)
    pos_embed, depth_embed = encoder.pos_embed, encoder.depth_embed
    with torch.no_grad():
        pos_embed.zero_()
        depth_embed.zero_()
    torch.testing.assert_close(encoder.embed(image), tokens, rtol=1e-4, atol=1e-5)


def test_positions_reach_every_axis():
    encoder = tiny(patch=(16, 32, 48)).image_encoder
    nn.init.normal_(encoder.depth_embed)
    tokens = encoder.embed(torch.zeros(1, 1, 16, 32, 48))[0]
    for axis in range(3):
        assert (tokens.diff(dim=axis).abs().amax(-1) > 1e-4).all()
    assert tokens.shape[:3] == (8, 12, 4)


@pytest.mark.parametrize("grid", [(4, 8, 4), (3, 5, 2), (1, 9, 4)])
def test_cubes_round_trip(grid: tuple[int, int, int]):
    x = torch.randn(2, *grid, 6)
    cubes = to_cubes(x, 4)
    assert cubes.shape[1:] == (4, 4, 4, 6)
    assert torch.equal(from_cubes(cubes, grid), x)


def test_attention_of_one_slice_is_that_of_sam():
    ours, sam = CubeAttention(24, 3, reach=5), Attention(24, num_heads=3, use_rel_pos=True, input_size=(5, 5))
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.ones_(ours.lr)
    sam.load_state_dict({key: value for key, value in ours.state_dict().items() if key in sam.state_dict()})
    x = torch.randn(2, 5, 5, 24)
    torch.testing.assert_close(ours(x[:, :, :, None])[:, :, :, 0], sam(x), rtol=1e-4, atol=1e-5)


def test_silent_adapters_leave_the_base_as_it_is():
    encoder, image = tiny().image_encoder, torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        adapted = encoder(image)
        for block in encoder.blocks:
            nn.init.zeros_(block.adapter.up.weight)
            nn.init.zeros_(block.adapter.up.bias)
        silent = encoder(image)
        for block in encoder.blocks:
            block.adapter = nn.Identity()
        base = encoder(image)
    assert all(torch.equal(*pair) for pair in zip(silent, base, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(adapted, base, strict=True))


def test_an_adapter_that_starts_at_zero_would_never_learn():
    """Why this teacher has no zero_init: the authors' ReLU after the up-projection."""
    x = torch.randn(1, 4, 4, 4, 8)
    for zero in (False, True):
        adapter = DepthwiseAdapter(8)
        if zero:
            nn.init.zeros_(adapter.up.weight)
            nn.init.zeros_(adapter.up.bias)
        adapter(x).square().sum().backward()
        assert all(parameter.grad.any() != zero for parameter in adapter.parameters())


def test_a_class_without_a_point_inside_is_automatic():
    model = tiny().eval()
    image = torch.randn(1, 1, 8, 16, 24)
    point = [2.0, 3.0, 4.0]
    with torch.no_grad():
        automatic = model(image)
        for labels in ([-1], [0]):
            assert torch.equal(model(image, prompts([[[point], [point]]], [[labels, labels]])), automatic)
        first = model(image, prompts([[[point], [point]]], [[[1], [-1]]]))
        both = model(image, prompts([[[point], [point]]], [[[1], [1]]]))
    assert torch.equal(first[:, 2], automatic[:, 2]) and not torch.allclose(first[:, 1], automatic[:, 1])
    assert torch.equal(first[:, 1], both[:, 1]) and not torch.allclose(both[:, 2], automatic[:, 2])


@pytest.mark.parametrize("count", [1, 3, 10])
def test_points_count_as_a_set_and_fillers_do_not_count(count: int):
    model = tiny(num_classes=2).eval()
    image = torch.randn(1, 1, 8, 16, 24)
    points = torch.rand(1, 1, count, 3) * torch.tensor([7.0, 15.0, 23.0])
    filled = torch.cat([points.flip(2), torch.zeros(1, 1, 2, 3)], dim=2)
    with torch.no_grad():
        logits = model(image, prompts(points.tolist(), [[[1] * count]]))
        again = model(image, prompts(filled.tolist(), [[[1] * count + [-1, 0]]]))
        moved = model(image, prompts((points / 2).tolist(), [[[1] * count]]))
    torch.testing.assert_close(logits, again, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, moved, rtol=1e-3, atol=1e-4)


def test_scans_of_a_batch_do_not_see_each_other():
    model = tiny().eval()
    images = torch.randn(2, 1, 8, 16, 24)
    points, labels = torch.rand(2, 2, 1, 3).tolist(), [[[1], [-1]], [[-1], [1]]]
    with torch.no_grad():
        both = model(images, prompts(points, labels))
        second = model(images[1:], prompts(points[1:], labels[1:]))
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_memory_not_numbers():
    plain, saving = tiny(), tiny(checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 8, 16, 24)
    for model in (plain, saving):
        model(image).square().mean().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_stays_close_to_single_precision():
    model = tiny().eval()
    image, asked = torch.rand(1, 1, 8, 16, 24), prompts([[[[1, 2, 3]], [[4, 5, 6]]]], [[[1], [1]]])
    with torch.no_grad():
        exact = model(image, asked)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(image, asked)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


TUNED = re.compile(
    r"image_encoder\.(slice_embed|depth_embed|necks)\b"
    r"|image_encoder\.blocks\.\d+\.(adapter|norm[12]|attn\.rel_pos_d)\b|prompt_encoder\.|mask_decoder\."
)


def test_freeze_base_leaves_what_the_authors_tune():
    model = tiny(num_classes=2)
    model.freeze_base()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(TUNED.match(name)), name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(1, 1, 8, 16, 24)).square().mean().backward()
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(TUNED.match(name) for name in changed)
    assert {"image_encoder.blocks.0.adapter.down.weight", "image_encoder.blocks.3.attn.rel_pos_d"} <= changed


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"no {COUNTS}")
@pytest.mark.parametrize("backbone", ["vit_b", "vit_h"])
def test_parameter_counts(backbone: str):
    counts = json.loads(COUNTS.read_text())
    (expected,) = (value for key, value in counts.items() if key.startswith(f"3DSAM-adapter {backbone}"))
    with torch.device("meta"):
        model = build_teacher("sam3d", backbone=backbone, in_channels=1, num_classes=2, patch=(128, 128, 128))
    model.freeze_base()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tuned = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def total(pattern: str) -> int:
        return sum(size for name, size in tuned.items() if re.search(pattern, name))

    assert sum(sizes.values()) == expected["total_used_1_prompt_encoder"]
    assert sum(tuned.values()) == expected["trainable_used_1_prompt_encoder"]
    for part in ("slice_embed", "depth_embed", "rel_pos_d", "mask_decoder"):
        assert total(part) == expected[part], part
    assert total(r"\.adapter\.") == expected["adapters"] and total("necks") == expected["necks"]
    unused = total("cross_attn_token_to_image")
    assert total("prompt_encoder") == expected["prompt_encoder_each"]
    assert total("prompt_encoder") - unused == expected["prompt_encoder_receiving_gradient"]
    if backbone == "vit_b":
        assert sum(tuned.values()) / 1e6 == pytest.approx(25.46, abs=0.005)  # the paper's table 1


def test_weights_survive_a_safetensors_round_trip(tmp_path: Path):
    model, twin = tiny().eval(), tiny().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    image, asked = torch.randn(1, 1, 8, 16, 24), prompts([[[[1, 2, 3]], [[4, 5, 6]]]], [[[1], [1]]])
    with torch.no_grad():
        assert torch.equal(model(image, asked), twin(image, asked))


def published_sam(path: Path, *, backbone: str = "vit_tiny_p8", side: int = 64) -> Path:
    """A file with the keys and shapes of SAM's at the size of `backbone`."""
    size = get_backbone(backbone)
    sam = nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(size, image_size=(side, side)),
            "prompt_encoder": build_prompt_encoder(size, image_size=(side, side)),
            "mask_decoder": MaskDecoder(size.decoder, channels=size.out_chans, masks=4, stages=2),
        }
    )
    for parameter in sam.parameters():
        nn.init.normal_(parameter)
    torch.save(sam.state_dict(), path)
    return path


@pytest.mark.parametrize("side", [64, 128])
def test_load_base_accounts_for_every_key(tmp_path: Path, side: int):
    theirs = torch.load(published_sam(tmp_path / "sam.pth", side=side), weights_only=True)
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.load_base(tmp_path / "sam.pth")
    assert report.variant == "vit_tiny_p8"
    kinds = [report.loaded, report.reinitialised, report.added]
    assert sorted(key for kind in kinds for key in kind) == sorted(model.state_dict())
    assert sorted([*report.loaded, *report.dropped]) == sorted(theirs)
    tables = [f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (1, 3) for axis in "hw"]
    assert sorted(report.interpolated) == ([] if side == 64 else sorted(["image_encoder.pos_embed", *tables]))
    after = model.state_dict()
    for key in set(report.loaded) - set(report.interpolated):
        assert torch.equal(after[key], theirs[key]), key
    for key in (*report.reinitialised, *report.added):
        if not key.endswith(".rel_pos_d"):
            assert torch.equal(after[key], before[key]), key
    for index in range(4):
        h, w, d = (after[f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"] for axis in "hwd")
        torch.testing.assert_close(d, (h + w) / 2)
    assert model.image_encoder.blocks[0].attn.rel_pos_d.requires_grad


def test_load_base_refuses_another_backbone_and_leaves_the_model_alone(tmp_path: Path):
    published_sam(tmp_path / "sam.pth", backbone="vit_tiny")
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInputError, match=r"sam\.pth.*vit_tiny\b"):
        model.load_base(tmp_path / "sam.pth")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_base_and_the_tuned_part_make_the_model_again(tmp_path: Path):
    base = published_sam(tmp_path / "sam.pth", side=128)
    model, twin = tiny().eval(), tiny().eval()
    for network in (model, twin):
        network.load_base(base)
        network.freeze_base()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_weights(model, tmp_path / "tuned.safetensors")
    assert all(TUNED.match(name) for name in load_file(tmp_path / "tuned.safetensors"))
    load_weights(twin, tmp_path / "tuned.safetensors")
    image = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        assert torch.equal(model(image), twin(image))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.*vit_b"),
        ({"in_channels": 2}, "1 channel .* or 3, not 2"),
        ({"patch": (6, 16, 24)}, "6x16x24 does not fit .*vit_tiny_p8.*multiples of 4, 4, 4.*change the patch"),
        ({"patch": (8, 16, 22)}, "multiples of 4, 4, 4"),
        ({"patch": (0, 16, 24)}, "multiples of 4, 4, 4"),
        ({"patch": (4, 4, 4)}, "more than one token of 8x8x8"),
        ({"patch": (8, 16, 24), "upsample": 1, "slices": 3}, "up-sampled 1 times.*multiples of 3, 8, 8"),
        ({"rank": 4}, "no option rank.*upsample, slices"),
    ],
)
def test_bad_options(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("shape", [(1, 3, 8, 16, 24), (1, 1, 8, 24, 16), (1, 1, 4, 16, 24), (1, 8, 16, 24)])
def test_wrong_image_shape(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"expected \[B, 1, 8, 16, 24\]"):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize("rows", [(1, 1), (2, 2), (1, 3)])
def test_wrong_points_shape(rows: tuple[int, int]):
    asked = prompts(torch.zeros(*rows, 1, 3).tolist(), torch.ones(*rows, 1, dtype=torch.int64).tolist())
    with pytest.raises(UsageError, match=r"expected \[1, 2, P, 3\]: one row per foreground class"):
        tiny()(torch.zeros(1, 1, 8, 16, 24), asked)


# --- it learns ------------------------------------------------------------------------------------------------------

CENTRES = ((16.0, 20.0, 18.0), (16.0, 44.0, 46.0))


def balls(radius: int = 8) -> list[Tensor]:
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for size in (32, 64, 64)), indexing="ij"), -1)
    return [((grid - torch.tensor(centre)) ** 2).sum(-1) < radius**2 for centre in CENTRES]


def learner(num_classes: int) -> SAM3D:
    model = tiny(patch=(32, 64, 64), num_classes=num_classes, upsample=1, decoder_channels=16)
    nn.init.normal_(model.image_encoder.pos_embed)  # places that differ, as in a trained SAM
    return model


def learn(model: SAM3D, example, *, steps: int) -> None:
    """Full training of `steps` steps on what `example(step)` gives: image, prompts, labels [1, D, H, W]."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start = time.process_time()
    for step in range(steps):
        image, asked, labels = example(step)
        loss = segmentation_loss(model(image, asked), labels, dice_weight=1.0, cross_entropy_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert time.process_time() - start < 40


def dice(logits: Tensor, truth: Tensor, label: int = 1) -> float:
    found = logits[0].argmax(0) == label
    return (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()


def test_overfits_two_classes_without_prompts():
    first, second = balls()
    image = (0.1 * torch.randn(32, 64, 64) + first.float() - second.float())[None, None]
    labels = (first.long() + 2 * second.long())[None]
    model = learner(3)
    learn(model, lambda step: (image, None, labels), steps=50)
    with torch.no_grad():
        logits = model(image)
    assert dice(logits, first, 1) > 0.9 and dice(logits, second, 2) > 0.9


def test_a_point_tells_two_equal_balls_apart():
    truths = balls()
    image = (0.1 * torch.randn(32, 64, 64) + (truths[0] | truths[1]).float())[None, None]
    asked = [prompts([[[centre]]], [[[1]]]) for centre in CENTRES]
    model = learner(2)
    learn(model, lambda step: (image, asked[step % 2], truths[step % 2].long()[None]), steps=80)
    with torch.no_grad():
        automatic = model(image)
        for point, truth in zip(asked, truths, strict=True):
            prompted = dice(model(image, point), truth)
            assert prompted > 0.9 and prompted > dice(automatic, truth) + 0.1
