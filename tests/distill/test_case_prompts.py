"""Prompts in place of a mask: shown to the teachers that take them, cached by what they say, and checked first."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.base_models import published_sam
from helpers.command_line import run_cli

from samkd.distill.case_prompts import check_prompts, prompted_probabilities
from samkd.distill.ensemble import Ensemble, EnsembleMember
from samkd.distill.soft_targets import cached_targets
from samkd.errors import BadInputError, UsageError
from samkd.training.prepared import fingerprint, prepare_cases
from samkd.training.run import Run
from samkd.volumes.datasets.cases import Case, Dataset
from samkd.volumes.datasets.registry import read_case, read_dataset
from samkd.volumes.datasets.splits import assign, divide
from samkd.volumes.geometry import Geometry, Volume
from samkd.volumes.io.nifti import write_labels, write_scan
from samkd.volumes.plan import Plan, grid
from samkd.volumes.prompts import ClassPrompts, ScanPrompts
from samkd.workflows.data import with_prompts

UNIT = ({"rule": "window", "low": 0, "high": 2},)
TEACHER = Plan(orientation="SPL", size=(None, 32, 32), intensity=UNIT, patch=(1, 32, 32), overlap=0)
STUDENT = Plan(orientation="LAI", spacing=(2.0, 2.0, 2.0), intensity=UNIT, patch=(16, 16, 16))
SHAPE = (8, 32, 32)


class Guesser(torch.nn.Module):
    """Says class 1 at 0.6 and class 2 at 0.3 on every slice where a prompt is, the background elsewhere."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.slices: list[bool] = []  # whether each had a prompt

    def forward(self, image, prompts=None):
        said = torch.full((len(image), 3, *image.shape[2:]), -30.0)
        said[:, 0] = 0
        shown = prompts is not None and bool((prompts.labels >= 0).any() or (~prompts.boxes.isnan()).any())
        self.slices.append(shown)
        if shown:
            said[:, :] = torch.tensor([0.1, 0.6, 0.3]).log().view(1, 3, 1, 1, 1)
        return said


