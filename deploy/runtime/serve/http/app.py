"""The Starlette application: which path is answered by what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .....volumes.prompts import KINDS
from ...package import Package
from ..spool import Spool
from ..worker import Worker
from .access import Access
from .jobs import Jobs
from .metrics import exposition
from .options import HttpOptions
from .page_files import page_files
from .refusals import HANDLERS, Refusal
from .scans import Scan, Scans, fitting, shown
from .sessions import Sessions
from .uploads import Uploads

ID_LENGTH = 16  # digits of a manifest's digest that the page knows a package by
_NIFTI, _DICOM = "application/gzip", "application/dicom"
_LARGEST_JSON = 4 << 20  # bytes


class Api:
    """What the routes call. `answers` counts them by their status."""

    def __init__(
        self, options: HttpOptions, *, spool: Spool, worker: Worker, scans: Scans, packages: Mapping[str, Package]
    ):
        limits = options.limits
        self._spool, self._worker, self._scans, self._packages = spool, worker, scans, packages
        self._by_id = {digest[:ID_LENGTH]: package for digest, package in packages.items()}
        self._limits = limits
        channels = max(package.in_channels for package in packages.values())
        self._uploads = Uploads(scans, limits=limits, free=spool.free_bytes, channels=channels)
        self.jobs = Jobs(spool=spool, worker=worker, scans=scans, packages=packages, limits=limits)
        self.sessions = Sessions(worker, scans, most_bytes=limits.sessions, most_calls=limits.calls)
        self.answers: Counter[int] = Counter()

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/page/{name:path}", self.page_file),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/api/packages", self.packages),
            Route("/api/scans", self.upload, methods=["POST"]),
            Route("/api/scans/{scan}", self.scan, methods=["GET"]),
            Route("/api/scans/{scan}", self.remove_scan, methods=["DELETE"]),
            Route("/api/scans/{scan}/image", self.image),
            Route("/api/scans/{scan}/prompts", self.prompt, methods=["POST"]),
            Route("/api/scans/{scan}/session", self.session),
            Route("/api/jobs", self.begin, methods=["POST"]),
            Route("/api/jobs/{job}", self.job, methods=["GET"]),
            Route("/api/jobs/{job}", self.cancel, methods=["DELETE"]),
            Route("/api/jobs/{job}/mask", self.mask),
            Route("/api/jobs/{job}/seg", self.seg),
            Route("/api/jobs/{job}/report", self.report),
        ]

    # The page and what a monitor asks.

    async def page(self, request: Request) -> Response:
        return _file("index.html")

    async def page_file(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    async def health(self, request: Request) -> Response:
        waiting = len(self._worker.waiting())
        if not self._worker.is_alive:
            raise Refusal(503, "The worker has ended. Start the server again.")
        if self._spool.free_bytes() < self._limits.reserve:
            raise Refusal(503, "The disk of the spool is nearly full. Make room on it.")
        return JSONResponse({"status": "ok", "waiting": waiting})

    async def metrics(self, request: Request) -> Response:
        text = exposition(
            self._worker, answers=self.answers, scans=len(self._scans.ids()), free=self._spool.free_bytes()
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    # Packages and scans.

    async def packages(self, request: Request) -> Response:
        return JSONResponse([_shown(package, self._limits.upload) for package in self._packages.values()])

    async def upload(self, request: Request) -> Response:
        scans = await self._uploads.take(request)
        return JSONResponse({"scans": [self._scan_shown(scan) for scan in scans]}, 201)

    async def scan(self, request: Request) -> Response:
        """What the upload said, with the moment the scan expires as it is now; asking is no use of the scan."""
        return JSONResponse(self._scan_shown(self._scans.get(request.path_params["scan"])))

    async def remove_scan(self, request: Request) -> Response:
        scan = self._scans.get(request.path_params["scan"])
        await run_in_threadpool(self.forget, scan.id)
        return Response(status_code=204)

    async def image(self, request: Request) -> Response:
        scan = self._used(request)
        channel = request.query_params.get("channel", "0")
        if not channel.isdecimal() or len(channel) > 6:
            raise Refusal(400, f"channel {channel[:40]!r}: expected a number, counted from 0.")
        path = await run_in_threadpool(self._scans.image, scan, channel=int(channel))
        return FileResponse(path, media_type=_NIFTI)

    async def prompt(self, request: Request) -> Response:
        scan, content = self._used(request), await _json_object(request)
        package = self._package(content.get("package"))
        body = json.dumps(content.get("prompts")).encode()
        as_seg = _as_seg(request)
        answer = await run_in_threadpool(self.sessions.answer, scan, package, body, as_seg=as_seg)
        headers = {"X-Volumes-Ml": json.dumps(answer.volumes_ml), "X-Seconds": f"{answer.seconds:.3f}"}
        return Response(answer.mask, media_type=_DICOM if as_seg else _NIFTI, headers=headers)

    async def session(self, request: Request) -> Response:
        package = self._package(request.query_params.get("package"))
        return JSONResponse(self.sessions.state(self._used(request), package))

    # Jobs.

    async def begin(self, request: Request) -> Response:
        content = await _json_object(request)
        scan, package = self._scans.get(str(content.get("scan"))), self._package(content.get("package"))
        id = await run_in_threadpool(self.jobs.submit, scan, package.manifest.digest)
        return JSONResponse({"id": id}, 201)

    async def job(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.jobs.shown, request.path_params["job"]))

    async def cancel(self, request: Request) -> Response:
        await run_in_threadpool(self.jobs.cancel, request.path_params["job"])
        return Response(status_code=204)

    async def mask(self, request: Request) -> Response:
        return FileResponse(await run_in_threadpool(self.jobs.mask, request.path_params["job"]), media_type=_NIFTI)

    async def seg(self, request: Request) -> Response:
        path = await run_in_threadpool(self.jobs.seg, request.path_params["job"])
        return FileResponse(path, media_type=_DICOM)

    async def report(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.jobs.report, request.path_params["job"]))

    def forget(self, scan_id: str) -> None:
        """Remove a scan with its jobs and its sessions."""
        self.jobs.forget(scan_id)
        self._scans.remove(scan_id)
        self.sessions.forget(scan_id)

    def _used(self, request: Request) -> Scan:
        scan = self._scans.get(request.path_params["scan"])
        self._scans.touch(scan.id)
        return scan

    def _package(self, id: object) -> Package:
        package = self._by_id.get(id) if isinstance(id, str) else None
        if package is None:
            raise Refusal(404, f"package {str(id)[:40]!r}: is not served here; GET /api/packages lists those that are.")
        return package

    def _scan_shown(self, scan: Scan) -> dict[str, Any]:
        fits = [digest[:ID_LENGTH] for digest in fitting(scan, self._packages)]
        return shown(scan, fits=fits, expires=self._scans.expires(scan.id))


def application(api: Api, options: HttpOptions) -> Starlette:
    """The whole of it, with the access rules in front."""
    middleware = [Middleware(Counted, answers=api.answers), Middleware(Access, options=options)]
    return Starlette(routes=api.routes(), middleware=middleware, exception_handlers=HANDLERS)  # pyright: ignore[reportArgumentType]


class Counted:
    """ASGI middleware that counts the answers by their status."""

    def __init__(self, app: ASGIApp, answers: Counter[int]):
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, sending)


def _file(name: str) -> Response:
    content = page_files().get(name)
    if content is None:
        raise Refusal(404, "There is no such file of the page.")
    return Response(content[0], media_type=content[1], headers={"Cache-Control": "no-cache"})


def _shown(package: Package, max_upload: int) -> dict[str, Any]:
    manifest = package.manifest
    return {
        "id": manifest.digest[:ID_LENGTH],
        "name": manifest.name,
        "description": manifest.description.text or manifest.description.dataset,
        "modality": ", ".join(package.channel_names),
        "channels": package.channel_names or [f"channel {number}" for number in range(package.in_channels)],
        "classes": [
            {"index": value, "name": entry.name, "color": list(entry.colour)}
            for value, entry in manifest.classes.items()
            if value
        ],
        "prompt_kinds": [kind for kind in sorted(KINDS) if kind in package.prompt_kinds],
        "prompts_required": package.prompts_required,
        "points": manifest.prompts.points if manifest.prompts else 0,
        "max_upload": max_upload,
    }


def _as_seg(request: Request) -> bool:
    """Whether a mask is asked for as DICOM-SEG. Refusal 400."""
    kind = request.query_params.get("as", "nifti")
    if kind not in ("nifti", "seg"):
        raise Refusal(400, f"as={kind[:40]!r}: expected nifti or seg.")
    return kind == "seg"


async def _json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Refusal 400, 413."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_JSON:
            raise Refusal(413, f"The body is larger than {_LARGEST_JSON >> 20} MB; expected a short JSON object.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body is no JSON; expected an object such as the documentation shows.") from error
    if not isinstance(content, dict):
        raise Refusal(400, "The body is JSON, but no object; expected one such as the documentation shows.")
    return content
