from dataclasses import replace

import numpy as np
import pytest
import torch

from samkd.configs.schema import Augmentation
from samkd.errors import UsageError
from samkd.training.patches import PatchBatches
from samkd.training.prepared import PreparedCase
from samkd.training.trainer import check_patches


def case(shape=(12, 20, 24), teacher=False) -> PreparedCase:
    """Intensity encodes the voxel's position, so that a patch tells where it was cut."""
    position = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    labels = np.zeros(shape, np.uint8)
    labels[8:10, 3:6, 15:18] = 1
    probabilities = None
    if teacher:
        probabilities = np.stack([255 * (labels == 0), 255 * (labels == 1)]).astype(np.uint8)
    class_locations = {1: np.argwhere(labels == 1)}
    return PreparedCase("a", position[None], labels, (1.0, 1.0, 1.0), class_locations, 0.0, probabilities)


def batches(cases, **changes) -> PatchBatches:
    options = {"patch": (4, 8, 8), "batch": 3, "steps": 10, "foreground": 0.5, "seed": 5}
    return PatchBatches(cases, **{"augmentation": Augmentation(), **options, **changes})


def test_a_patch_is_a_true_piece_of_its_case():
    source = case()
    assert source.labels is not None
    batch = batches([source])[0]
    assert batch["image"].shape == (3, 1, 4, 8, 8)
    for image, labels in zip(batch["image"], batch["labels"], strict=True):
        d, h, w = np.unravel_index(int(image[0, 0, 0, 0]), source.labels.shape)
        piece = np.s_[d : d + 4, h : h + 8, w : w + 8]
        np.testing.assert_array_equal(image[0], source.image[0][piece])
        np.testing.assert_array_equal(labels, source.labels[piece])


def test_a_batch_depends_on_seed_step_and_rank_alone():
    settings = Augmentation(rotate_degrees=20, scale=0.2, flip=("w",), noise=0.1)
    one, two = (batches([case(), case()], augmentation=settings) for _ in range(2))
    _ = one[0], one[1]
    assert torch.equal(one[7]["image"], two[7]["image"])
    assert not torch.equal(one[7]["image"], one[8]["image"])
    other_rank = batches([case(), case()], augmentation=settings, rank=1)
    assert not torch.equal(one[7]["image"], other_rank[7]["image"])


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 1.0, 1.0), (0.0, 0.0, 0.6)])
def test_foreground_share_centres_patches_on_labelled_voxels(share, least, most):
    source = batches([case()], foreground=share, batch=1, steps=60, patch=(2, 4, 4))
    hits = np.mean([bool(source[step]["labels"].any()) for step in range(60)])
    assert least <= hits <= most


def test_a_scan_smaller_than_the_patch_is_padded_around_its_centre():
    small = case(shape=(12, 20, 24))
    batch = batches([small], patch=(16, 24, 32), batch=1)[0]
    inside = batch["image"][0, 0, 2:14, 2:22, 4:28]
    np.testing.assert_array_equal(inside, small.image[0])
    assert float(batch["image"].sum()) == float(inside.sum())


def test_teacher_probabilities_follow_the_image_through_the_same_map():
    settings = Augmentation(flip=("d", "h", "w"))
    source = batches([case(teacher=True)], augmentation=settings, steps=20)
    for step in range(20):
        batch = source[step]
        assert torch.equal(batch["soft_targets"].argmax(1), batch["labels"].long())
        torch.testing.assert_close(batch["soft_targets"].sum(1), torch.ones(3, 4, 8, 8))


def test_unlabelled_cases_join_and_leave_the_labelled_patches_as_they_are():
    """The control, without them, sees bit for bit the labelled patches of the distilled student."""
    settings = Augmentation(rotate_degrees=20, scale=0.2, flip=("w",), noise=0.1)
    without = replace(case(shape=(10, 22, 26), teacher=True), labels=None)
    control = batches([case(), case()], augmentation=settings)
    distilled = batches([case(teacher=True), case(teacher=True)], augmentation=settings, unlabelled=[without])
    for step in range(5):
        one, two = control[step], distilled[step]
        assert torch.equal(one["image"], two["image"][:3])
        assert torch.equal(one["labels"], two["labels"])
        assert two["image"].shape == (6, 1, 4, 8, 8) and two["soft_targets"].shape == (6, 2, 4, 8, 8)
        assert "teacher" not in one


