"""Ground: what a scan is. Geometry, strict readers and writers, plans, tiles, datasets. numpy and nibabel only."""

from .geometry import Geometry, Volume
from .plan import Plan

__all__ = ["Geometry", "Plan", "Volume"]
