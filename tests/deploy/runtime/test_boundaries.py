"""Where the device calls a library: whatever that throws, of any class, ends as one SamkdError that names the place."""

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import openvino
import PIL.Image
import PIL.ImageFile
import pydicom
import pydicom.pixels
import pytest
from helpers.dicom_series import values, write_series
from nibabel.nifti1 import Nifti1Header

from samkd.deploy.runtime import engine_onnx, engine_openvino, signature
from samkd.deploy.runtime.engine_openvino import Engine
from samkd.deploy.runtime.package import Package
from samkd.deploy.runtime.serve import dicom_node
from samkd.deploy.runtime.serve.http import require_libraries
from samkd.errors import BadInputError, MissingExtraError, SamkdError, translated
from samkd.volumes.io.dicom import files as dicom_files
from samkd.volumes.io.dicom import seg
from samkd.volumes.io.dicom.series import find_series, read_series
from samkd.volumes.io.nifti import read_geometry, read_labels, read_scan
from samkd.volumes.io.pictures import read_picture_labels, read_pictures, write_picture_labels


class OwnClassError(Exception):
    """What a library derives from nothing but Exception, as ONNX Runtime and safetensors do."""


def thrown() -> list[Exception]:
    return [
        OwnClassError("a class of its own"),
        RuntimeError("basic_ios::clear"),
        ValueError("bad value\nin two lines"),
        KeyError("key"),
        IndexError(),
        TypeError("type"),
        AttributeError("attribute"),
        OverflowError("too large"),
        ZeroDivisionError("division"),
        EOFError(),
        OSError(5, "Input/output error"),
        MemoryError(),
        RecursionError("deep"),
        NotImplementedError(),
        AssertionError("inside the library"),
        SystemError("error return without exception set"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ]


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([1.0, 2, 3, 1]))
    image.header.set_slope_inter(2, 1)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    nib.save(image, path)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    return path


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "series", values())
    return tmp_path / "series"


# Of a library: what is replaced by a function that throws, and the call of ours that reaches it.
NIBABEL = [
    (Nifti1Header, "__init__", read_scan),
    (Nifti1Header, "__getitem__", read_scan),
    (Nifti1Header, "get_data_dtype", read_scan),
    (Nifti1Header, "get_slope_inter", read_scan),
    (Nifti1Header, "get_sform", read_scan),
    (Nifti1Header, "get_qform", read_geometry),
    (Nifti1Header, "get_data_dtype", read_labels),
    (Nifti1Header, "get_sform", read_geometry),
]
PILLOW = [
    (PIL.Image, "open", lambda path: read_pictures([path])),
    (PIL.Image.Image, "getexif", lambda path: read_pictures([path])),
    (PIL.ImageFile.ImageFile, "load", lambda path: read_pictures([path])),
    (PIL.Image.Image, "__array_interface__", lambda path: read_pictures([path])),
    (PIL.Image.Image, "__array_interface__", lambda path: read_picture_labels([path])),
    (PIL.Image, "fromarray", lambda path: write_picture_labels(path, np.zeros((1, 8, 8), np.uint8), [path])),
    (PIL.Image.Image, "save", lambda path: write_picture_labels(path, np.zeros((1, 8, 8), np.uint8), [path])),
]
PYDICOM = [
    (pydicom, "dcmread", find_series),
    (pydicom, "dcmread", read_series),
    (pydicom.Dataset, "get", find_series),
    (pydicom.pixels, "get_decoder", read_series),
    (pydicom.pixels, "pixel_array", read_series),
]


def each_throws(monkeypatch, owner: object, name: str, call: Callable[[], object], place: Path) -> None:
    """Replace `owner.name` by what throws, one exception after the other; every one must come out as ours."""
    call()  # sound as it stands
    for exception in thrown():

        def throw(*_args, _exception=exception, **_kwargs):
            raise _exception

        value = property(throw) if name == "__array_interface__" else throw
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            with pytest.raises(SamkdError) as fault:
                call()
        message = str(fault.value)
        assert place.name in message and "\n" not in message, (exception, message)


