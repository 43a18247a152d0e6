"""DICOM series made with pydicom, for the tests: classic and multi-frame, in any direction and transfer syntax."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    MRImageStorage,
    generate_uid,
)

TO_RAS = np.diag([-1.0, -1.0, 1.0])
IDENTITY = {  # twenty strings that no output may hold
    "PatientName": "Planted^Person01",
    "PatientID": "PLANTED02",
    "PatientBirthDate": "19031201",
    "PatientAddress": "Planted Street 04",
    "PatientTelephoneNumbers": "555-PLANTED05",
    "OtherPatientIDs": "PLANTED06",
    "PatientMotherBirthName": "Planted^Mother07",
    "ReferringPhysicianName": "Planted^Physician08",
    "PerformingPhysicianName": "Planted^Performer09",
    "OperatorsName": "Planted^Operator10",
    "InstitutionName": "Planted Hospital 11",
    "InstitutionAddress": "Planted Road 12",
    "StationName": "PLANTED13",
    "AccessionNumber": "PLANTED14",
    "StudyID": "PLANTED15",
    "StudyDescription": "Planted study 16",
    "SeriesDescription": "Planted series 17",
    "PatientComments": "Planted comment 18",
    "DeviceSerialNumber": "PLANTED19",
    "RequestingPhysician": "Planted^Requester20",
}


def rotation(seed: int) -> np.ndarray:
    """A proper rotation [3, 3] at random."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def values(seed: int = 0, shape: tuple[int, int, int] = (6, 9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.int16)


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    axes: np.ndarray | None = None,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin: tuple[float, float, float] = (-31.0, 12.5, 400.0),
    modality: str = "CT",
    syntax: UID = ExplicitVRLittleEndian,
    change: Callable[[Dataset, int], None] = lambda dataset, index: None,
) -> list[Path]:
    """Slices stored [D, H, W]; `axes` are the LPS directions of w, h and d as rows; `change` edits slice `index`.

    Files are named in another order than that of the slices. Returned in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = np.eye(3) if axes is None else axes
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    paths = []
    for index, pixels in enumerate(stored):
        dataset = _dataset(CTImageStorage if modality == "CT" else MRImageStorage, pixels)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = frame_of_reference
        dataset.Modality, dataset.InstanceNumber, dataset.SliceThickness = modality, index + 1, spacing[0]
        dataset.ImagePositionPatient = (np.array(origin) + index * spacing[0] * axes[2]).round(9).tolist()
        dataset.ImageOrientationPatient = axes[:2].ravel().round(12).tolist()
        dataset.PixelSpacing = [spacing[1], spacing[2]]
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        change(dataset, index)
        paths.append(folder / f"{(index * 7 + 3) % 101:03d}.dcm")
        _save(dataset, paths[-1], syntax)
    return paths


def write_multiframe(path: Path, stored: np.ndarray, *, order: list[int], slopes: list[float] | None = None) -> Path:
    """One enhanced MR object: slices stored [D, H, W] as frames in the given order, 2 x 0.5 x 0.6 mm, axial."""
    dataset = _dataset(EnhancedMRImageStorage, stored[order])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID = generate_uid()
    dataset.Modality, dataset.NumberOfFrames = "MR", len(order)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.6], 2
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        frame, position, transformation, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [5, 6, 2.0 * index]
        transformation.RescaleSlope = slopes[index] if slopes else 1
        transformation.RescaleIntercept, transformation.RescaleType = 0, "US"
        content.DimensionIndexValues = [index + 1]
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [transformation]
        frame.FrameContentSequence = [content]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    _save(dataset, path, ExplicitVRLittleEndian)
    return path


def edit(path: Path, **changes) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def plant(dataset: Dataset) -> None:
    for name, value in IDENTITY.items():
        setattr(dataset, name, value)


def _dataset(sop_class: UID, pixels: np.ndarray) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    return dataset


def _save(dataset: FileDataset, path: Path, syntax: UID) -> None:
    if syntax == JPEGLosslessSV1:
        dataset.save_as(path)
        _to_jpeg_lossless(path)
    elif syntax.is_encapsulated:
        dataset.compress(syntax)
        dataset.save_as(path)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)


def _to_jpeg_lossless(path: Path) -> None:
    import gdcm

    reader, changer, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    changer.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    changer.SetInput(reader.GetImage())
    assert changer.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(changer.GetOutput())
    assert writer.Write()
