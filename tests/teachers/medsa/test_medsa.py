"""Medical SAM Adapter: its adapters, its prompts, its errors."""

import re
from typing import Any

import pytest
import torch
from helpers.prompts import prompts
from helpers.teachers import MEDSA_BACKBONES, tiny_teacher
from torch import Tensor, nn

from samkd.errors import UsageError
from samkd.sam.prompt_encoder import SAMPromptEncoder
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.medsa.adapters import PromptAdapter


@pytest.mark.parametrize("backbone", MEDSA_BACKBONES)
@pytest.mark.parametrize("sd_trans", ["add", "concatenate", "cross", "none"])
def test_forward_and_backward(backbone: str, sd_trans: str):
    model = tiny_teacher("medsa", backbone=backbone, in_channels=3, patch=(3, 48, 64), sd_trans=sd_trans)
    assert (model.in_channels, model.num_classes, model.patch) == (3, 4, (3, 48, 64))
    given = prompts(
        batch=2,
        points=[(0, 0, (1.0, 5.0, 9.0), 1), (0, 0, (2.0, 40.0, 60.0), 0), (1, 2, (0.0, 3.0, 3.0), 1)],
        boxes=[(0, 1, (0, 3, 4, 1, 20, 30.0)), (1, 2, (1, 3, 4, 2, 20, 30.0))],
    )
    logits = model(torch.randn(2, 3, 3, 48, 64), given)
    assert logits.shape == (2, 4, 3, 48, 64)
    assert torch.isfinite(logits).all() and not logits[:, 0].any()
    nn.functional.cross_entropy(logits, torch.randint(4, (2, 3, 48, 64))).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = r"prompt_encoder\.mask_downscaling|mask_decoder\.iou_prediction_head"
    assert all(re.match(unused, name) or "no_prompt" in name for name in without), without


@pytest.mark.parametrize("backbone", MEDSA_BACKBONES)
@pytest.mark.parametrize("sd_trans", ["add", "concatenate", "cross", "none"])
def test_the_depth_branch_mixes_the_slices_of_one_volume(backbone: str, sd_trans: str):
    model = tiny_teacher("medsa", backbone=backbone, sd_trans=sd_trans, zero_init=False).eval()
    image = torch.randn(2, 1, 3, 64, 64)
    changed = image.clone()
    changed[0, :, 2] += torch.randn(64, 64)
    with torch.no_grad():
        before, after = model(image), model(changed)
    difference = (before - after).abs().amax(dim=(1, 3, 4))
    own = difference[0, 2]
    assert own > 0
    assert bool((difference[0, :2] > 1e-3 * own).all()) == (sd_trans != "none")
    assert difference[1].max() < 1e-4 * own


def test_the_depth_branch_has_no_parameters_of_its_own_and_uses_sams():
    model = tiny_teacher("medsa", zero_init=False).eval()
    for name, parameter in model.image_encoder.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter)  # SAM's are not zero
    assert model.state_dict().keys() == tiny_teacher("medsa", sd_trans="none").state_dict().keys()
    image = torch.randn(1, 1, 3, 64, 64)
    with torch.no_grad():
        block = model.image_encoder.get_submodule("blocks.0")
        x = torch.randn(3, 4, 4, 96)
        assert not torch.allclose(block(x, 3), block(x))
        before = model(image)
        assert not torch.allclose(model(image.flip(2)).flip(2), before, atol=1e-5)  # it knows the order of slices


def test_adapters_sit_where_the_paper_puts_them():
    model = tiny_teacher("medsa", zero_init=False, scale=0.3)
    block: Any = model.image_encoder.get_submodule("blocks.1")
    x = torch.randn(6, 4, 4, 96)
    along = block.attn(block.norm1(x).view(2, 3, 16, 96).transpose(1, 2).reshape(32, 3, 1, 96))
    along = along.view(2, 16, 3, 96).transpose(1, 2).reshape(6, 4, 4, 96)
    space = block.attn(block.norm1(x))
    first, second = block.adapters.attention, block.adapters.mlp
    y = x + space + first.up(first.down(space + along).relu())
    z = block.norm2(y)
    torch.testing.assert_close(block(x, 3), y + block.mlp(z) + 0.3 * second.up(second.down(z).relu()))

    layer: Any = model.mask_decoder.get_submodule("transformer.layers.1")
    queries, places, keys, key_places = (torch.randn(2, n, 128) for n in (6, 6, 16, 16))
    q = queries + places
    q = layer.norm1(queries + layer.self_attn(q, q, queries))
    result = layer.cross_attn_token_to_image(q + places, keys + key_places, keys)
    q = layer.norm2(q + result + layer.prompt_adapter(result, places[:, 4:]))  # own tokens: IoU and three classes
    q = layer.norm3(q + layer.mlp(q) + 0.3 * layer.mlp_adapter(q))
    k = keys + layer.cross_attn_image_to_token(keys + key_places, q + places, q)
    k = layer.norm4(k + layer.image_adapter(k))
    ours = layer(queries=queries, keys=keys, query_pe=places, key_pe=key_places)
    torch.testing.assert_close(ours, (q, k))


