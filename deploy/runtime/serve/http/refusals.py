"""What is answered instead: an HTTP status and one sentence as JSON, {"error": ...}; nothing of it is logged."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .....errors import MissingExtraError, OutputError, SamkdError

RETRY_AFTER = 5  # seconds
_LOG = logging.getLogger("samkd.serve")


class Refusal(Exception):
    """An answer that is no success: its status, and what is wrong, where, what was expected, what to do next."""

    def __init__(self, status: int, error: str):
        super().__init__(error)
        self.status, self.error = status, error


def refused(status: int, error: str) -> JSONResponse:
    """503 says when to come again; 408 and 413 end the connection, whose request nobody reads to its end."""
    headers = {"Cache-Control": "no-store"}
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER)
    if status in (408, 413, 503):
        headers["Connection"] = "close"
    return JSONResponse({"error": error}, status, headers)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error.status, error.error)


async def _fault(request: Request, error: Exception) -> Response:
    if isinstance(error, OutputError):
        return refused(503, "The server cannot write to its disk. Try again later, or tell who runs it.")
    return refused(501 if isinstance(error, MissingExtraError) else 400, str(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(error.status_code, error.detail)


async def _disconnected(request: Request, error: Exception) -> Response:
    return refused(400, "The request ended before its body.")


async def _unexpected(request: Request, error: Exception) -> Response:
    _LOG.error("error: page: %s in samkd, a fault of its own", type(error).__name__)  # its words may be a patient's
    return refused(500, f"{type(error).__name__} in samkd, a fault of its own. Tell who runs the server.")


HANDLERS = {
    Refusal: _refusal,
    SamkdError: _fault,
    HTTPException: _http,
    ClientDisconnect: _disconnected,
    Exception: _unexpected,
}
