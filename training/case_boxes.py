"""The boxes of a whole case's classes, as they lie in a patch that was cut from it, turned, zoomed or mirrored."""

from itertools import product

import numpy as np

from .prepared import PreparedCase
from .prompt_sampling import tight_box


class CaseBoxes:
    """Tight boxes of the foreground classes of cases with masks; `classes` counts the background. Each is read once."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._boxes: dict[str, np.ndarray] = {}  # by the case's name

    def of(self, case: PreparedCase) -> np.ndarray:
        """First and last voxels (d, h, w) of the classes on the case's grid: [K - 1, 6], NaN for an absent class."""
        if case.name not in self._boxes:
            boxes = np.full((self.classes - 1, 6), np.nan)
            for value in range(1, self.classes):
                inside = np.asarray(case.labels) == value
                if inside.any():
                    boxes[value - 1] = np.concatenate(tight_box(inside))
            self._boxes[case.name] = boxes
        return self._boxes[case.name]

    def in_patch(
        self, case: PreparedCase, start: np.ndarray, affine: np.ndarray | None, patch: tuple[int, int, int]
    ) -> np.ndarray:
        """The boxes in voxels of the patch, float32 [K - 1, 6]: of a turned box the box around it.

        `start` is the first voxel of the plain patch, `affine` the map from offsets in the patch to offsets in the
        scan, both about the patch's centre, or None for the identity.
        """
        middle = (np.asarray(patch) - 1) / 2
        inverse = np.eye(3) if affine is None else np.linalg.inv(affine)
        result = np.full((self.classes - 1, 6), np.nan, np.float32)
        for row, box in enumerate(self.of(case)):
            if np.isnan(box).any():
                continue
            faces = np.stack([box[:3] - 0.5, box[3:] + 0.5])
            corners = np.array(list(product(*faces.T)))
            places = (corners - (np.asarray(start) + middle)) @ inverse.T + middle
            result[row] = np.concatenate([places.min(0) + 0.5, places.max(0) - 0.5])
        return result
