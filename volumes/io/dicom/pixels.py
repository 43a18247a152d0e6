"""The pixels of DICOM slices. Native decoders run in a process of their own, because damage can make them abort it."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import BadInputError, MissingExtraError
from .files import DECODERS, load_pydicom, read_dicom, sound
from .planes import Plane

_PLUGINS = {  # permissively licensed decoders; what is not listed is decoded by pydicom itself
    **dict.fromkeys(("50", "51", "57", "70"), "gdcm"),  # JPEG: baseline, extended, lossless
    **dict.fromkeys(("80", "81"), "pyjpegls"),
    **dict.fromkeys(("90", "91", "201", "202", "203"), "pylibjpeg"),  # JPEG 2000, with and without high throughput
}
_READY, _REFUSED = b"ready\n", b"null\n"  # what the second Python says when it has no frame to give


def read_pixels(ordered: Sequence[Plane]) -> np.ndarray:
    """float32 [slices, rows, columns], rescaled and MONOCHROME1 inverted. Raises BadInputError, MissingExtraError."""
    values = None
    by_file = sorted(range(len(ordered)), key=lambda index: (str(ordered[index].file), ordered[index].frame))
    for path, indices in groupby(by_file, key=lambda index: ordered[index].file):
        with sound(path):
            places = list(indices)
            arrays = _stored(path, [ordered[index] for index in places])
            for index, stored in zip(places, arrays, strict=True):
                plane = ordered[index]
                if values is None:  # only now, when a whole slice of that size was really there
                    values = np.empty((len(ordered), *plane.size), np.float32)
                with np.errstate(over="ignore"):
                    values[index] = stored * plane.slope + plane.intercept
                if not np.isfinite(values[index]).all():
                    raise BadInputError(
                        f"{path}: its rescale slope {plane.slope:g} makes values infinite. Export it again."
                    )
    assert values is not None
    return values


def _stored(path: Path, wanted: Sequence[Plane]) -> Iterator[np.ndarray]:
    """float64 [rows, columns] of the frames of a file, MONOCHROME1 inverted."""
    dataset = read_dicom(path)
    plugin = _plugin(dataset, path)
    if "PixelData" not in dataset:
        raise BadInputError(f"{path}: holds no whole pixel data: it is cut off, or no image. Copy it again.")
    frames = [plane.frame for plane in wanted]
    arrays = _DECODER.frames(path, frames, plugin) if plugin else _decoded(dataset, frames, plugin)
    for plane, stored in zip(wanted, arrays, strict=True):
        if stored.shape != plane.size or stored.dtype.kind not in "iu":
            raise BadInputError(f"{path}: its pixels are {stored.shape}, its header says {plane.size}.")
        if plane.inverted:
            bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
            yield (-1 if signed else 2**bits - 1) - stored.astype(np.float64)
        else:
            yield stored.astype(np.float64)


def _plugin(dataset: Any, path: Path) -> str:
    """The native decoder that the file needs; empty for none."""
    pydicom = load_pydicom()
    uid = pydicom.uid.UID(dataset.file_meta.get("TransferSyntaxUID") or "")
    try:
        decoder = pydicom.pixels.get_decoder(uid)
    except NotImplementedError as error:
        shown = uid if uid.is_valid else "missing or malformed"
        raise BadInputError(
            f"{path}: its transfer syntax is {shown}; expected an uncompressed one, RLE, JPEG, JPEG-LS or "
            "JPEG 2000. Export the series uncompressed."
        ) from error
    plugin = _PLUGINS.get(uid.rpartition(".")[2], "") if uid.is_compressed and uid.is_encapsulated else ""
    if plugin and plugin not in decoder.available_plugins:
        raise MissingExtraError(
            f"{path}: {uid.name} needs a decoder that is not here; pip install 'samkd[dicom]'; on a device without "
            f"samkd: pip install {DECODERS[plugin]}"
        )
    return plugin


def _decoded(dataset: Any, frames: Sequence[int], plugin: str) -> Iterator[np.ndarray]:
    for frame in frames:
        yield load_pydicom().pixels.pixel_array(dataset, index=frame, decoding_plugin=plugin)


class _Decoder(threading.local):
    """A second Python for each thread, started by the first frame asked for, and again when a frame has ended it."""

    process: subprocess.Popen | None = None

    def frames(self, path: Path, frames: Sequence[int], plugin: str) -> Iterator[np.ndarray]:
        """The frames of a file as they are stored. Raises BadInputError for what the decoder does not survive."""
        if self.process is None or self.process.poll() is not None:  # not there, dead, or that of a forked parent
            self.process = _started(path)
            weakref.finalize(threading.current_thread(), _stop, self.process)
        asked, told = self.process.stdin, self.process.stdout
        assert asked and told
        intact = False
        try:
            asked.write(json.dumps([str(path.absolute()), list(frames), plugin]).encode() + b"\n")
            asked.flush()
            for _ in frames:
                line = told.readline()
                if line in (_REFUSED, b""):
                    intact = line == _REFUSED
                    raise BadInputError(f"{path}: is damaged: its compressed pixels cannot be decoded. Copy it again.")
                kind, *shape = json.loads(line)
                yield np.frombuffer(told.read(np.dtype(kind).itemsize * math.prod(shape)), kind).reshape(shape)
            intact = True
        finally:
            if not intact:  # it is dead, or holds frames that must not be taken for the next file's
                self.end()

    def end(self) -> None:
        if self.process:
            _stop(self.process)
            self.process = None


_DECODER = _Decoder()


def _started(path: Path) -> subprocess.Popen:
    code = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"
    with suppress(OSError):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print what they stumble over, which may be the patient's name
        )
        assert process.stdout
        if process.stdout.readline() == _READY:
            return process
        _stop(process)
    raise BadInputError(
        f"{path}: is compressed, and the Python that decodes it, {sys.executable}, could not be started. Export the "
        "series uncompressed."
    )


def _stop(process: subprocess.Popen) -> None:
    process.kill()  # does nothing in a fork of the process that started it
    with suppress(BrokenPipeError), process:
        pass


def serve() -> None:
    """What the second Python does: for each line (JSON: path, frames, decoder) a line (type, shape) and the bytes of
    every frame, until there is no more line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may want to finish its scan
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # a decoder that prints must not print into the frames
        out.write(_READY)
        out.flush()
        for line in sys.stdin:
            path, frames, plugin = json.loads(line)
            try:
                for stored in _decoded(read_dicom(Path(path)), frames, plugin):
                    out.write(json.dumps([stored.dtype.str, *stored.shape]).encode() + b"\n")
                    out.write(np.ascontiguousarray(stored).data)
            except Exception:
                out.write(_REFUSED)  # the parent has the file's name
            out.flush()