@pytest.mark.parametrize(("owner", "name", "read"), NIBABEL, ids=lambda each: getattr(each, "__name__", None))
def test_nibabel(monkeypatch, scan, owner, name, read):
    each_throws(monkeypatch, owner, name, lambda: read(scan), scan)


@pytest.mark.parametrize(("owner", "name", "read"), PILLOW, ids=lambda each: getattr(each, "__name__", None))
def test_pillow(monkeypatch, picture, owner, name, read):
    each_throws(monkeypatch, owner, name, lambda: read(picture), picture)


@pytest.mark.parametrize(("owner", "name", "read"), PYDICOM, ids=lambda each: getattr(each, "__name__", None))
def test_pydicom(monkeypatch, series, owner, name, read):
    each_throws(monkeypatch, owner, name, lambda: read(series), series)


@pytest.mark.parametrize("name", ["compile_model"])
def test_openvino_compiling(monkeypatch, built, name):
    model = built / "model.xml"
    each_throws(monkeypatch, openvino.Core, name, lambda: Engine(model, precision="f32", threads=1), model)


@pytest.mark.parametrize("name", ["start_async", "wait"])
def test_openvino_inferring(monkeypatch, built, name):
    package = Package.open(built, threads=1)
    patch = np.zeros((1, package.in_channels, *package.plan.patch), np.float32)
    each_throws(monkeypatch, openvino.InferRequest, name, lambda: package.engine(patch), built / "model.xml")


def test_onnxruntime(monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tmp_path / "model.onnx"
    for exception in thrown():

        class Session:
            def __init__(self, *_args, _exception=exception, **_kwargs):
                raise _exception

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        with pytest.raises(SamkdError, match=r"model\.onnx"):
            engine_onnx.Engine(model, precision="f32")


LOADED = [
    ("openvino", engine_openvino.load_openvino),
    ("onnxruntime", engine_onnx.load_onnxruntime),
    ("pydicom", dicom_files.load_pydicom.__wrapped__),
    ("highdicom", seg.load_highdicom),
    ("pynetdicom", dicom_node.load_pynetdicom.__wrapped__),
    ("starlette", require_libraries),
    ("uvicorn", require_libraries),
    ("python_multipart", require_libraries),
]


@pytest.mark.parametrize(("library", "load"), LOADED, ids=lambda each: each if isinstance(each, str) else None)
def test_a_library_that_does_not_load_is_a_missing_extra_whatever_it_throws(monkeypatch, library, load):
    """A wrong shared library is an OSError, another numpy an AttributeError or a RuntimeError."""
    importing = builtins.__import__
    for exception in [ImportError("no such file"), *(each for each in thrown() if not isinstance(each, MemoryError))]:

        def failing(name, *args, _exception=exception, **kwargs):
            if name.split(".")[0] == library:
                raise _exception
            return importing(name, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", failing)
            with pytest.raises(MissingExtraError, match="pip install"):
                load()


def test_a_decoder_that_does_not_load_is_no_damaged_file(monkeypatch, series):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom_files.load_pydicom.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match="pydicom, which is not here"):
            read_series(series)
    finally:
        dicom_files.load_pydicom.cache_clear()


def test_a_signature_is_refused_whatever_the_library_throws(monkeypatch):
    class Key:
        def __init__(self, exception):
            self.exception = exception

        def verify(self, *_):
            raise self.exception

    for exception in thrown():
        key: Any = Key(exception)
        assert signature._signed(key, b"00" * 64 + b"\n", b"manifest") is False


def test_what_is_ours_keeps_its_class_and_its_words():
    with pytest.raises(MissingExtraError, match=r"^ours$"), translated("place", "what is wrong"):
        raise MissingExtraError("ours")
    with (
        pytest.raises(BadInputError, match=r"^place: what is wrong \(KeyError: 'a'\)\.$"),
        translated("place", "what is wrong"),
    ):
        raise KeyError("a")
    with pytest.raises(KeyboardInterrupt), translated("place", "what is wrong"):
        raise KeyboardInterrupt
