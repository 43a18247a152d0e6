"""Scores of two masks by other people's libraries, and pairs of masks to compare them on.

MONAI and scipy are samkd's own dependencies; SimpleITK is in samkd[dev]; MedPy and surface-distance are used where they
are installed (`pip install --no-deps medpy surface-distance`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial import KDTree

Values = dict[str, float]  # by metric; "hd95 pooled" and "subvoxel ..." are those of other rules


@dataclass(frozen=True)
class Pair:
    """Two masks that are not empty, of 2 or 3 axes longer than 1, and the spacing in mm along these."""

    name: str
    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]


def random_pairs(count: int, *, seed: int = 0) -> Iterator[Pair]:
    """Blobs that reach the image's edges, every second in 3-D, with spacings of 0.4 to 6 mm along each axis."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        axes = 2 + number % 2
        shape = tuple(rng.integers(12, 80 if axes == 2 else 40, axes).tolist())
        spacing = tuple(np.round(rng.uniform(0.4, 6, axes), 2).tolist())
        smooth = rng.uniform(1, 4)
        field = gaussian_filter(rng.normal(size=shape), smooth)
        other = field + rng.uniform(0.1, 1.5) * gaussian_filter(rng.normal(size=shape), smooth)
        masks = [values > np.quantile(values, rng.uniform(0.4, 0.95)) for values in (field, other)]
        yield Pair(f"random {number}", masks[0], masks[1], spacing)


