"""The body of an upload (multipart/form-data), written to the disk as it comes, under limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from .limited import Room
from .names import judged
from .options import Limits
from .refusals import Refusal

_SLOWEST = 16_384  # bytes a second of a body, on the whole
_LONGEST_TEXT = 1 << 20  # bytes
_DRAINED = 32 << 20  # bytes that are read of a body that is refused, lest its sender miss the answer


@dataclass(frozen=True)
class Part:
    """A file of the body: the field it came in, what the user calls it, and where it lies."""

    field: str
    name: PurePosixPath
    path: Path


@dataclass(frozen=True)
class Form:
    """The body of a request: its files on the disk, and its short texts by their fields."""

    parts: list[Part] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


async def receive(
    request: Request,
    folder: Path,
    *,
    limits: Limits,
    room: Room,
    files: Collection[str] = ("files",),
    texts: Collection[str] = (),
    flat: bool = False,
) -> Form:
    """Write the files of a request into `folder`; `files` and `texts` are the fields that it may have.

    `flat` takes only the last part of each name: MONAI Label's clients send whole paths of theirs.

    Raises Refusal, OSError; ClientDisconnect.
    """
    kind, values = parse_options_header(request.headers.get("content-type", ""))
    boundary = values.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Refusal(
            400, f"The body is no form of files; expected multipart/form-data with parts named {_quoted(files)}."
        )
    writer = _Writer(folder, room, files=files, texts=texts, flat=flat)
    try:
        parser = MultipartParser(boundary, writer.callbacks())  # pyright: ignore[reportArgumentType]
        async for chunk in _patient(request, limits):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "The body is a damaged multipart/form-data. Send it again.") from error
    finally:
        writer.close()
    if not writer.ended:
        raise Refusal(400, "The body ends before its last boundary. Send it again.")
    return Form(writer.parts, {name: text.decode("utf-8", "replace") for name, text in writer.texts.items()})


async def drain(request: Request, *, limits: Limits) -> None:
    """Read the rest of a body that is refused, if it is short: its sender then hears why."""
    if not int(request.headers.get("content-length") or 0) <= _DRAINED:
        return
    left = _DRAINED
    try:
        async for chunk in _patient(request, limits):
            left -= len(chunk)
            if left < 0:
                return
    except Exception:  # it was refused already
        return


async def _patient(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """The chunks of a body, up to the limit in bytes. Refusal 408 for one that stops or trickles."""
    stream, started, count = request.stream(), time.monotonic(), 0
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), limits.patience)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Refusal(408, f"Nothing of the body came for {limits.patience:g} s. Send it again.") from error
        count += len(chunk)
        if count > limits.upload:
            raise too_large(limits)
        if time.monotonic() - started > limits.patience + count / _SLOWEST:
            raise Refusal(408, f"The body comes slower than {_SLOWEST // 1024} kB a second. Send it again.")
        if chunk:
            yield chunk


def too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The upload is larger than {limits.upload / 1e9:.1f} GB. Upload fewer scans at once.")


def _quoted(names: Collection[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


class _Writer:
    """What the parser calls: headers are collected, files written."""

    def __init__(self, folder: Path, room: Room, *, files: Collection[str], texts: Collection[str], flat: bool):
        self.parts: list[Part] = []
        self.texts: dict[str, bytearray] = {}
        self._text: bytearray | None = None
        self._names, self._flat = (files, texts), flat
        self.ended = False
        self._folder, self._room = folder, room
        self._file: IO[bytes] | None = None
        self._field, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> dict[str, object]:
        return {name.removeprefix("_"): getattr(self, name) for name in dir(self) if name.startswith("_on_")}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_part_begin(self) -> None:
        self._field, self._value, self._disposition = b"", b"", b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, values = parse_options_header(self._disposition)
        raw, field = values.get(b"filename"), values.get(b"name", b"").decode("utf-8", "replace")
        files, texts = self._names
        if raw is None and field in texts:
            self._text = self.texts[field] = bytearray()
            return
        if raw is None or field not in files:
            known = _quoted((*files, *texts))
            raise Refusal(400, f"The form has a part named {field[:40]!r}; expected files named {known} alone.")
        given = raw.decode("utf-8", "replace")
        name = judged(given.replace("\\", "/").rpartition("/")[2] if self._flat else given)
        self._room.take_file()
        path = self._folder / f"part-{len(self.parts)}"
        self._file = path.open("wb")
        self.parts.append(Part(field, name, path))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._room.take(end - start)
        if self._text is not None:
            if len(self._text) + end - start > _LONGEST_TEXT:
                raise Refusal(413, f"A text in the form is longer than {_LONGEST_TEXT >> 20} MB.")
            self._text += data[start:end]
            return
        assert self._file is not None
        self._file.write(data[start:end])

    def _on_part_end(self) -> None:
        self._text = None
        self.close()

    def _on_end(self) -> None:
        self.ended = True
