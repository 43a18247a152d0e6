"""Who gets in: by the name the server is called by, the page a request comes from, and the token."""

from __future__ import annotations

import ipaddress
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .options import HttpOptions, is_loopback
from .refusals import refused

COOKIE = "samkd"
_OURS = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/health",)  # without a token: whoever watches the server has none
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Access:
    """ASGI middleware in front of everything: refuses a request or passes it on, and adds the security headers."""

    def __init__(self, app: ASGIApp, options: HttpOptions):
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if "Cache-Control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, sending)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return refused(421, "Host: this server is not called that. Use the address that it printed, or --names.")
        if scope["method"] not in _SAFE and not _same_origin(headers, host):
            return refused(403, "Origin: another site's page may change nothing here. Use this server's own page.")
        return self._without_token(scope, headers)

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server: any other name would be a page that turned its own name to us."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        options = self._options
        if name in (*_OURS, options.host.lower(), *(each.lower() for each in options.names)):
            return True
        return not is_loopback(options.host) and _is_address(name)  # no page can turn a number to us

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """401, or the answer to `GET /?token=T`, which sets the cookie; None for a request that may go on."""
        token = self._options.token
        if token is None or scope["path"] in _OPEN:
            return None
        if scope["path"] == "/" and scope["method"] == "GET":
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
            if asked and _equal(asked[0], token):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(
                    COOKIE, token, httponly=True, samesite="strict", secure=self._options.cert is not None, path="/"
                )
                return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(bearer.strip(), token):
            return None
        if _equal(_cookie(headers), token):
            return None
        answer = refused(401, "Token: missing or wrong. Open the address that the server printed, with its ?token=.")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_origin(headers: Headers, host: str) -> bool:
    """Whether a request that changes something comes from this server's page, or from no browser at all."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def _cookie(headers: Headers) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())
