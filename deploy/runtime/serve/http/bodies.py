"""The bodies of requests that carry no files: short, and read whole."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from .refusals import Refusal

_LARGEST = 4 << 20  # bytes


async def short_body(request: Request) -> bytes:
    """The body. Refusal 413."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            raise Refusal(413, f"The body is larger than {_LARGEST >> 20} MB; expected a short JSON object.")
    return body


def json_object(text: bytes | str, *, what: str = "The body") -> dict[str, Any]:
    """A text as a JSON object. Refusal 400."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{what} is no JSON; expected an object such as the documentation shows.") from error
    if not isinstance(content, dict):
        raise Refusal(400, f"{what} is JSON, but no object; expected one such as the documentation shows.")
    return content
