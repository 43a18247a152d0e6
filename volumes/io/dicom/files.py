"""Opening one DICOM file: whether it is one, its header, and its bytes within bounds.

Messages never repeat text from a header, nor what pydicom says about it: that may be the patient's name. Only numbers
and DICOM's own registered names are shown. pydicom is loaded by the first call. samkd is no de-identification tool.
"""

import functools
import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ....errors import BadInputError, MissingExtraError, SamkdError, translated

MOSAIC = (0x0019, 0x100A)  # Siemens: the number of slices tiled into one image
_TAGS = [
    *("SOPClassUID", "ImageType", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesTime", "SeriesDescription"),
    *("FrameOfReferenceUID", "VolumeBasedCalculationTechnique", "BitsStored", "RescaleType", "Units"),
    *((0x0019, 0x0010), MOSAIC),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "ModalityLUTSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_MOST_INFLATED = 1 << 29  # bytes of an object whose transfer syntax is deflated
_CHUNK = 1 << 16
DECODERS = {  # what pip calls the packages of a decoder, all under permissive licences
    "gdcm": "python-gdcm",
    "pyjpegls": "pyjpegls",
    "pylibjpeg": "pylibjpeg pylibjpeg-openjpeg",
}
INSTALL = f"pip install 'samkd[dicom]'; on a device without samkd: pip install pydicom {' '.join(DECODERS.values())}"


@functools.cache
def load_pydicom() -> ModuleType:
    """The module `pydicom`, its warnings and its log off: both repeat header values. Raises MissingExtraError."""
    with translated("DICOM", f"is read by pydicom, which is not here; {INSTALL}", MissingExtraError):
        import pydicom
        import pydicom.config
        import pydicom.pixels
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "highdicom", "pylibjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom|highdicom|samkd\.volumes\.io\.dicom")
    return pydicom


def is_dicom(path: Path) -> bool:
    """Whether it is a DICOM file: with the mark "DICM" behind its preamble, or without both and with an image.

    Raises BadInputError for a file that cannot be read; MissingExtraError where only pydicom could tell.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from error
    return start[128:] == b"DICM" or (_begins_with_an_element(start) and _has_an_image(path))


def _begins_with_an_element(start: bytes) -> bool:
    """Whether the first bytes are a tag with which a DICOM data set, or its file meta group, can begin."""
    little, big = (tuple(int.from_bytes(start[at : at + 2], order) for at in (0, 2)) for order in ("little", "big"))
    return len(start) == 132 and any(tag[0] in (0x0002, 0x0008) and tag[1] <= 0x0018 for tag in (little, big))


def _has_an_image(path: Path) -> bool:
    """Whether a file without the mark can be read as DICOM up to its class and its number of rows."""
    pydicom = load_pydicom()
    try:
        with _Opened(path) as file:
            header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID", "Rows"])
        return bool(header.get("SOPClassUID")) and int(header.get("Rows") or 0) > 0
    except Exception:
        return False


def read_dicom(path: Path, **options: Any) -> Any:
    """The pydicom Dataset of a file, with or without the preamble and the mark. `options` are those of pydicom.dcmread.

    A file without them rarely names its transfer syntax. It is then the one that its elements show: implicit or
    explicit, little or big endian. Compressed pixels are left without one, because nothing tells how to decode them.
    """
    pydicom = load_pydicom()
    with _Opened(path) as file:
        dataset = pydicom.dcmread(file, force=True, **options)
    if dataset.preamble is None and not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        if "PixelData" not in dataset or not dataset["PixelData"].is_undefined_length:
            explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


class _Opened(io.BufferedReader):
    """A file for pydicom, which reads the rest of one at once only to inflate it, whatever it may become.

    BadInputError then for what becomes larger than an object is: a megabyte may stand for a gigabyte.
    """

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        if (size is None or size < 0) and _inflates_beyond(content, _MOST_INFLATED):
            raise BadInputError(
                f"{self._path}: is deflated, and unpacks to more than {_MOST_INFLATED / 1e6:.0f} MB. "
                "Export it uncompressed."
            )
        return content


def _inflates_beyond(content: bytes, most: int) -> bool:
    """Whether deflated bytes stand for more than `most`, found without keeping them."""
    inflater, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        for start in range(0, len(content), _CHUNK):
            piece = content[start : start + _CHUNK]
            while piece and count <= most:
                count += len(inflater.decompress(piece, 16 * _CHUNK))
                piece = inflater.unconsumed_tail
    except zlib.error:  # damaged: pydicom says so
        return False
    return count > most


def read_header(path: Path) -> Any:
    """The pydicom Dataset of a file, with what the slices of a scan need of it and no pixels. Raises BadInputError."""
    if not is_dicom(path):
        raise BadInputError(f"{path}: is no DICOM file; expected DICOM, NIfTI (.nii, .nii.gz) or a picture.")
    load_pydicom()
    with sound(path):
        return read_dicom(path, stop_before_pixels=True, specific_tags=_TAGS)


def study_and_instance(content: bytes) -> tuple[str, str]:
    """The UIDs of the study and of the object itself in the bytes of a file, read up to its pixels.

    Raises BadInputError for bytes that are no DICOM file, or one without these UIDs.
    """
    names = ("StudyInstanceUID", "SOPInstanceUID")
    pydicom = load_pydicom()
    with sound(Path("object")):
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(names))
        study, instance = (str(header[name].value) for name in names)
    return study, instance


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Whatever pydicom and the decoders stumble over becomes a BadInputError that names the file and no value."""
    try:
        yield
    except SamkdError:
        raise
    except MemoryError as error:
        raise BadInputError(f"{path}: does not fit into memory. Use a machine with more of it.") from error
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    except Exception as error:
        raise BadInputError(
            f"{path}: is damaged or no sound DICOM file ({type(error).__name__}). Copy or export it again."
        ) from error
