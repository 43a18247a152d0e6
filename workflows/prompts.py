"""samkd prompts: files of prompts drawn from masks, for experiments with prompts in place of masks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..configs.load import load_config
from ..errors import BadInputError, UsageError
from ..training.progress import Bar
from ..training.prompt_sampling import jittered_boxes, prompts_from_truth
from ..volumes.datasets.registry import Case, Dataset, read_dataset, read_labelled_case
from ..volumes.files import make_folder, write_json
from ..volumes.plan import Plan, slice_axis
from ..volumes.prompts import ScanPrompts
from .data import with_config_classes

KINDS = ("box", "boxes", "point")
AXIAL = Plan(intensity=(), patch=(1, 1, 1))  # slices as a published model sees them by default


def write_prompts(
    data: Path,
    out: Path,
    *,
    kind: str,
    jitter: int = 0,
    margin: int = 0,
    seed: int = 0,
    cases: Sequence[str] = (),
    modality: str | None = None,
    config_name: str | None = None,
) -> list[Path]:
    """Write CASE.json into the folder `out` for the named training cases that have a mask (default: for all of them).

    `kind` is "box" (one around each class), "boxes" (one on every axial slice that holds it) or "point" (its deepest
    voxel). Every edge of a box in its slice is moved by up to `jitter` pixels in either direction, then by `margin`
    pixels outwards, and cut at the scan; what is drawn depends on `seed` and the case's name alone. The file says that
    it was drawn from a mask ("origin"). The config of that name says which classes are drawn.

    Raises UsageError for options that do not go together, BadInputError for a case that is not there or has no mask,
    and for a file in `out` that was not drawn by this verb.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "point" and (jitter or margin):
        raise UsageError("--kind point: --jitter and --margin move the edges of boxes; leave them out")
    dataset = read_dataset(data, modality=modality)
    if config_name is not None:
        dataset = with_config_classes(dataset, load_config(config_name))
    chosen = _chosen(dataset, cases)
    paths = [make_folder(out) / f"{case.name}.json" for case in chosen]
    for path in paths:
        _require_drawn(path)
    moves = f", every edge off by up to {jitter} pixels, then {margin} wider, seed {seed}" if jitter or margin else ""
    with Bar("prompts", len(chosen)) as bar:
        for case, path in zip(chosen, paths, strict=True):
            prompts = _drawn(case, dataset, kind, jitter=jitter, margin=margin, seed=seed)
            origin = f"samkd prompts: {kind} from the mask of {case.name}{moves}"
            write_json(path, {"origin": origin, **_content(prompts, dataset.labels)})
            bar.advance(case.name)
    return paths


def _chosen(dataset: Dataset, names: Sequence[str]) -> list[Case]:
    """The training cases of these names, or all that have a mask. Raises BadInputError."""
    cases = {case.name: case for case in dataset.training if case.label is not None}
    if unknown := [name for name in names if name not in cases]:
        raise BadInputError(
            f"{dataset.root}: has no training case with a mask that is called {', '.join(unknown)}; it has "
            f"{', '.join(cases)}"
        )
    if not cases:
        raise BadInputError(f"{dataset.root}: no training case has a mask to draw prompts from")
    return [cases[name] for name in names] if names else list(cases.values())


def _require_drawn(path: Path) -> None:
    """Raises BadInputError for a file that this verb did not write: somebody may have drawn it by hand."""
    if not path.exists():
        return
    try:
        drawn = json.loads(path.read_bytes())["origin"].startswith("samkd prompts: ")
    except (ValueError, KeyError, TypeError, AttributeError):
        drawn = False
    if not drawn:
        raise BadInputError(f"{path}: is there already and was not drawn by `samkd prompts`; name another folder (-o)")


def _drawn(case: Case, dataset: Dataset, kind: str, *, jitter: int, margin: int, seed: int) -> ScanPrompts:
    """A case's prompts, in voxels of its file. Raises BadInputError for a mask that holds no class."""
    volume, mask = read_labelled_case(case, dataset)
    grid = volume.geometry
    axis = slice_axis(AXIAL, grid)
    prompts = prompts_from_truth(kind, mask, labels=dataset.labels, spacing=grid.spacing, axis=axis, frames=grid.frames)
    if not prompts.classes:
        raise BadInputError(f"{case.image.place}: its mask holds no class to draw a prompt of; leave this case out")
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:4], "big")])
    last = np.tile(np.array(grid.shape[::-1]) - 1, 2)
    outwards = margin * np.array([-1, -1, -1, 1, 1, 1])
    outwards[[2 - axis, 5 - axis]] = 0
    classes = {}
    for value, shown in prompts.classes.items():
        boxes = np.array(shown.boxes, np.float64).reshape(-1, 6)
        boxes = np.clip(jittered_boxes(rng, boxes, jitter, axis=axis) + outwards, 0, last)
        classes[value] = replace(shown, boxes=tuple(map(tuple, boxes.tolist())))
    return ScanPrompts(classes, "voxel")


def _content(prompts: ScanPrompts, class_names: dict[int, str]) -> dict[str, Any]:
    """Prompts as volumes.prompt_parsing reads them."""
    classes = {
        class_names[value]: {key: getattr(shown, key) for key in ("points", "boxes") if getattr(shown, key)}
        for value, shown in prompts.classes.items()
    }
    return {"space": prompts.space, "classes": classes}
