"""Scans of two bodies, a network that knows them, and its package."""

import hashlib
import json
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from samkd.deploy.acceptance.candidates import AcceptanceCriteria, ValidationCase
from samkd.deploy.pipeline import PackageRequest, TrainedStudent, deploy_student
from samkd.deploy.runtime.integrity import digest, render
from samkd.deploy.runtime.manifest import MANIFEST, Description
from samkd.volumes import Geometry, Plan, Volume
from samkd.volumes.io.nifti import write_scan
from samkd.volumes.pipeline import segment

LABELS = {0: "background", 1: "liver", 2: "left kidney"}
PATCH = (16, 16, 16)
PLAN = Plan(intensity=({"rule": "window", "low": 0, "high": 100},), patch=PATCH, overlap=0.5)


class Levels(nn.Module):
    """Segments by intensity alone: background below 0.3, class 1 up to 0.7, class 2 above."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv3d(1, 4, 3, padding=1)
        self.head = nn.Conv3d(4, 3, 1)
        assert self.head.bias is not None
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.features.weight[:, 0, 1, 1, 1] = torch.tensor([1.0, 1.0, 0.5, 0.0])
            self.head.weight[1, :2, 0, 0, 0] = 15.0
            self.head.weight[2, :2, 0, 0, 0] = 35.0
            self.head.bias[:] = torch.tensor([0.0, -9.0, -37.0])

    def forward(self, image, prompts=None):
        return self.head(torch.relu(self.features(image)))


def make_scan(seed: int) -> Volume:
    """Two smooth bodies of 60 and 100 on 0, on a grid of odd sizes that is stored in another axis order than SPL."""
    rng = np.random.default_rng(seed)
    d, h, w = np.mgrid[:19, :26, :31].astype(np.float32)
    centre = rng.uniform(-1.5, 1.5, 6)
    one = np.sqrt((d - 9 - centre[0]) ** 2 + (h - 9 - centre[1]) ** 2 + (w - 9 - centre[2]) ** 2)
    two = np.sqrt((d - 9 - centre[3]) ** 2 + (h - 17 - centre[4]) ** 2 + (w - 21 - centre[5]) ** 2)
    values = np.maximum(60 * (one < 6), 100 * (two < 5)) + rng.uniform(-8, 8, d.shape)
    affine = np.array([[0, 0.1, 1.4, -20], [0, 1.5, -0.1, 8], [-2.0, 0, 0, 30], [0, 0, 0, 1]])
    affine[:3, 1] *= 1.5 / np.linalg.norm(affine[:3, 1])
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / 3 * 1.4
    return Volume(values[None].astype(np.float32), Geometry(affine, d.shape))


def infer_with(network):
    def infer(patches):
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(patches))).softmax(1).numpy()

    return infer


def patches(count: int) -> list[np.ndarray]:
    return [
        np.clip(make_scan(100 + i).array[:, 1:17, 5 : 5 + 16, 6 : 6 + 16] / 100, 0, 1).astype(np.float32)
        for i in range(count)
    ]


def validation_cases() -> list[ValidationCase]:
    """Three scans, with the masks of Levels as truth and as reference."""
    cases = []
    for seed in range(3):
        volume = make_scan(seed)
        mask = segment(volume, PLAN, infer_with(Levels()), num_classes=3)
        cases.append(ValidationCase(f"case_{seed}", volume, mask, mask))
    return cases


def deploy(network, folder, **changes):
    """deploy_student with three cases; `changes` replace fields of the student, the criteria and the request."""
    sample = folder / "scan_0.nii.gz"
    write_scan(sample, make_scan(0))
    values = {
        "network": network,
        "plan": PLAN,
        "class_names": LABELS,
        "in_channels": 1,
        "calibration": patches(8),
        "provenance": {"run": "run-7", "recipe": "levels"},
        "description": Description("two bodies", "Generated.", ("CT",)),
        "validation": validation_cases() if "validation" not in changes else [],
        "max_drop": 0.005,
        "destination": folder / "packages" / "student",
        "precision": "fp32",
        "sample": sample,
        **changes,
    }

    def take(record):
        return record(**{each.name: values.pop(each.name) for each in fields(record) if each.name in values})

    student, criteria, request = take(TrainedStudent), take(AcceptanceCriteria), take(PackageRequest)
    assert not values, sorted(values)
    return deploy_student(student, criteria, request)


def reseal(folder: Path, **changes) -> None:
    """Write the manifest with other values, as somebody would who knows how its digest is made; the zip follows.

    Files are sealed as they are now, where "files" is not among the changes.
    """
    values = json.loads((folder / MANIFEST).read_text()) | changes
    if "files" not in changes:
        for name, entry in values["files"].items():
            raw = (folder / name).read_bytes()
            entry.update(bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    (folder / MANIFEST).write_bytes(render({**values, "digest": digest(values)}))
    rezip(folder)


def rezip(folder: Path) -> None:
    """Write NAME.zip beside a package folder."""
    with zipfile.ZipFile(folder.with_name(f"{folder.name}.zip"), "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder).as_posix())
