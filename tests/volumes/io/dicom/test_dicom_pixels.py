"""Native decoders abort the process on some damage (GDCM does): it must be another process than ours."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom_series import values, write_series
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from samkd.errors import BadInputError
from samkd.volumes.datasets.parallel import in_threads
from samkd.volumes.io.dicom import pixels as dicom_pixels
from samkd.volumes.io.dicom.series import read_series

STORED = values(shape=(3, 40, 36)).astype(np.uint16)
HOUNSFIELD = STORED.astype(np.float32) - 1024


def make_decoder_abort(path: Path) -> None:
    """255 bits per pixel in the JPEG frame's own header: GDCM throws where nothing catches."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\xff\xd8\xff\xc3")
    assert data[at + 6] == 16
    data[at + 6] = 255
    path.write_bytes(bytes(data))


def test_a_decoder_that_aborts_is_an_error_of_that_file(tmp_path):
    files = write_series(tmp_path / "bad", STORED, syntax=JPEGLosslessSV1)
    write_series(tmp_path / "good", STORED, syntax=JPEGLosslessSV1)
    make_decoder_abort(files[1])
    for _ in range(2):
        with pytest.raises(BadInputError, match="compressed pixels cannot be decoded") as caught:
            read_series(tmp_path / "bad")
        assert str(files[1]) in str(caught.value)
        np.testing.assert_array_equal(read_series(tmp_path / "good").array[0], HOUNSFIELD)


def test_a_file_refused_by_its_decoder_does_not_cost_the_decoder(tmp_path):
    files = write_series(tmp_path, STORED, syntax=JPEG2000Lossless)
    whole = files[2].read_bytes()
    files[2].write_bytes(whole.replace(b"\xff\x4f\xff\x51", b"\xff\x00\xff\x51"))
    with pytest.raises(BadInputError, match=files[2].name):
        read_series(tmp_path)
    process = dicom_pixels._DECODER.process
    files[2].write_bytes(whole)
    np.testing.assert_array_equal(read_series(tmp_path).array[0], HOUNSFIELD)
    assert process is not None and dicom_pixels._DECODER.process is process


def test_a_decoder_killed_between_two_scans_is_started_again(tmp_path):
    write_series(tmp_path, STORED, syntax=JPEG2000Lossless)
    read_series(tmp_path)
    process = dicom_pixels._DECODER.process
    assert process is not None
    process.kill()
    process.wait()
    np.testing.assert_array_equal(read_series(tmp_path).array[0], HOUNSFIELD)


def test_threads_do_not_share_a_decoder_and_leave_none(tmp_path):
    folders = [tmp_path / str(number) for number in range(4)]
    for number, folder in enumerate(folders):
        write_series(folder, STORED + number, syntax=JPEG2000Lossless)

    def read(folder: Path):
        return read_series(folder).array[0], dicom_pixels._DECODER.process

    for number, (array, process) in enumerate(in_threads(read, folders)):
        np.testing.assert_array_equal(array, HOUNSFIELD + number)
        assert process is not dicom_pixels._DECODER.process
    assert process is not None and process.wait(10) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_leaves_its_parents_decoder_alone(tmp_path):
    write_series(tmp_path, STORED, syntax=JPEG2000Lossless)
    read_series(tmp_path)
    process = dicom_pixels._DECODER.process
    child = os.fork()
    if not child:
        os._exit(not np.array_equal(read_series(tmp_path).array[0], HOUNSFIELD))
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(read_series(tmp_path).array[0], HOUNSFIELD)
    assert dicom_pixels._DECODER.process is process


def test_a_python_that_cannot_be_started_is_no_damage(tmp_path, monkeypatch):
    write_series(tmp_path, STORED, syntax=JPEG2000Lossless)
    dicom_pixels._DECODER.end()
    for name in ("/bin/false", str(tmp_path / "no-such-python")):
        monkeypatch.setattr(sys, "executable", name)
        with pytest.raises(BadInputError, match="could not be started"):
            read_series(tmp_path)
