"""An oblique, anisotropic scan that no symmetry maps onto itself."""

import numpy as np

from samkd.volumes.geometry import Geometry, Volume


def oblique_scan() -> tuple[Volume, np.ndarray]:
    """The scan, and its mask: oblique, anisotropic, with two blocks that no symmetry maps onto each other."""
    labels = np.zeros((14, 40, 36), np.uint8)
    labels[3:8, 5:22, 4:16] = 1
    labels[8:13, 24:38, 18:34] = 2
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -1.1], [0, 1.3, 0], [4.0, 0, 0]])
    affine[:3, 3] = (10, -20, 30)
    geometry = Geometry(affine, labels.shape)
    return Volume(labels[None].astype(np.float32), geometry), labels
