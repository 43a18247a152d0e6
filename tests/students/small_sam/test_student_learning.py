"""What the students of SAM's kind learn in seconds."""

import numpy as np
import pytest
import torch
from helpers.encoder_sizes import EFFICIENT
from helpers.prompts import prompts
from torch import Tensor, nn

from samkd.sam.prompt_tensors import Prompts
from samkd.students import build_student
from samkd.students.small_sam.model import STUDENT_ENCODERS, build_small_sam
from samkd.training.losses import segmentation_loss
from samkd.volumes.datasets.phantom.generate import make_case
from samkd.volumes.plan import Plan
from samkd.volumes.preprocess import preprocess, preprocess_labels

pytestmark = pytest.mark.slow


def learn(model: nn.Module, steps: int, rate: float, example) -> None:
    """`steps` of AdamW on what example(step) gives: image, prompts, labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / steps) ** 0.9
        image, given, labels = example(step)
        loss = segmentation_loss(model(image, given), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def dice(logits: Tensor, labels: Tensor) -> float:
    """The mean over the foreground classes that are there."""
    result = logits.argmax(1)
    parts = [(result == value, labels == value) for value in labels.unique().tolist() if value]
    return float(np.mean([float(2 * (ours & true).sum() / (ours.sum() + true.sum())) for ours, true in parts]))


@pytest.mark.parametrize(
    "name", sorted(set(STUDENT_ENCODERS) - {"litemedsam"})
)  # mobilesam with another stem: a minute
def test_a_named_student_learns_a_phantom_patch(name: str):
    volume, mask = make_case(3, orientation="SPL")
    plan = Plan(
        orientation="SPL",
        size=(None, 64, 64),
        intensity=({"rule": "window", "low": -200, "high": 250}, {"rule": "zscore"}),
        patch=(1, 64, 64),
    )
    labels = preprocess_labels(mask, volume.geometry, plan)
    start = int((labels > 0).sum((1, 2)).argmax())
    image = torch.from_numpy(preprocess(volume, plan).array[None, :, start : start + 1])
    truth = torch.from_numpy(labels[None, start : start + 1].astype(np.int64))
    model = build_student(name, in_channels=1, num_classes=7, patch=plan.patch)
    with torch.no_grad():
        before = dice(model(image), truth)
    steps = 40
    learn(model, steps, 1e-3, lambda step: (image, None, truth))
    with torch.no_grad():
        after = dice(model(image), truth)
    assert before < 0.2 and after > 0.5, (before, after)


def test_a_prompt_says_which_of_two_equal_blobs():
    """One of the blobs is the target, at random: without the prompt nothing tells which, Dice cannot exceed 2/3."""
    grid = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij"), dim=-1)
    centres, radii = torch.tensor([[1, 16, 16], [1, 48, 48]]), torch.tensor([1.5, 12, 12])
    blobs = ((grid - centres[:, None, None, None]) / radii).square().sum(-1) < 1
    image = 0.1 * torch.randn(1, 1, 3, 64, 64) + blobs.any(0)
    model = build_small_sam(EFFICIENT, in_channels=1, num_classes=2, patch=(3, 64, 64))

    def point(index: int) -> Prompts:
        voxels = blobs[index].nonzero()
        place = voxels[int(torch.randint(len(voxels), ()))].float()
        return prompts(classes=1, points=[(0, 0, place.tolist(), 1)])

    def box(index: int) -> Prompts:
        voxels = blobs[index].nonzero()
        return prompts(classes=1, boxes=[(0, 0, [*voxels.amin(0).tolist(), *voxels.amax(0).tolist()])])

    def example(step: int) -> tuple[Tensor, Prompts | None, Tensor]:
        given = (point, point, box, point, None)[step % 5]
        return image, given and given(step % 2), blobs[[step % 2]].long()

    learn(model, 240, 2e-3, example)
    with torch.no_grad():
        prompted = [dice(model(image, of(i)), blobs[[i]].long()) for i in (0, 1) for of in (point, point, box)]
        automatic = sum(dice(model(image), blob[None].long()) for blob in blobs) / 2
    assert min(prompted) > 0.85, prompted
    assert automatic < 0.7
