"""What a small 3DSAM-adapter learns in seconds, with a point and without."""

import pytest
import torch
from helpers.prompts import points_to_prompts
from helpers.teachers import tiny_teacher
from torch import Tensor, nn

from samkd.teachers.sam3d.model import SAM3D
from samkd.training.losses import segmentation_loss

pytestmark = pytest.mark.slow

CENTRES = ((16.0, 20.0, 18.0), (16.0, 44.0, 46.0))


def balls(radius: int = 8) -> list[Tensor]:
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for size in (32, 64, 64)), indexing="ij"), -1)
    return [((grid - torch.tensor(centre)) ** 2).sum(-1) < radius**2 for centre in CENTRES]


def learner(num_classes: int) -> SAM3D:
    model = tiny_teacher("sam3d", patch=(32, 64, 64), num_classes=num_classes, upsample=1, decoder_channels=16)
    nn.init.normal_(model.image_encoder.pos_embed)  # places that differ, as in a trained SAM
    return model


def learn(model: SAM3D, example, *, steps: int) -> None:
    """Full training of `steps` steps on what `example(step)` gives: image, prompts, labels [1, D, H, W]."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        image, asked, labels = example(step)
        loss = segmentation_loss(model(image, asked), labels, dice_weight=1.0, cross_entropy_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def dice(logits: Tensor, truth: Tensor, label: int = 1) -> float:
    result = logits[0].argmax(0) == label
    return (2 * (result & truth).sum() / (result.sum() + truth.sum())).item()


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
    asked = [points_to_prompts([[[centre]]], [[[1]]]) for centre in CENTRES]
    model = learner(2)
    learn(model, lambda step: (image, asked[step % 2], truths[step % 2].long()[None]), steps=80)
    with torch.no_grad():
        automatic = model(image)
        for point, truth in zip(asked, truths, strict=True):
            prompted = dice(model(image, point), truth)
            assert prompted > 0.9 and prompted > dice(automatic, truth) + 0.1
