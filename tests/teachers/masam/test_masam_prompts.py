"""MA-SAM prompted by a 3-D box: what each slice is told, and what it learns from it."""

import numpy as np
import pytest
import torch
from helpers.prompts import boxes_to_prompts
from helpers.teachers import tiny_teacher
from torch import Tensor, nn

from samkd.configs.load import load_config
from samkd.errors import UsageError
from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.train import teach
from samkd.training.losses import segmentation_loss
from samkd.training.prompt_sampling import box_prompts

BOX = (1.0, 10.0, 20.0, 3.0, 30.0, 50.0)


def prompt_tokens(model, given: Prompts) -> Tensor:
    """What the mask decoder is given for the boxes: [pairs * D, T, C]."""
    seen = []
    hook = model.mask_decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    with torch.no_grad():
        model(torch.zeros(1, 1, 5, 64, 64), given)
    hook.remove()
    assert len(seen) == 2 and seen[0].shape[1] == 0  # all classes without a prompt come first
    return seen[1]


@pytest.mark.parametrize(
    ("first", "last", "met"),
    [(1.0, 3.0, [1, 2, 3]), (0.0, 4.0, [0, 1, 2, 3, 4]), (2.0, 2.0, [2]), (0.6, 3.4, [1, 2, 3]), (2.7, 2.7, [3])],
)
def test_a_slice_is_told_the_box_in_its_plane_where_the_box_meets_it(first: float, last: float, met: list[int]):
    model = tiny_teacher("masam")
    tokens = prompt_tokens(model, boxes_to_prompts((0, 1, (first, 10.0, 20.0, last, 30.0, 50.0))))
    assert tokens.shape == (5, 2, 128)
    sams = model.prompt_encoder(None, torch.tensor([[20.0, 10.0, 50.0, 30.0]]), None)[0][0]  # x0, y0, x1, y1
    nothing = model.prompt_encoder.get_parameter("not_a_point_embed.weight").expand(2, -1)
    for index in range(5):
        torch.testing.assert_close(tokens[index], sams if index in met else nothing)


def test_a_box_changes_its_class_alone_and_only_where_it_is_given():
    model = tiny_teacher("masam", zero_init=False).eval()
    image = torch.randn(2, 1, 5, 64, 64)
    given = boxes_to_prompts((0, 1, BOX), (1, 0, BOX), (1, 2, (0.0, 5.0, 5.0, 4.0, 60.0, 60.0)), batch=2)
    with torch.no_grad():
        automatic, prompted = model(image), model(image, given)
        same = [[torch.equal(prompted[b, k], automatic[b, k]) for k in range(4)] for b in range(2)]
        assert same == [[True, True, False, True], [True, False, True, False]]
        assert torch.equal(model(image, boxes_to_prompts(batch=2)), automatic)
        for row in range(2):
            alone = Prompts(given.points[[row]], given.labels[[row]], given.boxes[[row]])
            torch.testing.assert_close(model(image[[row]], alone), prompted[[row]], rtol=1e-4, atol=1e-4)


def test_for_one_class_it_is_the_softmax_of_its_own_decoding():
    """The paper's prompted network, which is decoded with the box alone."""
    model = tiny_teacher("masam", num_classes=2).eval()
    image = torch.randn(1, 1, 5, 64, 64)
    decoded = []
    model.mask_decoder.register_forward_hook(lambda module, inputs, output: decoded.append(output[0]))
    with torch.no_grad():
        result = model(image, boxes_to_prompts((0, 0, BOX), classes=1)).softmax(1)
    torch.testing.assert_close(result[0].transpose(0, 1), decoded[1].softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["progressive", "multi_scale", "sam"])
def test_boxes_train_what_the_decoder_reads_them_by(decoder: str):
    model = tiny_teacher("masam", decoder=decoder)
    model.freeze_pretrained()
    logits = model(torch.randn(1, 1, 5, 64, 64), boxes_to_prompts((0, 0, BOX), (0, 2, BOX)))
    assert logits.shape == (1, 4, 5, 64, 64)
    segmentation_loss(logits, torch.randint(4, (1, 5, 64, 64))).backward()
    corners = [f"point_embeddings.{index}.weight" for index in (2, 3)]
    for name in (*corners, "not_a_point_embed.weight"):  # slices 0 and 4 have no corner
        gradient = model.prompt_encoder.get_parameter(name).grad
        assert gradient is not None and gradient.any(), name


def test_autocast_leaves_boxes_where_they_are():
    model, given = tiny_teacher("masam").eval(), boxes_to_prompts((0, 0, BOX))
    image = torch.rand(1, 1, 5, 64, 64)
    with torch.no_grad():
        exact = model(image, given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(image, given)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_wrong_prompts():
    with pytest.raises(UsageError, match=r"MA-SAM got prompts for \(1, 2\) cases and classes, expected \(1, 3\)"):
        tiny_teacher("masam")(torch.zeros(1, 1, 5, 64, 64), boxes_to_prompts(classes=2))


@pytest.mark.parametrize("prompts", ["{kind: point}", "{kind: points, count: 3}"])
def test_training_with_points_is_refused_before_anything_is_written(tmp_path, prompts: str):
    from samkd.workflows.data import open_dataset

    overrides = ["phantom.training=2", "phantom.test=1", "teacher.plan.patch=[5,32,32]", f"teacher.prompts={prompts}"]
    config = load_config("phantom", overrides)
    dataset = open_dataset(config, None, runs=tmp_path / "data")
    with pytest.raises(UsageError, match="'masam' takes no prompts of kind 'point"):
        teach(config, dataset, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def two_squares() -> tuple[Tensor, Tensor]:
    """An image [1, 1, 5, 48, 48] with two equal bright blocks, and their masks [2, 5, 48, 48]."""
    masks = torch.zeros(2, 5, 48, 48, dtype=torch.bool)
    masks[0, 1:4, 5:21, 4:22] = True
    masks[1, 1:4, 27:43, 26:44] = True
    return (0.1 * torch.randn(5, 48, 48) + masks.any(0))[None, None], masks


@pytest.mark.slow
def test_a_box_says_which_of_two_equal_squares():
    """Only one of them is the class, in turn: without the box nothing tells which, Dice cannot exceed 2/3."""
    image, masks = two_squares()
    model = tiny_teacher("masam", backbone="vit_tiny_p8", num_classes=2, patch=(5, 48, 48))
    nn.init.normal_(model.image_encoder.pos_embed)  # places that differ, as in a trained SAM
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def box(index: int, relax: float = 0.05) -> Prompts:
        drawn = box_prompts(np.random.default_rng(0), masks[[index]].long().numpy(), classes=2, relax=relax)
        return Prompts.of(drawn, torch.device("cpu"))

    def dice(logits: Tensor, truth: Tensor) -> float:
        result = logits[0].argmax(0) == 1
        return float(2 * (result & truth).sum() / (result.sum() + truth.sum()))

    for number in range(80):
        given = box(number % 2) if number % 5 else None
        loss = segmentation_loss(model(image, given), masks[[number % 2]].long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        prompted = [dice(model(image, box(index, relax)), masks[index]) for index in (0, 1) for relax in (0.0, 0.05)]
        automatic = sum(dice(model(image), mask) for mask in masks) / 2
    assert min(prompted) > 0.85
    assert automatic < 0.7
