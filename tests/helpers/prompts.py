"""Prompts for small networks, as tensors."""

import torch

from samkd.sam.prompt_tensors import Prompts


def boxes_to_prompts(*given: tuple[int, int, tuple[float, ...]], batch: int = 1, classes: int = 3) -> Prompts:
    """(case, class row, (d0, h0, w0, d1, h1, w1)) for each box; no points."""
    values = torch.full((batch, classes, 6), torch.nan)
    for case, row, box in given:
        values[case, row] = torch.tensor(box)
    return Prompts(torch.zeros(batch, classes, 1, 3), torch.full((batch, classes, 1), -1), values)


def prompts(*, batch: int = 1, classes: int = 3, points=(), boxes=()) -> Prompts:
    """points: (case, class row, (d, h, w), label), in order; boxes: (case, class row, six numbers)."""
    given = Prompts(
        torch.zeros(batch, classes, 4, 3),
        torch.full((batch, classes, 4), -1),
        torch.full((batch, classes, 6), float("nan")),
    )
    for row, index, place, label in points:
        free = int((given.labels[row, index] >= 0).sum())
        given.points[row, index, free] = torch.tensor(place)
        given.labels[row, index, free] = label
    for row, index, box in boxes:
        given.boxes[row, index] = torch.tensor(box)
    return given


def points_to_prompts(points: list, labels: list) -> Prompts:
    """points [B][K - 1][P] of (d, h, w), labels alike; no boxes."""
    given = torch.tensor(points, dtype=torch.float32)
    return Prompts(given, torch.tensor(labels), torch.full((*given.shape[:2], 6), torch.nan))
