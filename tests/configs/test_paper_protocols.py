"""What the configs say of the papers' protocols: which cases are trained on, and what line for line is the paper's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.dataset_layouts import btcv, decathlon, folders
from nibabel import nifti1

from samkd.configs.load import load_config
from samkd.errors import BadInputError, UsageError
from samkd.teachers import build_teacher
from samkd.training.schedule import with_steps
from samkd.training.split import DataSplit
from samkd.volumes.datasets.registry import read_dataset
from samkd.workflows.data import apply_split, open_dataset


@pytest.mark.parametrize("name", ["btcv-masam", "btcv-masam-code", "btcv-shared", "btcv-autosam", "btcv-medsa"])
def test_btcv_is_cut_as_tang_et_al_cut_it(name: str):
    config = load_config(name)
    assert config.split is not None and config.split.cases is not None and config.validation == 0
    train, test = config.split.cases.train, config.split.cases.test
    assert train == tuple(f"img{number:04d}" for number in (*range(1, 11), *range(21, 35)))
    assert test == tuple(f"img{number:04d}" for number in range(35, 41))


def test_named_cases_without_validation_are_all_trained_on_unless_a_fraction_is_asked_for(tmp_path: Path):
    data = btcv(tmp_path / "btcv", training=4)
    names = [case.name for case in read_dataset(data).training]
    split = json.dumps({"cases": {"train": names[:3], "test": names[3:]}})
    for validation, counts in ((0, (3, 0, 1)), (0.3, (2, 1, 1))):
        config = load_config("btcv-masam", [f"split={split}", f"validation={validation}"])
        parts = DataSplit.of(open_dataset(config, data, runs=tmp_path), validation=config.validation, seed=0)
        assert (len(parts.train), len(parts.validation), len(parts.test)) == counts


def sites(root: Path) -> Path:
    """Three scans of each of two sites, as a pair of folders."""
    folders(root / "made", training=6, test=0)
    for part in ("images", "masks"):
        (root / part).mkdir()
        for i, path in enumerate(sorted((root / "made" / "train" / part).iterdir())):
            path.rename(root / part / f"{'AB'[i // 3]}_{i % 3:02d}.nii.gz")
    for path in sorted((root / "made").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "made").rmdir()
    return root


def test_a_site_is_cut_by_itself_or_tested_on_by_the_network_of_another(tmp_path: Path):
    data = sites(tmp_path / "sites")
    one = open_dataset(load_config("prostate", ["split.only=^B"]), data, runs=tmp_path)
    assert {case.name[0] for case in (*one.training, *one.test)} == {"B"}
    assert (len(one.training), len(one.validation), len(one.test)) == (2, 0, 1)
    others = open_dataset(load_config("prostate-generalisation"), data, runs=tmp_path)
    assert [case.name for case in others.training] == ["A_00", "A_01", "A_02"]
    assert [case.name for case in others.test] == ["B_00", "B_01", "B_02"] and not others.validation
    for override, message in (("only=^C", "in no training case's name"), ("test_names=_", "in 6 of 6 cases")):
        config = load_config("prostate", ["split={}", f"split.{override}"])
        with pytest.raises(BadInputError, match=message):
            open_dataset(config, data, runs=tmp_path)
    for split, message in (("{only: '('}", "is no regular expression"), ("{test: 0.2, test_names: A}", "give one of")):
        with pytest.raises(UsageError, match=message):
            load_config("prostate", [f"split={split}"])


def test_scans_without_a_tumour_are_left_out(tmp_path: Path):
    data = decathlon(tmp_path / "data", training=5, test=0, labels=("liver", "cancer"))
    dataset = read_dataset(data)
    healthy = dataset.training[1]
    assert healthy.label is not None
    file = nifti1.load(healthy.label.files[0])
    mask = np.minimum(np.asarray(file.dataobj), 1).astype(np.uint8)
    nifti1.save(nifti1.Nifti1Image(mask, file.affine), healthy.label.files[0])
    config = load_config("lits")
    for _ in range(2):  # the second time from the cache
        kept = open_dataset(config, data, runs=tmp_path)
        names = {case.name for case in (*kept.training, *kept.validation, *kept.test)}
        assert names == {case.name for case in dataset.training} - {healthy.name}
    assert json.loads((tmp_path / "cache" / "empty-masks.json").read_text()).values()
    everything = open_dataset(load_config("lits", ["skip_empty=false"]), data, runs=tmp_path)
    assert len((*everything.training, *everything.validation, *everything.test)) == 5
    whole = open_dataset(load_config("lits", ["classes=null"]), data, runs=tmp_path)  # the liver counts
    assert len((*whole.training, *whole.validation, *whole.test)) == 5
    assert apply_split(dataset, load_config("lits", ["split=null"])) is dataset


@pytest.mark.parametrize("name", ["kits", "msd-colon", "lits", "msd-pancreas-sam3d"])
def test_3dsam_adapter_has_32_tokens_a_side_whatever_the_patch(name: str):
    teacher = load_config(name).teacher
    with torch.device("meta"):
        network = build_teacher(
            teacher.name,
            backbone=teacher.backbone,
            in_channels=1,
            num_classes=2,
            patch=teacher.plan.patch,
            **teacher.options,
        )
    assert network.get_submodule("image_encoder").cells == (32, 32, 32)
    assert (teacher.prompts.kind, teacher.prompts.count, teacher.prompts.positive) == ("points", 10, True)


def test_the_lines_of_the_papers_that_were_not_there():
    masam = load_config("btcv-masam").teacher.training
    assert (masam.optimizer, masam.decay, masam.steps) == ("adam", "exponential", 50400)
    assert (masam.batch * masam.accumulate, masam.foreground) == (24, 0)
    code = load_config("btcv-masam-code").teacher.training
    assert (code.optimizer, code.weight_decay, code.power, code.steps, code.schedule_steps) == (
        *("adamw", 0.1, 7, 37800, 50400),
    )
    for name, cases in (("btcv-autosam", 24), ("amos", 200)):
        config = load_config(name)
        teacher, student = config.teacher, config.student
        assert with_steps(teacher.training, cases=cases, devices=1).steps == 200 * cases
        assert teacher.training == student.training and teacher.plan == student.plan  # the student as the teacher
        assert teacher.plan.spacing == (1.5, 1.0, 1.0) and teacher.plan.patch == (128, 128, 128)
        assert (teacher.training.weight_decay, teacher.training.decay) == (1e-5, "exponential")
        assert (teacher.training.augmentation.intensity_scale, teacher.training.augmentation.brightness) == (0.1, 0)
    for name in ("btcv-medsa", "brats2021"):
        teacher = load_config(name).teacher
        assert (teacher.backbone, teacher.plan.size, teacher.plan.patch) == ("vit_h", (128,) * 3, (128,) * 3)
        assert teacher.training.epochs == 60 and teacher.prompts.per_slice and teacher.prompts.kind == "mixed"
        assert teacher.options["sd_trans"] == "add_output"
    for name in ("refuge2", "isic2019", "tnmix"):
        teacher = load_config(name).teacher
        assert (teacher.backbone, teacher.plan.long_side, teacher.training.epochs) == ("vit_h", 1024, 40)
        weights = teacher.training
        assert (weights.focal_weight, weights.dice_weight, weights.iou_weight) == (20, 1, 1)
    pancreas = load_config("msd-pancreas")
    assert pancreas.validation == load_config("msd-pancreas-sam3d").validation == 0.125
    assert (pancreas.teacher.prompts.whole_case, pancreas.teacher.prompts.share) == (True, 1)
    assert load_config("amos-generalisation-mr").modality == "MR"
    assert load_config("amos-generalisation").labelled == 5 and load_config("amos-generalisation").validation == 0
