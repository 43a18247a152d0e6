"""Uploads: from the body of a request to scans that the strict readers take."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from .....errors import BadInputError
from .....volumes.io.scans import find_scans, group_channels
from .archives import is_archive, unpack
from .limited import Room
from .multipart import Form, Part, drain, receive, too_large
from .names import OwnNames
from .options import Limits
from .refusals import Refusal
from .scans import Scan, Scans


class Uploads:
    """Takes so many at once; of each, nothing stays unless all its scans can be read."""

    def __init__(self, scans: Scans, *, limits: Limits, free: Callable[[], int], channels: int):
        """`free` says what the disk has left; `channels` is what the packages take at most."""
        self._scans, self._limits, self._free, self._channels = scans, limits, free, channels
        self._open = 0

    async def take(self, request: Request) -> list[Scan]:
        """The scans of a request. Raises Refusal, BadInputError, OutputError, OSError."""
        async with self.form(request) as form:
            return await run_in_threadpool(self.scans_of, form.parts)

    @asynccontextmanager
    async def form(
        self,
        request: Request,
        *,
        files: Collection[str] = ("files",),
        texts: Collection[str] = (),
        flat: bool = False,
    ) -> AsyncIterator[Form]:
        """What a request holds, while the block runs. Raises Refusal, OutputError, OSError."""
        try:
            self._refuse_early(request)
            self._open += 1
            draft = self._scans.draft()
            try:
                room = Room(bytes=self._limits.upload, files=self._limits.files, free=self._left)
                yield await receive(request, draft, limits=self._limits, room=room, files=files, texts=texts, flat=flat)
            finally:
                self._open -= 1
                await run_in_threadpool(shutil.rmtree, draft, ignore_errors=True)
        except Exception as error:
            if not isinstance(error, Refusal) or error.status != 408:
                await drain(request, limits=self._limits)
            raise

    def _refuse_early(self, request: Request) -> None:
        """Refuse what the headers show to be too much, before a byte of it is read."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal():
            raise Refusal(400, f"Content-Length is {length[:40]!r}; expected a number.")
        if int(length) > self._limits.upload:
            raise too_large(self._limits)
        if self._open >= self._limits.uploads:
            raise Refusal(503, f"{self._open} uploads are under way. Try again in a moment.")
        if self._left() < int(length):
            raise Refusal(503, "The server's disk is nearly full. Try again later, or tell who runs it.")

    def _left(self) -> int:
        return self._free() - self._limits.reserve

    def scans_of(self, parts: Sequence[Part]) -> list[Scan]:
        """Unpack files that were received, and keep their scans: all, or none. Refusal, BadInputError, OutputError."""
        if not parts:
            raise Refusal(400, 'The form holds no file; expected parts named "files".')
        draft = parts[0].path.parent
        files, names = draft / "files", OwnNames()
        files.mkdir()
        room = Room(bytes=self._limits.expanded, files=self._limits.files, free=self._left)
        for part in parts:
            if is_archive(part.name):
                unpack(part.path, files, name=str(part.name), names=names, room=room)
            else:
                room.take_file()
                part.path.rename(files / names.name(part.name))
        kept: list[Scan] = []
        try:
            for source in group_channels(find_scans([files]), channels=self._channels):
                kept.append(self._scans.add(source, name=names.original[source.files[0].name]))
        except BaseException as error:
            for scan in kept:
                self._scans.remove(scan.id)
            if isinstance(error, BadInputError):
                raise type(error)(names.restored(str(error), files)) from error
            raise
        return kept
