"""Access: who may use the server, by API keys and by the short-lived secrets that it gives out."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers

from innervoice.server.errors import ApiError
from innervoice.server.signer import Signer

KEY_PROTOCOL = "openai-insecure-api-key."  # sub-protocol of browsers, which cannot set headers
SECRET_PREFIX = "ek_"
SECRET_KIND = "client_secret"


@dataclass(frozen=True)
class Grant:
    """Leave to use the server. presets: the session of a client secret, with which only a session is opened."""

    is_secret: bool = False
    presets: Mapping[str, Any] = field(default_factory=dict)


class Access:
    """Checks the credentials of requests. Without keys everything is granted, but for a secret that has expired."""

    def __init__(self, api_keys: Sequence[str], signer: Signer) -> None:
        self._keys = [key.encode() for key in api_keys]
        self._signer = signer

    def grant(self, headers: Headers, protocols: Sequence[str] = ()) -> Grant:
        """Read a request's credentials. Raises ApiError (401) without a valid one.

        protocols: the sub-protocols that a WebSocket was opened with.
        """
        given = _credential(headers, protocols)
        if given is None:
            if self._keys:
                raise _refused("no API key was given: send it as `Authorization: Bearer KEY`")
            return Grant()
        if given.startswith(SECRET_PREFIX):
            return self._grant_secret(given)
        sent = given.encode()
        matches = [hmac.compare_digest(sent, key) for key in self._keys]  # all, so that the time says nothing
        if self._keys and not any(matches):
            raise _refused("the API key is not one of this server's")
        return Grant()

    def grant_key(self, headers: Headers) -> None:
        """Check a request that a client secret is not good for. Raises ApiError (401)."""
        if self.grant(headers).is_secret and self._keys:
            raise _refused("a client secret opens sessions and nothing else: use an API key")

    def make_secret(self, session: Mapping[str, Any], expires_at: int) -> str:
        """Return a client secret for sessions with these presets, until this time (seconds since 1970)."""
        return SECRET_PREFIX + self._signer.sign(SECRET_KIND, {"session": session}, expires_at)

    def _grant_secret(self, given: str) -> Grant:
        try:
            payload = self._signer.read(SECRET_KIND, given.removeprefix(SECRET_PREFIX))
        except ValueError as error:
            raise _refused(f"the client secret is refused: {error}") from None
        return Grant(is_secret=True, presets=payload["session"])


def _credential(headers: Headers, protocols: Sequence[str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if headers.get("api-key"):
        return headers["api-key"]
    keys = [name.removeprefix(KEY_PROTOCOL) for name in protocols if name.startswith(KEY_PROTOCOL)]
    return keys[0] if keys and keys[0] else None


def _refused(message: str) -> ApiError:
    return ApiError("invalid_api_key", message, status=401)
