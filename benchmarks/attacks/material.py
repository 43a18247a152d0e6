"""What is attacked: a dataset, scans in every format, a run of each stage and a package, all small and made here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .attempts import TRAINING, samkd

SETTINGS = (
    *("phantom.training=4", "phantom.test=1", "student.plan.spacing=[14,14,14]", "student.plan.patch=[64,32,32]"),
    *("student.plan.overlap=0", "student.training.steps=6", "student.training.batch=1"),
    *("student.training.validate_every=2", "teacher.plan.size=[null,32,32]", "teacher.plan.patch=[3,32,32]"),
    *("teacher.training.steps=6", "teacher.training.batch=1", "teacher.training.validate_every=2"),
)


@dataclass(frozen=True)
class Material:
    """Where everything lies."""

    folder: Path

    @property
    def data(self) -> Path:
        return next((self.folder / "data").glob("phantom-*"))

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def package(self) -> Path:
        return self.folder / "package"

    @property
    def nnunet(self) -> Path:
        return self.folder / "nnunet"

    @property
    def formats(self) -> Path:
        return self.folder / "formats"


def options() -> list[str]:
    return ["-c", "phantom", *(part for setting in SETTINGS for part in ("--set", setting))]


def teach(material: Material, run: Path, **how):
    return samkd("teach", *options(), "--run", run, "--runs", material.folder, seconds=TRAINING, **how)


def distill(material: Material, run: Path, runs: Path, **how):
    return samkd(
        *("distill", *options(), "--data", material.data, "--teacher", material.teacher),
        *("--run", run, "--runs", runs),
        seconds=TRAINING,
        **how,
    )


def make(folder: Path) -> Material:
    """Make what is not there yet."""
    material = Material(folder)
    folder.mkdir(parents=True, exist_ok=True)
    steps = (
        (material.teacher, lambda: teach(material, material.teacher)),
        (material.student, lambda: distill(material, material.student, folder / "runs")),
        (
            material.package,
            lambda: samkd(
                *("deploy", material.student, "--data", material.data, "--out", material.package),
                *("--precision", "fp32", "--max-drop", "1"),
                seconds=TRAINING,
            ),
        ),
        (material.nnunet, lambda: samkd("convert", material.data, material.nnunet, seconds=TRAINING)),
    )
    for path, make_it in steps:
        if not path.exists():
            outcome = make_it()
            assert outcome.code == 0, outcome.output
    if not material.formats.exists():
        _write_formats(material.formats)
    return material


def _write_formats(folder: Path) -> None:
    """One small scan, and its mask, in each format that is read."""
    import nibabel as nib
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    scan = (rng.normal(40, 60, (12, 14, 16))).astype(np.int16)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    for name, values in (("scan", scan), ("mask", (scan > 60).astype(np.uint8))):
        for suffix in (".nii", ".nii.gz"):
            nib.save(nib.Nifti1Image(values, affine), folder / f"{name}{suffix}")
    picture = rng.integers(0, 255, (24, 20, 3), np.uint8)
    for name in ("picture.png", "picture.jpg", "picture.tiff"):
        Image.fromarray(picture).save(folder / name)
    Image.fromarray((picture[..., 0] > 128).astype(np.uint8)).save(folder / "picture-mask.png")
    _write_dicom(folder / "dicom", rng.normal(40, 60, (64, 64)).astype(np.int16))
    (folder / "prompts.json").write_text(
        '{"space": "mm", "classes": {"liver": {"points": [[1, 2, 3, 1]], "boxes": [[0, 0, 0, 5, 5, 5]]}}}'
    )
    (folder / "labels.json").write_text(
        '[{"name": "background", "color": [0, 0, 0], "classid": 0}, '
        '{"name": "organ", "color": [0, 255, 0], "classid": 1}]'
    )


def _write_dicom(folder: Path, pixels: np.ndarray) -> None:
    """One slice in each transfer syntax for which an encoder is installed."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        CTImageStorage,
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
        generate_uid,
    )

    folder.mkdir()
    for name, syntax in {
        "explicit": None,
        "rle": RLELossless,
        "jpegls": JPEGLSLossless,
        "jpeg2000": JPEG2000Lossless,
    }.items():
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset("slice.dcm", {}, file_meta=meta, preamble=bytes(128))
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = generate_uid(), generate_uid()
        slice_.Modality, slice_.PatientName = "CT", "Attack^Nobody"
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.SliceThickness = 1, 0, 3
        slice_.PixelSpacing, slice_.ImagePositionPatient = [2, 2], [0, 0, 0]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.PixelData = np.ascontiguousarray(pixels).tobytes()
        if syntax is not None:
            slice_.compress(syntax, generate_instance_uid=False)
        slice_.save_as(folder / f"{name}.dcm", enforce_file_format=True)