def organs(scan: str, count: int) -> list[PreparedCase]:
    """Cases of one scan, the mask of each a cube elsewhere."""
    whole = case(teacher=True)
    cases = []
    for number in range(count):
        labels = np.zeros(whole.shape, np.uint8)
        labels[4:8, 8:12, 4 * number : 4 * number + 4] = 1
        class_locations = {1: np.argwhere(labels)}
        cases.append(replace(whole, name=f"{scan}_{number}", labels=labels, class_locations=class_locations, scan=scan))
    return cases


def test_several_masks_of_a_scan_share_one_patch():
    settings = Augmentation(rotate_degrees=20, flip=("w",), noise=0.1)
    source = batches([*organs("a", 4), *organs("b", 3)], masks=4, batch=1, patch=(12, 20, 24), augmentation=settings)
    sizes = set()
    for step in range(8):
        batch = source[step]
        assert all(torch.equal(image, batch["image"][0]) for image in batch["image"])
        assert len(batch["labels"]) == len(batch["image"]) == len(batch["soft_targets"])
        assert batch["labels"].any(dim=(1, 2, 3)).all()
        assert batch["labels"].sum(0).max() == 1  # each organ once
        sizes.add(len(batch["image"]))
    assert sizes == {3, 4}  # as many as the scan has


def test_masks_of_a_scan_are_drawn_anew_at_every_step():
    source = batches(organs("a", 4), masks=2, batch=1, patch=(12, 20, 24))
    columns = {
        tuple(batch["labels"].any(dim=(1, 2)).int().argmax(1).tolist()) for batch in map(source.__getitem__, range(10))
    }
    assert len(columns) > 4 and all(len(set(pair)) == 2 for pair in columns)


def test_unlabelled_scans_bring_no_further_masks():
    cases = organs("a", 3)
    batch = batches(cases, masks=3, batch=2, unlabelled=[replace(cases[0], labels=None)])[0]
    assert len(batch["labels"]) == 6 and len(batch["image"]) == 8


def test_several_masks_of_scans_that_have_one_are_refused():
    with pytest.raises(UsageError, match=r"training\.masks is 6, but no scan has two masks"):
        batches([case(), *organs("a", 1), *organs("b", 1)], masks=6)


def test_around_the_scan_the_teacher_sees_background():
    small = case(shape=(12, 20, 24), teacher=True)
    teacher = batches([small], patch=(16, 24, 32), batch=1)[0]["soft_targets"][0]
    around = torch.ones(16, 24, 32, dtype=torch.bool)
    around[2:14, 2:22, 4:28] = False
    assert (teacher[0][around] == 1).all() and (teacher[1][around] == 0).all()
    np.testing.assert_allclose(teacher[:, 2:14, 2:22, 4:28], np.asarray(small.soft_targets) / 255)


def test_every_step_takes_one_of_several_patch_sizes_and_the_first_draws_stay():
    sizes = [(4, 8, 8), (8, 8, 16), (6, 12, 8)]
    varied = batches([case()], patches=sizes[1:])
    shapes = [tuple(varied[step]["image"].shape[2:]) for step in range(20)]
    assert set(shapes) == set(sizes)
    assert shapes == [tuple(varied[step]["labels"].shape[1:]) for step in range(20)]
    same = next(step for step, shape in enumerate(shapes) if shape == sizes[0])
    assert torch.equal(varied[same]["image"], batches([case()])[same]["image"])


def test_further_patch_sizes_have_to_fit_the_network():
    network = torch.nn.Conv3d(1, 2, 1)
    check_patches(network, (), name="plain")
    with pytest.raises(UsageError, match="the weights of plain belong to the plan's patch"):
        check_patches(network, ((64, 64, 64),), name="plain")
    setattr(network, "takes_any_patch", True)  # noqa: B010
    check_patches(network, ((64, 96, 32),), name="plain")
    for patch in ((64, 64, 40), (32, 32, 32)):
        with pytest.raises(UsageError, match="multiples of 32, one of them at least 64"):
            check_patches(network, (patch,), name="plain")
