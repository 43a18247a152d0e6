"""The answer to an inference, as MONAI Label gives it: a mask, parameters, or both in one multipart body."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

from .....volumes.geometry import Geometry
from .....volumes.io.nifti import read_labels, write_labels
from .....volumes.io.nrrd import nrrd_bytes
from .refusals import Refusal

OUTPUTS = ("image", "json", "all", "dicom_seg")
_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
_TYPES = ("uint8", "uint16")
_BINARY = "application/octet-stream"


def checked(params: Mapping[str, Any]) -> None:
    """Refusal 400 for a form of mask that is not made here, before any work."""
    extension, kind = params.get("result_extension") or ".nii.gz", params.get("result_dtype") or "uint8"
    if extension not in _EXTENSIONS:
        raise Refusal(400, f"result_extension {str(extension)[:40]!r}: choose one of {', '.join(_EXTENSIONS)}.")
    if kind not in _TYPES:
        raise Refusal(400, f"result_dtype {str(kind)[:40]!r}: choose one of {', '.join(_TYPES)}.")


def answer(
    mask: bytes, *, folder: Path, labels: Mapping[str, int], params: Mapping[str, Any], output: str, only: int | None
) -> Response:
    """`mask` is a .nii.gz of the classes `labels`; with `only` the class of this value becomes 1, all others 0.

    `folder` is the scan's: nothing of a patient lies elsewhere, even for a moment.
    """
    checked(params)
    values, geometry = _read(mask, folder)
    as_it_is = True
    if only is not None:
        labels = {name: 1 for name, value in labels.items() if value == only}
        binary = (values == only).astype(np.uint8)
        as_it_is, values = np.array_equal(binary, values), binary
    facts = _facts(values, labels)
    if output == "json":
        return JSONResponse(facts)
    extension = str(params.get("result_extension") or ".nii.gz")
    if extension == ".nrrd":
        kind = np.dtype(params.get("result_dtype") or values.dtype.name)
        content = nrrd_bytes(values.astype(kind), geometry, compress=bool(params.get("result_compress")))
    else:
        as_it_is = as_it_is and extension == ".nii.gz"
        content = mask if as_it_is else _rewritten(values, geometry, like=mask, extension=extension, folder=folder)
    name = f"mask-{secrets.token_hex(8)}{extension}"
    if output == "image":
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=_BINARY, headers=headers)
    return _multipart(facts, content, name)


def _read(mask: bytes, folder: Path) -> tuple[np.ndarray, Geometry]:
    with _scratch(folder) as scratch:
        path = scratch / "mask.nii.gz"
        path.write_bytes(mask)
        return read_labels(path)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".answer-", dir=folder) as name:
        yield Path(name)


def _facts(values: np.ndarray, labels: Mapping[str, int]) -> dict[str, Any]:
    """The classes that are in the mask, and where their middles are, as voxels i, j, k.

    Slicer gives the n-th name to the n-th value that it meets in the mask, so a class that is absent must not be named.
    """
    names, centroids = {}, {}
    for name, value in sorted(labels.items(), key=lambda item: item[1]):
        inside = values == value
        if value and inside.any():
            names[name] = value
            centroids[name] = [value, *(_middle(inside, axis) for axis in (2, 1, 0))]
    return {"label_names": names, "centroids": centroids}


def _middle(inside: np.ndarray, axis: int) -> int:
    others = tuple(each for each in range(3) if each != axis)
    return round(float(np.average(np.arange(inside.shape[axis]), weights=inside.sum(others))))


def _rewritten(values: np.ndarray, geometry: Geometry, *, like: bytes, extension: str, folder: Path) -> bytes:
    """A NIfTI of these values with the header of the mask `like`."""
    with _scratch(folder) as scratch:
        model, path = scratch / "like.nii.gz", scratch / f"mask{extension}"
        model.write_bytes(like)
        write_labels(path, values, geometry, like=model)
        return path.read_bytes()


def _multipart(facts: Mapping[str, Any], content: bytes, name: str) -> Response:
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(facts)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {_BINARY}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
