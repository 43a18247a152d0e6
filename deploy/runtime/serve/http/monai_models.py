"""The packages as MONAI Label's clients know them: models of a type, with labels, that take points as voxels.

Facts from the public code of MONAI Label 0.8.5 and of 3D Slicer's module (plugins/slicer/MONAILabel/MONAILabel.py):
getControlPointsXYZ multiplies each point with the volume's RAS-to-IJK matrix and rounds it, and ITK keeps the order of
a NIfTI's axes, so a point is (i, j, k) of the file that was uploaded; that is our space "voxel". A "deepgrow" model is
sent {"foreground", "background", "label"} and answers 0 and 1; a "deepedit" model of several labels is sent the points
of each under its name, those of "background" lying outside of all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...package import Package
from .refusals import Refusal

SEGMENTATION, DEEPGROW, DEEPEDIT = "segmentation", "deepgrow", "deepedit"
BACKGROUND = "background"
_MOST_POINTS = 10_000


@dataclass(frozen=True)
class Model:
    """A package under a name and a type."""

    name: str
    type: str
    package: Package

    @property
    def labels(self) -> dict[str, int]:
        """The values of the classes in its masks, by their names."""
        names = self.package.class_names
        first = {BACKGROUND: 0} if self.type == DEEPEDIT else {}
        return first | {name: value for value, name in names.items() if value}

    def info(self) -> dict[str, Any]:
        """What the clients are told."""
        manifest = self.package.manifest
        return {
            "type": self.type,
            "labels": self.labels,
            "dimension": 3,
            "description": manifest.description.text or manifest.description.dataset or manifest.name,
            "config": {},
        }


def models_of(packages: Mapping[str, Package]) -> dict[str, Model]:
    """By name: a promptable package takes points, and is also there as NAME_seg when it segments without them."""
    models: dict[str, Model] = {}
    for digest, package in packages.items():
        name = re.sub(r"[^\w.-]", "-", package.manifest.name)
        if {name, f"{name}_seg"} & models.keys():
            name = f"{name}-{digest[:8]}"
        if not package.prompt_kinds:
            models[name] = Model(name, SEGMENTATION, package)
            continue
        classes = [value for value in package.class_names if value]
        models[name] = Model(name, DEEPEDIT if len(classes) > 1 else DEEPGROW, package)
        if not package.prompts_required:
            models[f"{name}_seg"] = Model(f"{name}_seg", SEGMENTATION, package)
    return models


@dataclass(frozen=True)
class Clicks:
    """Prompts as docs/prompts.md has them, None for none; `only` is the class that a client wants as 0 and 1."""

    prompts: dict[str, Any] | None
    only: int | None = None


def clicks_of(params: Mapping[str, Any], model: Model) -> Clicks:
    """What the parameters of an inference show the network. Refusal 400."""
    names = {name: value for name, value in model.labels.items() if value}
    inside = {name: _points(params, name) for name in names if params.get(name)}
    outside = _points(params, BACKGROUND)
    only = None
    if "foreground" in params:
        name = params.get("label") if len(names) > 1 else next(iter(names))
        if name not in names:
            raise Refusal(400, f"label {str(name)[:40]!r}: has points, but is none of {', '.join(names)}.")
        inside = {name: _points(params, "foreground")}
        only = names[name]
    if outside and not any(inside.values()):
        if only is None:
            raise Refusal(400, "background: points outside of a class belong to one. Add a point inside it.")
        inside = {name: [] for name, value in names.items() if value == only}
    classes = {
        name: {"points": [*([*point, 1] for point in points), *([*point, 0] for point in outside)]}
        for name, points in inside.items()
        if points or outside
    }
    return Clicks({"space": "voxel", "classes": classes} if classes else None, only)


def _points(params: Mapping[str, Any], key: str) -> list[list[float]]:
    points = params.get(key) or []
    if not isinstance(points, list) or len(points) > _MOST_POINTS:
        raise Refusal(400, f"{key}: expected a list of points [i, j, k].")
    for point in points:
        if not isinstance(point, list) or len(point) != 3:
            raise Refusal(400, f"{key}: {str(point)[:60]} is no point; expected voxel indices [i, j, k].")
    return points