@pytest.mark.parametrize("conditioning", ["hyper", "add", "concatenate"])
def test_the_prompt_adapter_depends_on_the_prompt(conditioning):
    adapter = PromptAdapter(16, 4, conditioning=conditioning, zero_init=False)
    x, click, other = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    assert not torch.allclose(adapter(x, click), adapter(x, other), atol=1e-4)
    assert not torch.allclose(adapter(x, click), adapter(x, click[:, :0]), atol=1e-4)
    assert torch.allclose(adapter(x, click.flip(1)), adapter(x, click), atol=1e-6)


def test_hyp_adpt_generates_three_layers_of_weights_from_the_prompt():
    adapter = PromptAdapter(16, 4, conditioning="hyper", zero_init=False)
    x, click, other = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    weights = adapter.weights(adapter.summary(click))
    assert [tuple(weight.shape) for weight in weights] == [(2, 4, 4)] * 3
    for ours, theirs in zip(weights, adapter.weights(adapter.summary(other)), strict=True):
        assert (ours - theirs).abs().max() > 1e-3
    e = adapter.down(x)
    for weight in weights:
        e = e @ weight
        e = ((e - e.mean(-1, keepdim=True)) / (e.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(adapter(x, click), adapter.up(e))


def test_hyp_adpt_sees_the_prompt_inside_the_decoder():
    """The adapter of the first decoder block gets exactly the prompt's tokens."""
    model = tiny_teacher("medsa")
    seen: list[Tensor] = []
    adapter = model.mask_decoder.get_submodule("transformer.layers.0.prompt_adapter")
    adapter.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    image = torch.randn(1, 1, 3, 64, 64)
    given = prompts(points=[(0, row, (1.0, 8.0 + row, 8.0), 1) for row in range(3)])
    model(image, given)
    model(image)
    expected = model.slice_prompts(model.prompt_encoder, given.points[0, :, :1], given.labels[0, :, :1], None, 3)
    torch.testing.assert_close(seen[0], expected)
    assert seen[1].shape == (1, 0, 128)


def test_prompts_in_a_volume_become_tokens_of_its_slices():
    model = tiny_teacher("medsa", patch=(5, 64, 64))
    encoder = model.prompt_encoder
    assert isinstance(encoder, SAMPromptEncoder)
    points, labels = torch.tensor([[[2.0, 10.0, 20.0]]]), torch.tensor([[1]])
    tokens = model.slice_prompts(encoder, points, labels, None, 5)
    assert tokens.shape == (5, 2, 128)
    place = encoder.pe_layer.forward_with_coords(torch.tensor([[[20.5, 10.5]]]), (64, 64))[0, 0]
    nothing = encoder.not_a_point_embed.weight[0]
    torch.testing.assert_close(tokens[2, 0], place + encoder.get_parameter("point_embeddings.1.weight")[0])
    for index in (0, 1, 3, 4):
        torch.testing.assert_close(tokens[index, 0], place + nothing)
    torch.testing.assert_close(tokens[:, 1], nothing.expand(5, -1))
    nn.init.normal_(model.slice_prompts.codes)
    coded = model.slice_prompts(encoder, points, labels, None, 5)
    torch.testing.assert_close(coded[2], tokens[2])
    others = coded[[0, 1, 3, 4], 0]
    assert torch.pdist(others).min() > 1e-2  # each distance has its own code, above and below apart
    boxes = torch.tensor([[1.0, 4.0, 6.0, 3.0, 30.0, 40.0]])
    spans = model.slice_prompts(encoder, points[:, :0], labels[:, :0], boxes, 5)
    assert spans.shape == (5, 2, 128)
    expected = encoder(None, torch.tensor([[6.0, 4.0, 40.0, 30.0]]), None)[0][0]
    torch.testing.assert_close(spans[1:4], expected.expand(3, -1, -1))
    assert not torch.allclose(spans[0], spans[4]) and not torch.allclose(spans[0], expected)


def test_a_class_without_a_prompt_is_segmented_automatically_and_a_batch_changes_nothing():
    model = tiny_teacher("medsa", zero_init=False).eval()
    image = torch.randn(2, 1, 3, 64, 64)
    points = [(0, 0, (1.0, 20.0, 20.0), 1), (0, 0, (2.0, 50.0, 50.0), 0), (1, 1, (0.0, 9.0, 9.0), 1)]
    box = (0.0, 5.0, 6.0, 2.0, 50.0, 40.0)
    given = prompts(batch=2, points=points, boxes=[(1, 1, box), (1, 2, box)])
    with torch.no_grad():
        automatic, both = model(image), model(image, given)
        close = [[torch.allclose(both[b, k], automatic[b, k], atol=1e-5) for k in range(4)] for b in range(2)]
        assert close == [[True, False, True, True], [True, True, False, False]]
        for row in range(2):
            alone = Prompts(given.points[[row]], given.labels[[row]], given.boxes[[row]])
            torch.testing.assert_close(model(image[[row]], alone), both[[row]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(image, prompts(batch=2)), automatic)


def test_checkpointing_changes_memory_not_numbers():
    plain, saving = tiny_teacher("medsa"), tiny_teacher("medsa", checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image, given = torch.randn(1, 1, 3, 64, 64), prompts(points=[(0, 0, (1.0, 20.0, 20.0), 1)])
    for model in (plain, saving):
        model(image, given).square().mean().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_leaves_clicks_where_they_are():
    model = tiny_teacher("medsa").eval()
    image, given = torch.rand(1, 1, 3, 64, 64), prompts(points=[(0, 0, (1.0, 20.0, 20.0), 1)])
    with torch.no_grad():
        exact = model(image, given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(image, given)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.*vit_b"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"num_classes": 1}, "num_classes=1: give at least 2"),
        ({"patch": (3, 64, 60)}, "64x60.*multiples of 16"),
        ({"rank": 0}, "rank is 0: give 1 or more"),
        (
            {"sd_trans": "sum"},
            "sd_trans is 'sum': choose one of add, add_output, concatenate, ",
        ),
        ({"conditioning": "film"}, "conditioning is 'film': choose one of hyper, add, concatenate"),
        ({"adapter": "prefix"}, "adapter is 'prefix': choose one of bottleneck, lora"),
        ({"adapter": "lora", "sd_trans": "add"}, "leave sd_trans out"),
        ({"adapter": "lora", "backbone": "mobile_vit_t"}, "mobile_vit_t.*another backbone"),
        ({"ranks": 4}, "no option ranks.*rank, scale"),
    ],
)
def test_bad_options(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tiny_teacher("medsa", **changes)


@pytest.mark.parametrize("shape", [(1, 3, 3, 64, 64), (1, 1, 3, 64, 32), (1, 3, 64, 64)])
def test_wrong_image_shape(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"expected \[B, 1, D, 64, 64\]"):
        tiny_teacher("medsa")(torch.zeros(shape))


def test_wrong_prompts():
    image = torch.zeros(1, 1, 3, 64, 64)
    with pytest.raises(UsageError, match=r"for \(1, 2\) cases and classes, expected \(1, 3\)"):
        tiny_teacher("medsa")(image, prompts(classes=2))
    points = [(0, 1, (1.0, 2.0, 3.0), 1)] * 4
    many = prompts(points=points, boxes=[(0, 1, (0.0, 1, 1, 1, 9, 9))])
    assert tiny_teacher("medsa", backbone="efficient_vit_ti")(image, many).shape == (1, 4, 3, 64, 64)
    seven = Prompts(many.points.repeat(1, 1, 2, 1), many.labels.repeat(1, 1, 2), many.boxes)
    with pytest.raises(UsageError, match=r"class 2 has 8 points and a box.*hold 6 points"):
        tiny_teacher("medsa", backbone="efficient_vit_ti")(image, seven)


def test_litemedsam_is_a_backbone():
    """Its tokens are 4 pixels wide, so the decoder ends at the image's own size."""
    torch.manual_seed(0)
    model = tiny_teacher("medsa", backbone="litemedsam", patch=(2, 32, 24)).eval()
    assert model.image_encoder.grid == (8, 6)
    image = torch.randn(1, 1, 2, 32, 24)
    with torch.no_grad():
        automatic = model(image)
        boxed = model(image, prompts(boxes=[(0, 1, (0, 4, 5, 1, 20, 19.0))]))
    assert automatic.shape == boxed.shape == (1, 4, 2, 32, 24)
    assert torch.equal(boxed[:, [0, 1, 3]], automatic[:, [0, 1, 3]]) and not torch.equal(boxed[:, 2], automatic[:, 2])