def member(network: torch.nn.Module | None = None, **changes) -> EnsembleMember:
    built = network or Guesser()
    made = EnsembleMember(
        "guesser", TEACHER, "one", lambda: built, prompts_required=True, prompt_kinds=frozenset({"box", "point"})
    )
    return replace(made, **changes)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Cases a and b with masks, c and d without, all with a spacing of 3 x 1 x 1 mm."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 4:16, 4:16], labels[3:7, 18:28, 10:24] = 1, 2
    geometry = Geometry(np.array([[0, 0, 1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]]), SHAPE)
    for folder in ("imagesTr", "labelsTr", "promptsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number, name in enumerate("abcd", start=1):
        scan = Volume(labels[None].astype(np.float32) / number, geometry)
        write_scan(tmp_path / "data" / "imagesTr" / f"{name}_0000.nii.gz", scan)
        if name in "ab":
            write_labels(tmp_path / "data" / "labelsTr" / f"{name}.nii.gz", labels, geometry, like=None)
        else:
            write(tmp_path / "data" / "promptsTr" / f"{name}.json", {"one": {"boxes": [[4, 4, 2, 15, 15, 5]]}})
    content = {"labels": {"background": 0, "one": 1, "two": 2}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    return read_dataset(tmp_path / "data")


def write(path: Path, classes: dict, **more) -> Path:
    path.write_text(json.dumps({"space": "voxel", "classes": classes, **more}))
    return path


def fill(ensemble: Ensemble, cases: list[Case], dataset: Dataset, cache: Path):
    prepared = prepare_cases(cases, dataset, STUDENT, cache, on_case=lambda name: None)
    return cached_targets(ensemble, cases, prepared, dataset, plan=STUDENT, cache=cache, limit=1e9)


def on_own_grid(dataset: Dataset, prompts: ScanPrompts) -> np.ndarray:
    volume, _ = read_case(dataset.training[2], dataset)
    return prompted_probabilities(Ensemble([member()]), volume, grid(TEACHER, volume.geometry), prompts, case="")


def test_a_class_is_nowhere_outside_its_boxes(dataset):
    shown = {1: ClassPrompts(boxes=((4, 4, 2, 15, 15, 5),)), 2: ClassPrompts(boxes=((10, 12, 4, 23, 27, 6),))}
    result = on_own_grid(dataset, ScanPrompts(shown, "voxel"))
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)
    upright = result[:, :, ::-1, ::-1]  # the teacher's rows and columns run the other way: SPL against SAR
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[2:6, 4:16, 4:16], two[4:7, 12:28, 10:24] = True, True
    np.testing.assert_allclose(upright[1], np.where(one, 0.6, 0), atol=1e-5)
    np.testing.assert_allclose(upright[2], np.where(two, 0.3, 0), atol=1e-5)
    assert (upright.argmax(0)[one & two] == 1).all() and (one & two).any()  # settled by probability
    assert (upright[0][~one & ~two] > 1 - 1e-5).all()


def test_a_class_with_a_point_may_be_anywhere_and_one_without_a_prompt_is_nowhere(dataset):
    result = on_own_grid(dataset, ScanPrompts({1: ClassPrompts(points=((8, 8, 3, 1),))}, "voxel"))
    assert set(np.flatnonzero((result[1] > 0.5).any(axis=(1, 2)))) == {3}
    np.testing.assert_allclose(result[1, 3], 0.6, atol=1e-5)
    assert not result[2].any()
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


def test_on_another_grid_the_edge_of_a_box_is_shared_out(dataset):
    """A box of 12 x 12 mm and 12 mm keeps its volume on voxels of 2 mm."""
    volume, _ = read_case(dataset.training[2], dataset)
    shown = ScanPrompts({1: ClassPrompts(boxes=((4, 4, 2, 15, 15, 5),))}, "voxel")
    result = prompted_probabilities(Ensemble([member()]), volume, grid(STUDENT, volume.geometry), shown, case="")
    assert result[1].sum() * 8 == pytest.approx(0.6 * 12 * 12 * 12, rel=0.05)


def test_targets_are_keyed_by_what_the_prompts_say(dataset, tmp_path):
    case, cache = dataset.training[2], tmp_path / "cache"

    def computed(path: Path | None) -> int:
        network = Guesser()
        fill(Ensemble([member(network)]), [replace(case, prompts=path)], dataset, cache)
        return len(network.slices)

    assert computed(case.prompts) == 8 and computed(case.prompts) == 0
    spelled = {"one": {"boxes": [[4.0, 4, 2, 15, 15, 5]]}}
    assert computed(write(tmp_path / "same.json", spelled, origin="by hand")) == 0
    assert computed(write(tmp_path / "moved.json", {"one": {"boxes": [[5, 4, 2, 15, 15, 5]]}})) == 8
    assert computed(write(tmp_path / "other.json", {"two": {"boxes": [[4, 4, 2, 15, 15, 5]]}})) == 8
    assert len(list((cache / "prepared").rglob("*image*"))) == 1  # the scan is prepared once


def test_a_mask_counts_more_than_prompts(dataset, tmp_path):
    case = dataset.training[0]
    both = replace(case, prompts=dataset.training[2].prompts)
    assert fingerprint(both) == fingerprint(case)
    (alone,) = fill(Ensemble([member()]), [case], dataset, tmp_path / "cache")
    (beside,) = fill(Ensemble([member()]), [both], dataset, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.targets"))) == 1
    np.testing.assert_array_equal(np.asarray(alone.soft_targets), np.asarray(beside.soft_targets))


def test_a_teacher_that_can_do_without_is_shown_prompts_in_place_of_masks_alone(dataset, tmp_path):
    network = Guesser()
    fill(Ensemble([member(network, prompts_required=False)]), list(dataset.training[1:3]), dataset, tmp_path / "cache")
    assert network.slices == [False] * 8 + [2 <= d <= 5 for d in range(8)]


def test_prompts_of_a_folder_join_by_name(dataset, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    path = write(folder / "c.json", {"two": {"points": [[8, 8, 3]]}})
    joined = with_prompts(dataset, folder)
    assert [case.prompts for case in joined.training] == [None, None, path, dataset.training[3].prompts]
    write(folder / "e.json", {"two": {"points": [[8, 8, 3]]}})
    with pytest.raises(BadInputError, match=r"prompts/e\.json has no scan of its name"):
        with_prompts(dataset, folder)
    with pytest.raises(BadInputError, match="holds no prompts"):
        with_prompts(dataset, tmp_path / "data" / "imagesTr")


def test_a_split_by_name_keeps_the_cases_with_prompts(dataset):
    """A run's splits.json names the cases with masks only."""
    cut = assign(dataset, {"train": ["a"], "validation": ["b"], "test": []})
    assert [case.name for case in cut.training] == ["a", "c", "d"]
    halves = divide(dataset, validation=0.5, seed=0)
    assert [case.name for case in halves.training if case.prompts] == ["c", "d"]


def test_soft_targets_are_never_made_of_prompts_that_nobody_looks_at(dataset, tmp_path):
    blind = member(prompts_required=False, prompt_kinds=frozenset())
    with pytest.raises(UsageError, match=r"2 case\(s\) have prompts in place of a mask, and no teacher takes"):
        fill(Ensemble([blind]), list(dataset.training), dataset, tmp_path / "cache")


BOX = {"one": {"boxes": [[4, 4, 2, 15, 15, 5]]}}


@pytest.mark.parametrize(
    ("content", "changes", "error", "message"),
    [
        ('{"classes": {"one": {"boxes": [[', {}, BadInputError, r"c\.json: is not valid JSON"),
        ({"three": BOX["one"]}, {}, BadInputError, r"c\.json: class 'three' is unknown .*one, two"),
        ({"one": {"boxes": [[40, 4, 2, 45, 15, 5]]}}, {}, BadInputError, r"c\.json: box .* lies outside the scan"),
        (
            {"one": {"points": [[8, 8, 3, 0]]}},
            {},
            BadInputError,
            r"c\.json: .*outside point; the teacher guesser takes",
        ),
        ({"one": {"points": [[8, 8, 3], [9, 9, 3]]}}, {}, BadInputError, r"c\.json: class 'one' has several prompts"),
        ({"one": {"points": [[8, 8, 3]], **BOX["one"]}}, {}, BadInputError, r"c\.json: class 'one' has several"),
        (BOX, {"prompts_required": False, "prompt_kinds": frozenset()}, UsageError, "no teacher takes prompts"),
        (BOX, {"prompt_kinds": frozenset({"point"})}, BadInputError, "holds a prompt of the kind box"),
        (None, {}, BadInputError, "c: no mask to draw boxes from and no prompts"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_trained(dataset, content, changes, error, message):
    network, case = Guesser(), dataset.training[2]
    if isinstance(content, str):
        case.prompts.write_text(content)
    elif content:
        write(case.prompts, content)
    cases = [replace(case, prompts=None) if content is None else case]
    with pytest.raises(error, match=message):
        check_prompts(Ensemble([member(network, **changes)]), cases, dataset, online=False)
    assert not network.slices


def test_prompts_and_online_do_not_go_together(dataset):
    with pytest.raises(UsageError, match="--online: 2 case"):
        check_prompts(Ensemble([member()]), dataset.training, dataset, online=True)


def test_cases_with_masks_need_no_check(dataset):
    check_prompts(Ensemble([member(prompt_kinds=frozenset())]), dataset.training[:2], dataset, online=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a published model, runs/sam, on a phantom."""
    place = tmp_path_factory.mktemp("published")
    published_sam(place / "sam.pth", backbone="vit_tiny")
    words = ["--teacher", "published", "--weights", place / "sam.pth", "--run", place / "runs" / "sam"]
    assert verb("teach", *words, "--runs", place / "runs").exit_code == 0
    return place


def verb(*words: object):
    settings = [
        *("teacher.backbone=vit_tiny", "teacher.plan.long_side=64", "teacher.plan.patch=[1,64,64]"),
        *("phantom={training: 4, test: 1}", "classes=null", "split=null", "validation=0.3"),
        *("student.plan.spacing=[16,16,16]", "student.plan.patch=[32,32,64]", "student.training.steps=1"),
    ]
    return run_cli(*words, *(part for each in settings for part in ("--set", each)), in_process=True)


@pytest.mark.slow
def test_a_student_learns_from_masks_and_prompts(place: Path, tmp_path: Path):
    data, runs = Path(str(Run.read(place / "runs" / "sam").config.data)), tmp_path / "runs"
    drawn = run_cli("prompts", data, "--kind", "boxes", "--jitter", 1, "-o", tmp_path / "prompts", in_process=True)
    assert drawn.exit_code == 0 and "4 files of prompts" in drawn.text
    words = ["distill", "--teacher", place / "runs" / "sam", "--labelled", 2, "--lambda", "0.5", "--no-control",
             "--data", data, "--runs", runs]  # fmt: skip
    refused = verb(*words)
    assert refused.exit_code == 3 and "--prompts FOLDER with CASE.json" in refused.text
    assert not list(runs.glob("distill-*"))
    taught = verb(*words, "--prompts", tmp_path / "prompts", "--run", runs / "one")
    assert taught.exit_code == 0, taught.output
    teaching = Run.read(runs / "one").config.objective.teaching
    assert teaching is not None and teaching.unlabelled["cases"] == 2
    targets = [path.stem for path in (runs / "cache" / "targets").rglob("*.targets")]
    assert len(targets) == 3 and sum(bool(re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{16}", name)) for name in targets) == 2
    alone = verb(*words, "--lambda", 1, "--prompts", tmp_path / "prompts")
    assert alone.exit_code == 2 and "prompts teach nothing" in alone.text
