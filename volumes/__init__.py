"""Ground: what a scan is. Geometry, strict readers and writers, plans, tiles, datasets.

numpy and nibabel only; Pillow is loaded when a picture is read.
"""

from .geometry import Geometry, Volume
from .plan import Plan

__all__ = ["Geometry", "Plan", "Volume"]
