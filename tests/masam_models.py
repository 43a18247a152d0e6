"""Small MA-SAMs, and boxes for them."""

import torch

from samkd.sam.prompt_tensors import Prompts
from samkd.teachers import build_teacher
from samkd.teachers.masam.model import MASAM


def tiny(**changes) -> MASAM:
    settings = {"backbone": "vit_tiny", "in_channels": 1, "num_classes": 4, "patch": (5, 64, 64), "rank": 4}
    model = build_teacher("masam", **(settings | changes))
    assert isinstance(model, MASAM)
    return model


def boxes(*given: tuple[int, int, tuple[float, ...]], batch: int = 1, classes: int = 3) -> Prompts:
    """(case, class row, (d0, h0, w0, d1, h1, w1)) for each box; no points."""
    values = torch.full((batch, classes, 6), torch.nan)
    for case, row, box in given:
        values[case, row] = torch.tensor(box)
    return Prompts(torch.zeros(batch, classes, 1, 3), torch.full((batch, classes, 1), -1), values)
