"""Scores of a mask against the truth, on whole volumes: every slice counts, empty ones too."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from ..errors import BadInputError
from ..volumes.geometry import image_axes
from .records import METRICS, CaseScores, ClassMean, ClassScore, Scores, ScoreSummary

ABSENT_RULE = (
    "A class that is absent from both truth and prediction is not scored in that case and left out of the means. One "
    "that is present in only one of them scores Dice, IoU and NSD 0, and as its HD95 the diagonal of the scan."
)


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: Sequence[float],
    labels: Mapping[int, str],
    tolerance_mm: float = 1.0,
    frames: bool = False,
) -> tuple[ClassScore, ...]:
    """Scores of one scan's labels [D, H, W], one for each class of `labels` but the background, 0.

    `spacing` is in mm along D, H, W. `frames` says that D counts the frames of a video. Of the scores are

    - `dice` = 2 |P n T| / (|P| + |T|) and `iou` = |P n T| / |P u T|;
    - `hd95_mm` the larger of the two directed 95th percentiles of the distances from each surface voxel of one mask
      to the nearest surface voxel of the other (Maier-Hein et al. 2024, Metrics reloaded; as MONAI computes it);
    - `nsd` the share of both surfaces within `tolerance_mm` of the other (Nikolov et al. 2018), in voxels.

    A surface is what one erosion with the six face neighbours takes away; beyond the scan's edge is background. An axis
    of length 1 has no surface: a picture or a single slice is scored in 2-D, with four neighbours. No distance leads
    from one frame of a video to another: every frame is scored in 2-D, and the distances of all its frames are put
    together. In a frame where only one of the masks has the class, each of its surface pixels is the frame's diagonal
    away from the other.

    The four scores are None for a class absent from both masks; for one absent from just one of them, dice, iou and nsd
    are 0 and hd95_mm is the diagonal of the scan (of a picture or frame) in mm: the worst case, yet finite. They are
    never nan.

    Raises BadInputError when the shapes differ or a mask holds a value that `labels` does not declare.
    """
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise BadInputError(f"the predicted mask has the shape {prediction.shape}, the truth {truth.shape}.")
    for name, mask in (("predicted mask", prediction), ("truth", truth)):
        unknown = sorted(set(np.unique(mask).tolist()) - set(labels))
        if unknown:
            raise BadInputError(f"the {name} holds the values {unknown}; the declared classes are {sorted(labels)}.")
    predicted_images, true_images = _images(prediction, frames=frames), _images(truth, frames=frames)
    image_spacing = _image_spacing(truth.shape, spacing, frames=frames)
    worst = float(np.linalg.norm(np.multiply(true_images[0].shape, image_spacing)))
    rows = []
    for value, name in labels.items():
        if value == 0:
            continue
        predicted, true = prediction == value, truth == value
        sizes = {"truth_voxels": int(np.count_nonzero(true)), "predicted_voxels": int(np.count_nonzero(predicted))}
        if not any(sizes.values()):
            scores: dict[str, float | None] = dict.fromkeys(METRICS)
        elif not all(sizes.values()):
            scores = {"dice": 0.0, "iou": 0.0, "hd95_mm": worst, "nsd": 0.0}
        else:
            pairs = zip(predicted_images, true_images, strict=True)
            distances = [_surface_distances(p == value, t == value, image_spacing, worst) for p, t in pairs]
            to_true, to_predicted = (np.concatenate(parts) for parts in zip(*distances, strict=True))
            scores = {**_overlap(predicted, true), **_surface(to_true, to_predicted, tolerance_mm)}
        rows.append(ClassScore(number=value, name=name, **scores, **sizes))
    return tuple(rows)


def case_scores(cases: Mapping[str, Sequence[ClassScore]]) -> CaseScores:
    """The scores that score_case gave for each case, by case name, with their means."""
    return CaseScores(summarise(cases), {name: tuple(rows) for name, rows in cases.items()})


def summarise(cases: Mapping[str, Sequence[ClassScore]]) -> ScoreSummary:
    """Means over cases, of what score_case gave for each, by case name.

    The mean over the classes is that of their means, so that a rare organ counts as much as one that everybody has.
    """
    per_class = {}
    for name in dict.fromkeys(row.name for rows in cases.values() for row in rows):
        scored = [row for rows in cases.values() for row in rows if row.name == name and row.dice is not None]
        per_class[name] = ClassMean(**_means(scored), cases=len(scored))
    return ScoreSummary(per_class, Scores(**_means([row for row in per_class.values() if row.cases])))


def _means(rows: Sequence[Scores]) -> dict[str, float | None]:
    return {metric: _mean(getattr(row, metric) for row in rows) for metric in METRICS}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _images(mask: np.ndarray, *, frames: bool) -> list[np.ndarray]:
    """What is scored as one image: the mask [D, H, W], or each of its frames, without axes of length 1."""
    return [np.atleast_1d(image.squeeze()) for image in (mask if frames else [mask])]


def _image_spacing(shape: Sequence[int], spacing: Sequence[float], *, frames: bool) -> tuple[float, ...]:
    """The spacing in mm along the axes that _images leaves."""
    return tuple(float(spacing[axis]) for axis in image_axes(shape, frames=frames))


def _cropped(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks, cut to their common bounding box with a margin of one empty voxel."""
    boxes = find_objects((one | other).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 0),) * one.ndim
    return np.pad(one[box], 1), np.pad(other[box], 1)


def _overlap(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    common = np.count_nonzero(predicted & true)
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return {"dice": 2 * common / total, "iou": common / (total - common)}


def _surface_distances(
    predicted: np.ndarray, true: np.ndarray, spacing: Sequence[float], worst: float
) -> tuple[np.ndarray, np.ndarray]:
    """From each surface voxel of the prediction to the truth's surface in mm, and from the truth's to the prediction's.

    They are `worst` where the other mask of this image is empty.
    """
    ours, theirs = (mask & np.logical_not(binary_erosion(mask)) for mask in _cropped(predicted, true))
    if not (ours.any() and theirs.any()):
        return np.full(np.count_nonzero(ours), worst), np.full(np.count_nonzero(theirs), worst)
    there = np.asarray(distance_transform_edt(~theirs, sampling=spacing))[ours]
    back = np.asarray(distance_transform_edt(~ours, sampling=spacing))[theirs]
    return there, back


def _surface(to_true: np.ndarray, to_predicted: np.ndarray, tolerance_mm: float) -> dict[str, float]:
    near = np.count_nonzero(to_true <= tolerance_mm) + np.count_nonzero(to_predicted <= tolerance_mm)
    return {
        "hd95_mm": float(max(np.percentile(to_true, 95), np.percentile(to_predicted, 95))),
        "nsd": near / (to_true.size + to_predicted.size),
    }
