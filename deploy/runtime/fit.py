"""Whether the parts of a package fit each other: its manifest, its sample and its graphs."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from pathlib import Path

from ...errors import BadInputError, IntegrityError
from ...volumes.geometry import Geometry
from ...volumes.io.nifti import read_geometry
from ...volumes.plan import Plan, grid
from ...volumes.sliding_window import tile_step
from .engine import Engine, Shape
from .manifest import Manifest
from .manifest_rules import EXPECTED, SAMPLE, fault

_MOST_VOXELS = 1 << 28  # of the sample: 1 GB as float32
_MOST_PACKED = 250  # voxels' bytes to the file's; noise, as of a scanner, is packed to a half or a tenth
_ALWAYS = 1 << 24  # voxels of a sample that no one needs to look at
_FINER, _COARSER = 512, 4096  # voxels of the sample's grid in the network to its own
_MOST_PATCHES = 1 << 16  # for the sample


def check_sample(folder: Path, manifest: Manifest, *, source: Path) -> None:
    """Refuse a sample that is no scan, unpacks to far more than it holds, or that the plan makes a senseless grid of.

    `folder` holds the files, `source` is what the user calls the package. Only the headers are read. Raises
    IntegrityError.
    """
    try:
        sample, expected = read_geometry(folder / SAMPLE), read_geometry(folder / EXPECTED)
    except BadInputError as error:
        raise IntegrityError(str(error).replace(str(folder), str(source))) from error
    if not expected.same_grid(sample):
        raise IntegrityError(f"{source}: its expected mask is not on the grid of its sample.")
    voxels = prod(sample.shape)
    packed = (folder / SAMPLE).stat().st_size
    if voxels > _MOST_VOXELS or (voxels > _ALWAYS and 4 * voxels * manifest.in_channels > _MOST_PACKED * packed):
        raise IntegrityError(
            f"{source}: its {SAMPLE} announces {_joined(sample.shape)} voxels in {packed} bytes; expected at most "
            f"{_MOST_VOXELS} voxels, and at most {_MOST_PACKED} bytes of them for each of the file."
        )
    _check_grid(manifest.plan, sample, source=source)
    if small := manifest.small:
        _check_grid(replace(manifest.plan, patch=small.patch, overlap=small.overlap), sample, source=source)


def _check_grid(plan: Plan, sample: Geometry, *, source: Path) -> None:
    """Refuse a plan whose grid for the sample is far finer or coarser than the sample, or is cut into endless patches.

    Raises IntegrityError.
    """
    shape, voxels = grid(plan, sample).shape, prod(sample.shape)
    place = next(key for key in ("long_side", "size", "spacing", "patch") if getattr(plan, key) is not None)
    if not voxels / _COARSER <= prod(shape) <= voxels * _FINER:
        raise IntegrityError(
            fault(
                source,
                f"plan.{place}",
                getattr(plan, place),
                f"a grid for the sample's {_joined(sample.shape)} voxels that is at most {_COARSER} times coarser and "
                f"{_FINER} times finer, not {_joined(shape)}",
            )
        )
    sides = zip(shape, plan.patch, strict=True)
    steps = [ceil(max(0, size - width) / tile_step(width, plan.overlap)) + 1 for size, width in sides]
    if prod(steps) > _MOST_PATCHES:
        raise IntegrityError(
            fault(
                source, "plan.patch", plan.patch, f"at most {_MOST_PATCHES} patches for the sample, not {prod(steps)}"
            )
        )


def check_graphs(manifest: Manifest, model: Engine, decoder: Engine | None, *, source: Path) -> None:
    """Refuse graphs whose inputs and outputs are not those that the manifest describes. Raises IntegrityError."""
    patch, classes = manifest.plan.patch, len(manifest.classes)
    image = (None, manifest.in_channels, *patch)
    maps = (None, classes, *patch)
    facts = f"in_channels {manifest.in_channels}, plan.patch {_joined(patch)}"
    if len(model.input_shapes) != 1 or not _fits(model.input_shapes[0], image):
        raise IntegrityError(_unlike(source, facts, manifest.model, "takes", model.input_shapes))
    last, facts = decoder or model, f"{classes} labels, plan.patch {_joined(patch)}"
    if not _fits(last.output_shape, maps):
        name = manifest.model if manifest.prompts is None else manifest.prompts.decoder
        raise IntegrityError(_unlike(source, facts, name, "gives", [last.output_shape]))
    if decoder is not None and manifest.prompts is not None:
        points = manifest.prompts.points
        inputs = (model.output_shape, (None, points, 3), (None, points), (None, 6))
        pairs = list(zip(decoder.input_shapes, inputs, strict=False))
        if len(decoder.input_shapes) != len(inputs) or not all(_fits(*pair) for pair in pairs):
            facts = f"prompts.points {points}"
            raise IntegrityError(_unlike(source, facts, manifest.prompts.decoder, "takes", decoder.input_shapes))


def _fits(shape: Shape, expected: Shape) -> bool:
    """Whether a graph can take or give an array of that shape; None fits every size."""
    sizes = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(None in (one, other) or one == other for one, other in sizes)


def _unlike(source: Path, facts: str, name: str, verb: str, shapes: object) -> str:
    return (
        f"{source}: its manifest does not describe a package: {facts}, but {name} {verb} {shapes}; expected the same."
    )


def _joined(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
