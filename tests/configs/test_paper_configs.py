"""Every config in configs/: typed, and trained for two steps on a generated dataset of the layout it is meant for.

Sizes are cut, nothing else: backbone, patch and grid are small, the rest (classes, splits, channels, intensity, losses,
prompts, schedules, augmentation) is the config's own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dataset_layouts import amos, btcv, decathlon, endovis, folders, pictures

from samkd.configs.load import config_names, load_config
from samkd.distill.train import distill
from samkd.errors import BadInputError, UsageError
from samkd.students import build_student
from samkd.teachers import build_teacher
from samkd.teachers.train import teach
from samkd.workflows.data import open_dataset
from samkd.workflows.evaluate import evaluate

pytestmark = pytest.mark.slow


def sites(root: Path) -> Path:
    """Two scans of each of six sites, as a pair of folders."""
    folders(root / "made", training=12, test=0)
    for part in ("images", "masks"):
        (root / part).mkdir()
        for i, path in enumerate(sorted((root / "made" / "train" / part).iterdir())):
            path.rename(root / part / f"{'ABCDEF'[i // 2]}_{i % 2:02d}.nii.gz")
    for path in sorted((root / "made").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "made").rmdir()
    return root


def cancer(*labels: str) -> Callable[[Path], Path]:
    return lambda root: decathlon(root, training=8, test=0, labels=labels)


LAID_OUT: dict[str, Callable[[Path], Path] | None] = {
    "amos": amos,
    **dict.fromkeys(("amos-generalisation", "amos-generalisation-mr"), lambda root: amos(root, training=6)),
    "brats2021": lambda root: decathlon(root, training=6, modality=("T1", "T1ce", "T2", "FLAIR")),
    **dict.fromkeys(
        ("btcv-autosam", "btcv-masam", "btcv-masam-code", "btcv-medsa", "btcv-shared"),
        lambda root: btcv(root, training=6),
    ),
    "endovis18": endovis,
    "hippocampus": lambda root: decathlon(root, labels=("Anterior", "Posterior"), modality=("MRI",)),
    "isic2019": lambda root: pictures(root, training=5, values=(0, 255), labels=("lesion",)),
    "kits": cancer("kidney", "tumor", "cyst"),
    "lits": cancer("liver", "cancer"),
    "msd-colon": cancer("colon cancer primaries"),
    **dict.fromkeys(("msd-pancreas", "msd-pancreas-sam3d"), cancer("pancreas", "cancer")),
    **dict.fromkeys(("prostate", "prostate-generalisation"), sites),
    "refuge2": pictures,
    "tnmix": lambda root: pictures(root, training=5, values=(0, 255), labels=("nodule",), rgb=False),
    **{name: None for name in config_names() if name.startswith("phantom")},
}
CLASSES = {  # where the config chooses
    "amos-generalisation": 12,
    "amos-generalisation-mr": 12,
    "btcv-masam": 13,
    "btcv-masam-code": 13,
    "btcv-medsa": 13,
    "btcv-shared": 12,
    **dict.fromkeys(("kits", "lits", "msd-colon", "msd-pancreas", "msd-pancreas-sam3d"), 2),
}


def test_every_config_is_here():
    apart = ["small-promptable"]  # its student wants a published teacher's weights: tests/students/prompted_sam
    assert sorted([*LAID_OUT, *apart]) == config_names()


def small_plan(plan: dict[str, Any], *, columns: int) -> dict[str, Any]:
    """The plan with a small patch; a grid given in voxels shrinks with it, one in mm is left out."""
    depth, height, width = min(plan["patch"][0], 32), 32, columns
    grid = {"long_side": columns} if plan["long_side"] else {"size": [depth if depth > 5 else None, height, width]}
    return plan | {"spacing": None, "size": None, "overlap": 0.0, "patch": [depth, height, width]} | grid


def small(name: str) -> Any:
    config = load_config(name)
    values = config.model_dump(mode="json", by_alias=True)
    overrides = ["phantom.training=3", "phantom.test=1"] if config.phantom else []
    for stage, columns in (("teacher", 32), ("student", 64)):
        overrides.append(f"{stage}.plan={json.dumps(small_plan(values[stage]['plan'], columns=columns))}")
        sizes = {"steps": 2, "epochs": 0, "validate_every": 2, "warmup": 1, "batch": 1, "accumulate": 1}
        overrides += [f"{stage}.training.{key}={value}" for key, value in sizes.items()]
    if config.split and config.split.cases:
        overrides.append("split={test: 0.2}")  # there are fewer cases than it names
    if config.teacher.name in ("sam3d", "autosam"):
        overrides.append("teacher.options={positions: 8}")
    return load_config(name, [*overrides, "teacher.backbone=vit_tiny_p8"])


@pytest.mark.parametrize("name", config_names())
def test_its_networks_exist_at_full_size(name: str):
    config = load_config(name)
    channels = {"brats2021": 4, "endovis18": 3, "isic2019": 3, "refuge2": 3}.get(name, 1)
    shared = {"in_channels": channels, "num_classes": 4}
    teacher, student = config.teacher, config.student
    with torch.device("meta"):
        build_teacher(teacher.name, backbone=teacher.backbone, patch=teacher.plan.patch, **shared, **teacher.options)
    build_student(student.name, patch=student.plan.patch, **shared, **student.options)


@pytest.mark.parametrize("name", sorted(LAID_OUT.keys() - {"phantom-published"}))  # which trains nothing
def test_two_steps_of_its_teacher_and_its_student(name: str, tmp_path: Path):
    config = small(name)
    lay_out = LAID_OUT[name]
    data = lay_out(tmp_path / "data") if lay_out else None
    dataset = open_dataset(config, data, runs=tmp_path)
    if name in CLASSES:
        assert len(dataset.labels) == CLASSES[name]
    start = None
    if config.teacher.hold_encoder:
        with pytest.raises(UsageError, match="give --start RUN"):
            teach(config, dataset, runs=tmp_path)
        before = small("phantom-sam3d")
        start = teach(before, open_dataset(before, None, runs=tmp_path), runs=tmp_path, run=tmp_path / "start").path
    taught = teach(config, dataset, runs=tmp_path, run=tmp_path / "teacher", start=start)
    alone = distill(config, dataset, lambda_=1.0, teachers=None, runs=tmp_path, run=tmp_path / "student")
    for run in (taught, alone):
        rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2] and all(np.isfinite(row["loss"]) for row in rows)


def test_zero_and_five_shots_from_btcv(tmp_path: Path):
    """The run on BTCV is scored on AMOS22, whose other classes are background, and goes on from there."""
    source, target = small("btcv-shared"), small("amos-generalisation")
    taught = teach(
        source,
        open_dataset(source, btcv(tmp_path / "btcv", training=4), runs=tmp_path),
        runs=tmp_path,
        run=tmp_path / "btcv-run",
    )
    data = amos(tmp_path / "amos", training=6)
    scores = evaluate(taught.path, data, config_name="amos-generalisation")
    assert list(scores.summary.per_class) == list(target.classes)
    assert len(scores.cases) == 1  # its CT alone
    assert evaluate(taught.path, data, modality="CT").cases == scores.cases  # by the run's own config
    with pytest.raises(BadInputError, match=r"spleen.*give -c CONFIG"):
        evaluate(taught.path, decathlon(tmp_path / "other"), config_name="hippocampus")
    shots = open_dataset(target, data, runs=tmp_path)
    assert sum(case.label is not None for case in shots.training) == 5
    further = teach(target, shots, runs=tmp_path, run=tmp_path / "further", start=taught.path)
    assert further.config.objective.init_run
    other = small("btcv-medsa")
    with pytest.raises(BadInputError, match="its network"):
        teach(
            other,
            open_dataset(other, tmp_path / "btcv", runs=tmp_path),
            runs=tmp_path,
            run=tmp_path / "wrong",
            start=taught.path,
        )
    assert not (tmp_path / "wrong").exists()


def test_all_classes_of_btcv_start_from_those_it_shares(tmp_path: Path, capsys):
    few, all_of_them = small("btcv-shared"), small("btcv-masam")
    data = btcv(tmp_path / "btcv", training=4)
    first = teach(few, open_dataset(few, data, runs=tmp_path), runs=tmp_path, run=tmp_path / "few")
    dataset = open_dataset(all_of_them, data, runs=tmp_path)
    teach(all_of_them, dataset, runs=tmp_path, run=tmp_path / "all", start=first.path)
    told = " ".join(capsys.readouterr().err.split())
    assert "its classes are" in told and "mask_decoder.mask_tokens.weight" in told and "start anew" in told
