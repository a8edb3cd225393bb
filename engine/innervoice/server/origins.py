"""Origins: which web pages may use the server, and under which names it may be called.

A page of any site can open a WebSocket to a server on its visitor's machine, and can make the browser believe
that a name of its own is this machine (DNS rebinding); so both are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from innervoice.server.errors import ApiError
from innervoice.server.http_answers import refusal
from innervoice.server.options import ServerOptions, is_loopback

LOOPBACK_ORIGINS = r"https?://(localhost|[\w-]+\.localhost|127(\.\d+){3}|\[::1\])(:\d+)?"
_PORTS = {"http": 80, "https": 443}


class Origins:
    """Allows pages of the server itself, of loopback addresses and of a list."""

    def __init__(self, allowed: Sequence[str], *, on_loopback: bool) -> None:
        self._allowed = set(allowed)
        self._names = {urlsplit(origin).hostname for origin in allowed if origin != "*"}
        self._on_loopback = on_loopback

    @classmethod
    def of(cls, options: ServerOptions) -> Origins:
        """The rules of a server."""
        return cls(options.allow_origins, on_loopback=options.is_loopback)

    def check(self, headers: Headers) -> None:
        """Raise ApiError (403) for a request from a foreign page, or under a foreign name of this machine."""
        host = urlsplit(f"//{headers.get('host', '')}")
        if self._on_loopback and not self._knows(host.hostname or ""):
            raise ApiError(
                "invalid_host",
                f"the server listens on loopback and was called as {host.hostname!r}: call it as 127.0.0.1, or "
                "start it with --allow-origin https://NAME",
                status=403,
            )
        origin = headers.get("origin")
        if origin is not None and not self.allows(origin, host.netloc):
            raise ApiError(
                "invalid_origin",
                f"pages of {origin} may not use this server: start it with --allow-origin {origin}",
                status=403,
            )

    def allows(self, origin: str, host: str) -> bool:
        """Whether pages of this origin may use the server, which they call by this host and port."""
        if "*" in self._allowed or origin in self._allowed:
            return True
        parts = urlsplit(origin)
        if parts.scheme not in _PORTS or not parts.hostname:
            return False
        return is_loopback(parts.hostname) or _address(parts.netloc, parts.scheme) == _address(
            host, parts.scheme
        )

    def _knows(self, name: str) -> bool:
        return "*" in self._allowed or is_loopback(name) or name in self._names


def _address(netloc: str, scheme: str) -> tuple[str | None, int]:
    parts = urlsplit(f"//{netloc}")
    return parts.hostname, parts.port or _PORTS[scheme]


class CheckOrigins:
    """ASGI middleware that answers 403 to requests that `Origins` refuses."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            try:
                self._origins.check(Headers(scope=scope))
            except ApiError as error:
                if scope["type"] == "websocket":
                    await WebSocket(scope, receive, send).send_denial_response(refusal(error))
                else:
                    await refusal(error)(scope, receive, send)
                return
            except ValueError:  # a host or origin that is no address
                await refusal(ApiError("invalid_host", "the Host header is no address", status=400))(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)
