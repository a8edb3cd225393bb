"""Signer: tokens that carry their content, signed, so that a server needs no store for them."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

_DIGEST_LEN = 32


class Signer:
    """Signs with HMAC-SHA256 under a secret of the server. kind: a token of one kind is none of another."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock

    def sign(self, kind: str, payload: Mapping[str, Any], expires_at: int | None = None) -> str:
        """Return a token of letters, digits, - and _. expires_at: seconds since 1970, None: never."""
        body = json.dumps({"exp": expires_at, "data": payload}, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._digest(kind, body) + body).rstrip(b"=").decode()

    def read(self, kind: str, token: str) -> dict[str, Any]:
        """Return the payload. Raises ValueError for a token of others, and for one that has expired."""
        try:
            raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except ValueError:
            raw = b""
        given, body = raw[:_DIGEST_LEN], raw[_DIGEST_LEN:]
        if not hmac.compare_digest(given, self._digest(kind, body)):
            raise ValueError("the token was not made by this server: ask for a new one")
        content = json.loads(body)
        if content["exp"] is not None and content["exp"] <= self._clock():
            raise ValueError("the token has expired: ask for a new one")
        payload: dict[str, Any] = content["data"]
        return payload

    def _digest(self, kind: str, body: bytes) -> bytes:
        return hmac.digest(self._secret, kind.encode() + b"\0" + body, sha256)
