"""Every student becomes an OpenVINO model of the same numbers; SAM's kind also as two graphs, prompts included."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_sizes import EFFICIENT, TINY
from torch import Tensor, nn

from samkd.students import build_student
from samkd.students.small_sam.model import MAX_POINTS, build_small_sam

pytest.importorskip("openvino", reason="samkd[openvino] is not installed")

from samkd.deploy.export.graphs import Graph, encoder_and_decoder, whole
from samkd.deploy.export.openvino import convert
from samkd.deploy.runtime.engine_openvino import Engine

pytestmark = pytest.mark.slow


def seasoned(model: Any) -> Any:
    """With batch norms that have seen something, and a depth branch and prompts' codes that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 2)
    for key, parameter in model.named_parameters():
        if key in ("slice_prompts.codes", "along_depth.weight"):
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "patch", "options"),
    [
        ("segresnet", (8, 16, 32), {}),
        ("mednext-tiny", (16, 16, 32), {}),
        ("mobilesam", (3, 64, 48), {}),
        ("efficientsam-ti", (1, 48, 64), {"slices": "depth"}),
        ("efficientsam-s", (3, 48, 64), {"slices": "depth"}),
    ],
)
def test_openvino_equals_torch(name: str, patch: tuple[int, int, int], options: dict):
    model = seasoned(build_student(name, in_channels=1, num_classes=4, patch=patch, **options))
    image = torch.randn(2, 1, *patch)[[0, 1, 0]]  # OpenVINO has been seen to answer its first call only rightly
    with torch.no_grad():
        expected = model(image).softmax(1).numpy()
    result = Engine(convert(whole(model, patch=patch, in_channels=1)), precision="f32", threads=1)(image.numpy())
    assert result.shape == expected.shape == (3, 4, *patch)
    assert expected.std(axis=(2, 3, 4)).min() > 1e-3
    assert np.abs(result - expected).max() < 1e-5


def compiled(graph: Graph) -> Callable[..., Tensor]:
    run = Engine(convert(graph), precision="f32", threads=1)
    return lambda *tensors: torch.from_numpy(run(*(tensor.numpy() for tensor in tensors)))


@pytest.mark.parametrize("size", [TINY, EFFICIENT], ids=lambda size: size.name)
@pytest.mark.filterwarnings("ignore")
def test_two_graphs_take_any_prompt(size):
    model = seasoned(build_small_sam(size, in_channels=1, num_classes=4, patch=(3, 48, 64)))
    image = torch.randn(1, 1, 3, 48, 64)
    points, labels = torch.zeros(1, MAX_POINTS, 3), torch.full((1, MAX_POINTS), -1)
    boxes = torch.full((1, 6), torch.nan)
    with torch.no_grad():
        embedding = model.encode(image)
        empty = (embedding, points, labels, boxes)
        encode, masks = map(compiled, encoder_and_decoder(model, patch=(3, 48, 64), in_channels=1, points=MAX_POINTS))
        some_points, some_labels = points.clone(), labels.clone()
        some_points[0, :2] = torch.tensor([[0.0, 20, 30], [2, 5, 9]])
        some_labels[0, :2] = torch.tensor([1, 0])
        box = torch.tensor([[0.0, 3, 4, 1, 40, 41]])
        coded = encode(image)
        assert (coded - embedding).abs().max() < 1e-4
        automatic = masks(*empty)
        for given in ((some_points, some_labels, boxes), (points, labels, box), (some_points, some_labels, box)):
            result = masks(coded, *given)
            assert (result - model.masks(embedding, *given)).abs().max() < 1e-4
            assert (result - automatic).abs().max() > 1e-2
        assert (automatic - model(image)).abs().max() < 1e-4
