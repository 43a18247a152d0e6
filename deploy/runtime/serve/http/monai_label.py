"""MONAI Label's REST interface: 3D Slicer's MONAI Label module, MITK and OHIF's plugin find the packages through it.

A scan is an image of the datastore, or a session that its client alone knows. Inference goes through the queue of all
doors, or, with points, through the sessions of the page. What is no inference (training, active learning, scoring,
whole slides) is refused by name.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .....volumes.io.scans import bare_name, is_nifti
from ...package import Package
from .bodies import json_object, short_body
from .jobs import Jobs
from .monai_models import SEGMENTATION, Model, clicks_of, models_of
from .monai_result import OUTPUTS, answer, checked
from .monai_store import FINAL, Datastore
from .refusals import Refusal
from .scans import Scan, Scans
from .sessions import Sessions
from .uploads import Uploads

_LOOK = 0.1  # seconds between two looks whether a job is done
_BINARY = "application/octet-stream"
_TEXTS = ("params", "client_id")


class MonaiLabel:
    """The routes. Access and limits are those of the whole server."""

    def __init__(
        self,
        *,
        scans: Scans,
        uploads: Uploads,
        jobs: Jobs,
        sessions: Sessions,
        packages: Mapping[str, Package],
        token: str | None,
        forget: Callable[[str], None],
    ):
        self._scans, self._uploads, self._jobs, self._sessions = scans, uploads, jobs, sessions
        self._models = models_of(packages)
        self._store = Datastore(scans, forget=forget)
        self._token, self._forget = token, forget

    def routes(self) -> list[Route]:
        absent = ("activelearning", "train", "scoring", "batch")
        return [
            Route("/auth/", self.auth),
            Route("/auth/token", self.log_in, methods=["POST"]),
            Route("/auth/token/valid", self.logged_in),
            Route("/info/", self.info),
            Route("/infer/{model}", self.infer, methods=["POST"]),
            Route("/datastore/", self.datastore),
            Route("/datastore/", self.add_image, methods=["PUT"]),
            Route("/datastore/", self.remove_image, methods=["DELETE"]),
            Route("/datastore/image", self.image),
            Route("/datastore/image", self.add_image, methods=["PUT"]),
            Route("/datastore/image", self.remove_image, methods=["DELETE"]),
            Route("/datastore/image/info", self.image_info),
            Route("/datastore/label", self.label),
            Route("/datastore/label", self.save_label, methods=["PUT"]),
            Route("/datastore/label", self.remove_label, methods=["DELETE"]),
            Route("/session/", self.begin, methods=["PUT"]),
            Route("/session/{session}", self.session),
            Route("/session/{session}", self.end, methods=["DELETE"]),
            *(Route(f"/{name}/{{rest:path}}", self.absent, methods=["GET", "POST", "DELETE"]) for name in absent),
        ]

    # Who gets in: the token of this server is the password of whatever user.

    async def auth(self, request: Request) -> Response:
        return JSONResponse({"enabled": self._token is not None})

    async def log_in(self, request: Request) -> Response:
        form = parse_qs((await short_body(request)).decode("utf-8", "replace"))
        password = form.get("password", [""])[0]
        if self._token is None or not secrets.compare_digest(password.encode(), self._token.encode()):
            raise Refusal(401, "Password: wrong. Give the server's token as the password, and any user name.")
        return JSONResponse({"access_token": self._token, "token_type": "bearer"})

    async def logged_in(self, request: Request) -> Response:
        return JSONResponse({})  # or it had not come so far

    # Models.

    async def info(self, request: Request) -> Response:
        labels = dict.fromkeys(name for model in self._models.values() for name in model.labels)
        return JSONResponse(
            {
                "name": "samkd",
                "description": "Packages of samkd",
                "version": "0.8.5",  # of the interface
                "labels": list(labels),
                "models": {name: model.info() for name, model in self._models.items()},
                "trainers": {},
                "strategies": {},
                "scoring": {},
                "train_stats": {},
                "datastore": await run_in_threadpool(self._store.stats),
            }
        )

    async def infer(self, request: Request) -> Response:
        model, output = self._model(request.path_params["model"]), request.query_params.get("output") or "all"
        if output not in OUTPUTS:
            raise Refusal(400, f"output {output[:40]!r}: choose one of {', '.join(OUTPUTS)}.")
        async with self._uploads.form(request, files=("file", "label"), texts=_TEXTS, flat=True) as form:
            params = json_object(form.texts.get("params") or "{}", what="params")
            checked(params)
            if any(part.field == "label" for part in form.parts):
                raise Refusal(400, "label: no package takes scribbles. Give points, or nothing.")
            uploaded = await run_in_threadpool(self._one_scan, form.parts) if form.parts else None
        try:
            scan = uploaded or await run_in_threadpool(self._asked_for, request)
            if model.type == SEGMENTATION:
                return await self._segmented(scan, model, params, output)
            return await run_in_threadpool(self._clicked, scan, model, params, output)
        finally:
            if uploaded is not None:
                await run_in_threadpool(self._forget, uploaded.id)

    async def _segmented(self, scan: Scan, model: Model, params: Mapping[str, Any], output: str) -> Response:
        """Through the queue. Refusal 409, 503; 400 when the scan cannot be segmented."""
        id = await run_in_threadpool(self._jobs.submit, scan, model.package.manifest.digest)
        while (job := await run_in_threadpool(self._jobs.shown, id))["state"] in ("waiting", "running"):
            await asyncio.sleep(_LOOK)
        if job["state"] == "failed":
            raise Refusal(400, str(job["error"]))
        if output == "dicom_seg":
            path = await run_in_threadpool(self._jobs.seg, id)
            return Response(await run_in_threadpool(path.read_bytes), media_type="application/dicom")
        mask = await run_in_threadpool(self._jobs.mask, id)
        return await run_in_threadpool(self._answer, scan, model, mask.read_bytes(), params, output)

    def _clicked(self, scan: Scan, model: Model, params: Mapping[str, Any], output: str) -> Response:
        """Through the sessions of the page. Raises Refusal, BadInputError, UsageError."""
        clicks, as_seg = clicks_of(params, model), output == "dicom_seg"
        body = json.dumps(clicks.prompts).encode()
        clicked = self._sessions.answer(scan, model.package, body, as_seg=as_seg)
        if as_seg:
            return Response(clicked.mask, media_type="application/dicom")
        return self._answer(scan, model, clicked.mask, params, output, only=clicks.only)

    def _answer(
        self, scan: Scan, model: Model, mask: bytes, params: Mapping[str, Any], output: str, only: int | None = None
    ) -> Response:
        folder = self._scans.folder(scan.id)
        return answer(mask, folder=folder, labels=model.labels, params=params, output=output, only=only)

    def _model(self, name: str) -> Model:
        if name not in self._models:
            raise Refusal(404, f"model {name[:40]!r}: is not served here; it is one of {', '.join(self._models)}.")
        return self._models[name]

    def _asked_for(self, request: Request) -> Scan:
        session, image = (request.query_params.get(name) for name in ("session_id", "image"))
        if session:
            return self._scans.get(session)
        if not image:
            raise Refusal(400, "Nothing to segment: give image=, session_id= or a file.")
        return self._store.find(image)

    def _one_scan(self, parts: Any) -> Scan:
        """The scan that was uploaded. Refusal 400 for several, of which nothing stays."""
        scans = self._uploads.scans_of(parts)
        if len(scans) == 1:
            return scans[0]
        for scan in scans:
            self._forget(scan.id)
        raise Refusal(400, f"The upload holds {len(scans)} scans; expected the files of one.")

    # The datastore.

    async def datastore(self, request: Request) -> Response:
        output = request.query_params.get("output") or "stats"
        if output not in ("stats", "all"):
            raise Refusal(400, f"output {output[:40]!r}: choose one of stats, all.")
        return JSONResponse(await run_in_threadpool(self._store.shown if output == "all" else self._store.stats))

    async def add_image(self, request: Request) -> Response:
        async with self._uploads.form(request, files=("file",), texts=_TEXTS, flat=True) as form:
            scan = await run_in_threadpool(self._one_scan, form.parts)
            name = request.query_params.get("image") or bare_name(Path(form.parts[0].name.name))
        await run_in_threadpool(self._store.add, scan, name)
        return JSONResponse({"image": name})

    async def remove_image(self, request: Request) -> Response:
        scan = await self._found(request, "id")
        await run_in_threadpool(self._forget, scan.id)
        return JSONResponse({})

    async def image(self, request: Request) -> Response:
        scan = await self._found(request, "image")
        return await run_in_threadpool(self._image_file, scan, request.query_params.get("image", scan.id))

    async def image_info(self, request: Request) -> Response:
        return JSONResponse(self._store.info(await self._found(request, "image")))

    async def save_label(self, request: Request) -> Response:
        scan = await self._found(request, "image")
        async with self._uploads.form(request, files=("label",), texts=_TEXTS, flat=True) as form:
            if len(form.parts) != 1 or not is_nifti(Path(form.parts[0].name.name)):
                raise Refusal(400, "label: expected one mask as .nii or .nii.gz.")
            params = json_object(form.texts.get("params") or "{}", what="params")
            file = form.parts[0].path
            named = file.rename(file.with_name(f"label{'.nii.gz' if _is_packed(form.parts[0].name.name) else '.nii'}"))
            tag = request.query_params.get("tag") or FINAL
            await run_in_threadpool(lambda: self._store.save_label(scan, named, tag=tag, params=params))
        image = request.query_params["image"]
        return JSONResponse({"image": image, "label": image})

    async def label(self, request: Request) -> Response:
        scan = await self._found(request, "label")
        path = await run_in_threadpool(self._store.label, scan, request.query_params.get("tag") or FINAL)
        return FileResponse(path, media_type=_BINARY, filename=f"{request.query_params['label']}.nii.gz")

    async def remove_label(self, request: Request) -> Response:
        scan = await self._found(request, "id")
        await run_in_threadpool(self._store.remove_label, scan, request.query_params.get("tag") or FINAL)
        return JSONResponse({})

    async def _found(self, request: Request, key: str) -> Scan:
        return await run_in_threadpool(self._store.find, request.query_params.get(key, ""))

    def _image_file(self, scan: Scan, name: str) -> Response:
        """The file as it came, where it is one NIfTI; else a NIfTI of the scan."""
        first = self._scans.paths(scan)[0]
        path = first if len(scan.files) == 1 and is_nifti(first) else self._scans.image(scan, channel=0)
        suffix = ".nii.gz" if _is_packed(path.name) else ".nii"
        return FileResponse(path, media_type=_BINARY, filename=f"{name}{suffix}")

    # Sessions: scans that nobody but their client can name.

    async def begin(self, request: Request) -> Response:
        async with self._uploads.form(request, texts=_TEXTS, flat=True) as form:
            scan = await run_in_threadpool(self._one_scan, form.parts)
        return JSONResponse({"session_id": scan.id, "session_info": self._session_info(scan)})

    async def session(self, request: Request) -> Response:
        scan = self._scans.get(request.path_params["session"])
        self._scans.touch(scan.id)
        if request.query_params.get("image", "").lower() == "true":
            return await run_in_threadpool(self._image_file, scan, scan.id)
        return JSONResponse(self._session_info(scan))

    async def end(self, request: Request) -> Response:
        scan = self._scans.get(request.path_params["session"])
        info = self._session_info(scan)
        await run_in_threadpool(self._forget, scan.id)
        return JSONResponse(info)

    def _session_info(self, scan: Scan) -> dict[str, Any]:
        """Where the file lies is nobody's business."""
        return {"name": scan.name, "path": "", "image": scan.name, "meta": {}, "expires": self._scans.expires(scan.id)}

    async def absent(self, request: Request) -> Response:
        task = request.url.path.split("/")[1]
        raise Refusal(501, f"{task}: this server segments, and does nothing else. Train and choose samples elsewhere.")


def _is_packed(name: str) -> bool:
    return name.lower().endswith(".gz")