def pathological_pairs() -> list[Pair]:
    """Twenty pairs that break careless code: single voxels, lines, planes, full images, holes, chessboards."""
    pairs = []

    def add(name: str, prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> None:
        pairs.append(Pair(name, prediction.astype(bool), truth.astype(bool), tuple(map(float, spacing))))

    def empty(*shape: int) -> np.ndarray:
        return np.zeros(shape, bool)

    def box(shape: tuple[int, ...], *spans: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(shape, bool)
        mask[tuple(slice(*span) for span in spans)] = True
        return mask

    one, other = empty(12, 20, 16), empty(12, 20, 16)
    one[0, 0, 0] = other[-1, -1, -1] = True
    full, cube = np.ones((12, 20, 16), bool), box((12, 20, 16), (3, 9), (4, 12), (5, 11))
    shell = cube & np.logical_not(binary_erosion(cube))
    z, y, x = np.indices(full.shape)
    disc = np.hypot(*(np.indices((40, 40)) - 20)) < 12
    ring = disc & (np.hypot(*(np.indices((40, 40)) - 20)) > 8)
    chess = (y + x + z) % 2 == 0
    add("opposite corners", one, other, (5, 0.5, 1))
    add("one voxel, itself", one, one, (1, 1, 1))
    add("one voxel in a full image", one, full, (1, 2, 3))
    add("full images", full, full, (3, 1, 1))
    add("a cube and its shell", cube, shell, (2, 1, 1))
    add("a shell and its hollow", shell, np.asarray(binary_erosion(cube)), (2, 1, 1))
    add("one slice further", np.roll(cube, 1, 0), cube, (10, 0.3, 0.3))
    add("ten slices thick", cube, cube | np.roll(cube, 2, 2), (0.3, 10, 10))
    add("a line", box(full.shape, (5, 6), (2, 18), (7, 8)), cube, (1, 1, 4))
    add("a plane", box(full.shape, (0, 12), (9, 10), (0, 16)), cube, (1, 1, 4))
    add("two planes", box(full.shape, (0, 1), (0, 20), (0, 16)), box(full.shape, (11, 12), (0, 20), (0, 16)), (4, 1, 1))
    add("a chessboard and a cube", chess, cube, (1, 1, 1))
    add("a chessboard and its other half", chess, ~chess, (2, 1, 0.5))
    add("one of two parts", cube, cube | one | other, (1, 2, 1))
    add("a diagonal", (z == y) & (y == x), (z == y) & (y == x + 1), (3, 1, 1))
    add("a disc and a ring", disc, ring, (1, 1))
    add("nested discs", np.hypot(*(np.indices((40, 40)) - 20)) < 18, disc, (0.7, 2.3))
    add("one pixel and a disc", box((40, 40), (0, 1), (39, 40)), disc, (1, 5))
    add("two lines", box((40, 40), (3, 4), (0, 40)), box((40, 40), (0, 40), (3, 4)), (1, 1.5))
    whole = np.ones((40, 40), bool)
    add("a frame of one pixel", np.logical_not(binary_erosion(whole)), whole, (1, 2))
    return pairs


def by_monai(pair: Pair, tolerance: float) -> Values:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    def one_hot(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([~mask, mask])[None]).float()

    masks = one_hot(pair.prediction), one_hot(pair.truth)
    mm, voxels = list(pair.spacing), [1.0] * len(pair.spacing)

    def nsd(subvoxel: bool) -> float:
        surface = compute_surface_dice(*masks, class_thresholds=[tolerance], spacing=mm, use_subvoxels=subvoxel)
        return float(surface)

    return {
        "dice": float(compute_dice(*masks, include_background=False)),
        "iou": float(compute_iou(*masks, include_background=False)),
        "hd95_mm": float(compute_hausdorff_distance(*masks, percentile=95, spacing=mm)),
        "hd95_voxels": float(compute_hausdorff_distance(*masks, percentile=95, spacing=voxels)),
        "asd_mm": float(compute_average_surface_distance(*masks, symmetric=True, spacing=mm)),
        "nsd": nsd(False),
        "subvoxel nsd": nsd(True),
    }


def by_scipy(pair: Pair, tolerance: float) -> Values:
    """Nearest neighbours in a k-d tree of surface voxels, instead of a distance transform."""
    voxels = [np.argwhere(mask & np.logical_not(binary_erosion(mask))) for mask in (pair.prediction, pair.truth)]

    def both(spacing: Sequence[float]) -> list[np.ndarray]:
        places = [points * np.array(spacing) for points in voxels]
        return [np.asarray(KDTree(places[1 - side]).query(places[side])[0]) for side in (0, 1)]

    mm, units = both(pair.spacing), both((1.0,) * len(pair.spacing))
    together = np.concatenate(mm)
    return {
        "hd95_mm": max(float(np.percentile(distances, 95)) for distances in mm),
        "hd95_voxels": max(float(np.percentile(distances, 95)) for distances in units),
        "hd95 pooled": float(np.percentile(together, 95)),
        "asd_mm": float(together.mean()),
        "nsd": float((together <= tolerance + 1e-9).mean()),
    }


def by_simpleitk(pair: Pair, tolerance: float) -> Values:
    import SimpleITK as sitk

    def image(mask: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        made.SetSpacing(pair.spacing[::-1])
        return made

    prediction, truth = image(pair.prediction), image(pair.truth)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(truth, prediction)
    edges = [sitk.BinaryContour(each, fullyConnected=False) for each in (prediction, truth)]
    maps = [sitk.Abs(sitk.SignedMaurerDistanceMap(each, squaredDistance=False, useImageSpacing=True)) for each in edges]
    on = [sitk.GetArrayFromImage(each) > 0 for each in edges]
    distances = [sitk.GetArrayFromImage(maps[1 - side])[on[side]] for side in (0, 1)]
    together = np.concatenate(distances)
    return {
        "dice": overlap.GetDiceCoefficient(),
        "iou": overlap.GetJaccardCoefficient(),
        "hd95_mm": max(float(np.percentile(each, 95)) for each in distances),
        "hd95 pooled": float(np.percentile(together, 95)),
        "asd_mm": float(together.mean()),
        "nsd": float((together <= tolerance + 1e-5).mean()),
    }


def by_medpy(pair: Pair, tolerance: float) -> Values:
    from medpy.metric.binary import dc, hd95, jc  # type: ignore[import-not-found]

    masks = pair.prediction, pair.truth
    return {
        "dice": float(dc(*masks)),
        "iou": float(jc(*masks)),
        "hd95 pooled": float(hd95(*masks, voxelspacing=pair.spacing)),
    }


def by_surface_distance(pair: Pair, tolerance: float) -> Values:
    import surface_distance as library  # type: ignore[import-not-found]

    result = library.compute_surface_distances(pair.truth, pair.prediction, pair.spacing)
    areas = [result[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
    means = library.compute_average_surface_distance(result)
    return {
        "dice": float(library.compute_dice_coefficient(pair.truth, pair.prediction)),
        "subvoxel hd95": float(library.compute_robust_hausdorff(result, 95)),
        "subvoxel asd": float(np.average(means, weights=areas)),
        "subvoxel nsd": float(library.compute_surface_dice_at_tolerance(result, tolerance)),
    }


REFERENCES: dict[str, Callable[[Pair, float], Values]] = {
    "MONAI": by_monai,
    "scipy": by_scipy,
    "SimpleITK": by_simpleitk,
    "MedPy": by_medpy,
    "surface-distance": by_surface_distance,
}


def by_samkd(pair: Pair, tolerance: float) -> Values:
    """The same of samkd's own scores, by every rule."""
    from samkd.evaluation.rules import ScoringRules
    from samkd.evaluation.scores import score_case

    def score(**rules: str):
        masks = [mask.reshape((1,) * (3 - mask.ndim) + mask.shape) for mask in (pair.prediction, pair.truth)]
        spacing = (1.0,) * (3 - len(pair.spacing)) + pair.spacing
        chosen = ScoringRules(tolerance_mm=tolerance, metrics=("hd95_voxels",), **rules)  # type: ignore[arg-type]
        return score_case(*masks, spacing=spacing, labels={0: "background", 1: "organ"}, rules=chosen)[0]

    voxels, pooled, subvoxel = score(), score(hd95="pooled"), score(surface="subvoxel")
    values = {
        **{name: getattr(voxels, name) for name in ("dice", "iou", "hd95_mm", "hd95_voxels", "asd_mm", "nsd")},
        "hd95 pooled": pooled.hd95_mm,
        "subvoxel hd95": subvoxel.hd95_mm,
        "subvoxel asd": subvoxel.asd_mm,
        "subvoxel nsd": subvoxel.nsd,
    }
    assert all(value is not None for value in values.values())
    return values  # type: ignore[return-value]
