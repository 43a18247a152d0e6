"""Scores of a mask against the truth, on whole volumes: every slice counts, empty ones too."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np
from scipy.ndimage import find_objects

from ..errors import BadInputError
from ..volumes.geometry import Geometry, image_axes
from .records import CaseScores, ClassMean, ClassScore, Scores, ScoreSummary, presence_counts
from .rules import DEFAULT_RULES, METRICS, ScoringRules
from .surface import SurfaceDistances, surface_distances

ABSENT_RULE = DEFAULT_RULES.absent_rule


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: Sequence[float],
    labels: Mapping[int, str],
    tolerance_mm: float | None = None,
    frames: bool = False,
    rules: ScoringRules = DEFAULT_RULES,
) -> tuple[ClassScore, ...]:
    """Scores of one scan's labels [D, H, W], one for each class of `labels` but the background, 0.

    `spacing` is in mm along D, H, W. `frames` says that D counts the frames of a video. Of the scores are

    - `dice` = 2 |P n T| / (|P| + |T|) and `iou` = |P n T| / |P u T|;
    - `hd95_mm` the larger of the two directed 95th percentiles of the distances from each surface voxel of one mask
      to the nearest surface voxel of the other (Maier-Hein et al. 2024, Metrics reloaded; as MONAI computes it), and
      `hd95_voxels` the same with every voxel a cube of side 1, only where the `rules` name it;
    - `asd_mm` the mean of these distances over the surface voxels of both masks (as MONAI's symmetric one);
    - `nsd` the share of both surfaces within a tolerance of the other (Nikolov et al. 2018), in voxels.

    The `rules` say the tolerance of each class (`tolerance_mm` replaces it for all), and may ask for other surfaces and
    percentiles. By default a surface is what one erosion with the six face neighbours takes away; beyond the scan's
    edge is background. An axis of length 1 has no surface: a picture or a single slice is scored in 2-D, with four
    neighbours. No distance leads from one frame of a video to another: every frame is scored in 2-D, and the distances
    of all its frames are put together. In a frame where only one of the masks has the class, each of its surface pixels
    is the frame's diagonal away from the other.

    The scores are None for a class absent from both masks; for one absent from just one of them, dice, iou and nsd are
    0, and the distances are the diagonal of the scan (of a picture or frame): the worst case, yet finite. They are
    never nan.

    Raises BadInputError when the shapes differ or a mask holds a value that `labels` does not declare.
    """
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise BadInputError(f"the predicted mask has the shape {prediction.shape}, the truth {truth.shape}.")
    counts = [
        _voxels_by_class(mask, labels, name=name) for name, mask in (("predicted mask", prediction), ("truth", truth))
    ]
    axes = image_axes(truth.shape, frames=frames)
    image_spacing = tuple(float(spacing[axis]) for axis in axes)
    sides = np.array([truth.shape[axis] for axis in axes])
    with_voxels = "hd95_voxels" in rules.metrics
    worst = {
        "dice": 0.0,
        "iou": 0.0,
        "hd95_mm": float(np.linalg.norm(sides * image_spacing)),
        "hd95_voxels": float(np.linalg.norm(sides)) if with_voxels else None,
        "asd_mm": float(np.linalg.norm(sides * image_spacing)),
        "nsd": 0.0,
    }
    boxes = _class_boxes(prediction, truth)
    rows = []
    for value, name in labels.items():
        if value == 0:
            continue
        predicted_voxels, truth_voxels = (count[value] for count in counts)
        if predicted_voxels == truth_voxels == 0:
            scores: dict[str, float | None] = dict.fromkeys(METRICS)
        elif not (predicted_voxels and truth_voxels):
            scores = dict(worst)
        else:
            box = boxes[value]
            predicted, true = prediction[box] == value, truth[box] == value
            tolerance = tolerance_mm if tolerance_mm is not None else rules.tolerance_of(name)
            distances = _distances(predicted, true, image_spacing, rules, axes=axes, frames=frames, shape=truth.shape)
            scores = {**_overlap(predicted, true), **_surface_scores(distances, tolerance, rules)}
            if with_voxels:
                cubes = (1.0,) * len(axes)
                voxels = _distances(predicted, true, cubes, rules, axes=axes, frames=frames, shape=truth.shape)
                scores["hd95_voxels"] = voxels.percentile(95, pooled=rules.hd95 == "pooled")
        sizes = {"truth_voxels": truth_voxels, "predicted_voxels": predicted_voxels}
        rows.append(ClassScore(number=value, name=name, **scores, **sizes))
    return tuple(rows)


def score_scan(
    name: str,
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    grid: Geometry,
    labels: Mapping[int, str],
    rules: ScoringRules = DEFAULT_RULES,
) -> dict[str, tuple[ClassScore, ...]]:
    """What score_case gives for the labels [D, H, W] of the scan `name`, which lie on `grid`, by that name.

    With the unit "frame" in the `rules` it is given for every frame of a video as a picture, by the names "NAME#0001"
    and so on; a scan that is no video stays one case.
    """
    if rules.unit == "scan" or not grid.frames:
        rows = score_case(prediction, truth, spacing=grid.spacing, labels=labels, frames=grid.frames, rules=rules)
        return {name: rows}
    frames = zip(prediction[:, None], truth[:, None], strict=True)
    return {
        f"{name}#{number:04d}": score_case(one, other, spacing=grid.spacing, labels=labels, rules=rules)
        for number, (one, other) in enumerate(frames, start=1)
    }


def video_of(case: str) -> str:
    """The name of the video of a frame that score_scan named; that of any other case is its own."""
    return case.rpartition("#")[0] or case


def frame_of(case: str) -> int | None:
    """The place, from 0, of a frame that score_scan named in its video; None for any other case."""
    number = case.rpartition("#")
    return int(number[2]) - 1 if number[0] and number[2].isdigit() else None


def case_scores(cases: Mapping[str, Sequence[ClassScore]], *, rules: ScoringRules = DEFAULT_RULES) -> CaseScores:
    """The scores that score_case gave for each case, by case name, with their means."""
    return CaseScores(summarise(cases, rules=rules), {name: tuple(rows) for name, rows in cases.items()}, rules)


def summarise(cases: Mapping[str, Sequence[ClassScore]], *, rules: ScoringRules = DEFAULT_RULES) -> ScoreSummary:
    """Means over cases, of what score_case gave for each, by case name.

    The mean over the classes is that of their means, so that a rare organ counts as much as one that everybody has;
    with `average` "cases" in the `rules` it is the mean over the cases of each case's mean over its classes, and over
    the videos of each video's mean over its frames.
    """
    ruled = {case: [row.under(rules) for row in rows] for case, rows in cases.items()}
    per_class = {}
    for name in dict.fromkeys(row.name for rows in ruled.values() for row in rows):
        rows = [row for rows in ruled.values() for row in rows if row.name == name]
        scored = [row for row in rows if row.dice is not None]
        per_class[name] = ClassMean(
            **_means(scored),
            cases=len(scored),
            **presence_counts(name, ruled),
        )
    if rules.average == "classes":
        return ScoreSummary(per_class, Scores(**_means([row for row in per_class.values() if row.cases])))
    return ScoreSummary(per_class, Scores(**_means(list(unit_means(ruled, rules).values()))))


def unit_means(cases: Mapping[str, Sequence[ClassScore]], rules: ScoringRules) -> dict[str, Scores]:
    """The mean over its classes of every case that has one scored, or of every video over its frames' means."""
    scored = {case: [row for row in rows if row.dice is not None] for case, rows in cases.items()}
    means = {case: Scores(**_means(rows)) for case, rows in scored.items() if rows}
    if rules.unit == "scan":
        return means
    videos = groupby(means, key=video_of)
    return {video: Scores(**_means([means[frame] for frame in frames])) for video, frames in videos}


def case_means(scores: CaseScores) -> dict[str, Scores]:
    """What unit_means gives for finished scores, as their rules count them."""
    ruled = {case: [row.under(scores.rules) for row in rows] for case, rows in scores.cases.items()}
    return unit_means(ruled, scores.rules)


def _means(rows: Sequence[Scores]) -> dict[str, float | None]:
    return {metric: _mean(getattr(row, metric) for row in rows) for metric in METRICS}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _voxels_by_class(mask: np.ndarray, labels: Mapping[int, str], *, name: str) -> dict[int, int]:
    """How many voxels of each class a mask holds. Raises BadInputError for a value that is no class."""
    if mask.dtype == np.uint8:
        counts = dict(enumerate(np.bincount(mask.ravel()).tolist()))
    else:
        counts = dict(zip(*(part.tolist() for part in np.unique(mask, return_counts=True)), strict=True))
    unknown = sorted(value for value, count in counts.items() if count and value not in labels)
    if unknown:
        raise BadInputError(f"the {name} holds the values {unknown}; the declared classes are {sorted(labels)}.")
    return {value: counts.get(value, 0) for value in labels}


def _class_boxes(prediction: np.ndarray, truth: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """The box around the voxels that either mask gives to a class, for every class that both of them hold."""
    boxes = {}
    for value, pair in enumerate(zip(*(find_objects(_whole(mask)) for mask in (prediction, truth)), strict=False), 1):
        if all(pair):
            sides = zip(*pair, strict=True)
            boxes[value] = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in sides)
    return boxes


def _whole(mask: np.ndarray) -> np.ndarray:
    """The mask as integers, which find_objects takes."""
    return mask if np.issubdtype(mask.dtype, np.integer) else mask.astype(np.int32)


def _overlap(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    common = np.count_nonzero(predicted & true)
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return {"dice": float(2 * common / total), "iou": float(common / (total - common))}


def _distances(
    predicted: np.ndarray,
    true: np.ndarray,
    spacing: tuple[float, ...],
    rules: ScoringRules,
    *,
    axes: Sequence[int],
    frames: bool,
    shape: Sequence[int],
) -> SurfaceDistances:
    """The distances between two masks [d, h, w], cut out of a scan of `shape`, of which `axes` belong to one image."""
    worst = float(np.linalg.norm(np.multiply([shape[axis] for axis in axes], spacing)))
    flat = [tuple(mask if frames else mask[None]) for mask in (predicted, true)]
    images = [[_image(part, axes, frames=frames) for part in parts] for parts in flat]
    subvoxel = rules.surface == "subvoxel"
    return SurfaceDistances.together(
        [surface_distances(p, t, spacing, worst=worst, subvoxel=subvoxel) for p, t in zip(*images, strict=True)]
    )


def _image(part: np.ndarray, axes: Sequence[int], *, frames: bool) -> np.ndarray:
    """One image, a frame [h, w] or a scan [d, h, w], without the axes that have no neighbours."""
    kept = [axis - int(frames) for axis in axes]
    return part.squeeze(tuple(axis for axis in range(part.ndim) if axis not in kept))


def _surface_scores(distances: SurfaceDistances, tolerance_mm: float, rules: ScoringRules) -> dict[str, float | None]:
    return {
        "hd95_mm": distances.percentile(95, pooled=rules.hd95 == "pooled"),
        "hd95_voxels": None,
        "asd_mm": distances.mean(),
        "nsd": distances.share_within(tolerance_mm),
    }
