"""What a tiny Medical SAM Adapter learns in seconds."""

import pytest
import torch
from helpers.prompts import prompts
from helpers.teachers import tiny_teacher
from torch import Tensor, nn

from samkd.sam.prompt_tensors import Prompts
from samkd.teachers.medsa.model import MedSA

pytestmark = pytest.mark.slow


def two_blobs() -> tuple[Tensor, Tensor]:
    """An image [1, 1, 5, 64, 64] with two equal blobs, and their masks [2, 5, 64, 64]."""
    grid = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(64), torch.arange(64), indexing="ij"), dim=-1)
    centres, radii = torch.tensor([[2, 16, 16], [2, 48, 48]]), torch.tensor([2.5, 12, 12])
    blobs = ((grid - centres[:, None, None, None]) / radii).square().sum(-1) < 1
    return 0.1 * torch.randn(1, 1, 5, 64, 64) + blobs.any(0), blobs


def dice(logits: Tensor, truth: Tensor) -> float:
    result = logits[0].argmax(0) == 1
    return float(2 * (result & truth).sum() / (result.sum() + truth.sum()))


def learn(model: MedSA, steps: int, example) -> None:
    """`steps` of AdamW on what example(step) gives: image, prompts, labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 10)
        image, given, labels = example(step)
        logits = model(image, given)
        probability = logits.softmax(1)[:, 1]
        overlap = 1 - (2 * (probability * labels).sum() + 1) / (probability.sum() + labels.sum() + 1)
        loss = nn.functional.cross_entropy(logits, labels) + overlap
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def test_it_learns_one_case_automatically():
    image, blobs = two_blobs()
    model = tiny_teacher("medsa", backbone="vit_tiny_p8", num_classes=2, patch=(5, 64, 64), rank=16)
    learn(model, 70, lambda step: (image, None, blobs[:1].long()))
    with torch.no_grad():
        assert dice(model(image), blobs[0]) > 0.9


def test_a_point_says_which_of_two_equal_blobs():
    """One of the blobs is the target, at random: without the point nothing tells which, Dice cannot exceed 2/3."""
    image, blobs = two_blobs()
    model = tiny_teacher("medsa", backbone="vit_tiny_p8", num_classes=2, patch=(5, 64, 64), rank=16)

    def point(index: int) -> Prompts:
        voxels = blobs[index].nonzero()
        place = voxels[int(torch.randint(len(voxels), ()))].float()
        return prompts(classes=1, points=[(0, 0, place.tolist(), 1)])

    def example(step: int) -> tuple[Tensor, Prompts | None, Tensor]:
        return image, point(step % 2) if step % 5 else None, blobs[[step % 2]].long()

    learn(model, 150, example)
    with torch.no_grad():
        prompted = [dice(model(image, point(index)), blobs[index]) for index in (0, 1) for _ in range(3)]
        automatic = sum(dice(model(image), blob) for blob in blobs) / 2
    assert min(prompted) > 0.85
    assert automatic < 0.7
