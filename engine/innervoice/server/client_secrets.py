"""Client secrets: short-lived keys that a page may have, each for sessions with settings of its own."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from innervoice.server.access import Access
from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol import beta
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.session_config import SessionConfig

LEAST_S, MOST_S, DEFAULT_S = 10, 7200, 600
BETA_S = 60  # of the older route


class ExpiresAfter(Struct):
    """The time for which a secret is good."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = DEFAULT_S


class SecretBody(Struct):
    """The request for a secret."""

    expires_after: ExpiresAfter | None = None
    session: dict[str, Any] | None = None


class ClientSecrets:
    """The routes that give out client secrets; nothing is stored, the secret carries its session."""

    def __init__(self, context: ServerContext, access: Access) -> None:
        self._context = context
        self._access = access

    async def create(self, request: Request) -> Response:
        """Answer `POST /v1/realtime/client_secrets`."""
        self._access.grant_key(request.headers)
        body = await self._read(request, SecretBody)
        expires = body.expires_after or ExpiresAfter()
        if not LEAST_S <= expires.seconds <= MOST_S:
            raise ApiError(
                "invalid_value",
                f"expires_after.seconds is {expires.seconds}: use {LEAST_S} to {MOST_S}",
                "expires_after.seconds",
            )
        expires_at = int(time.time()) + expires.seconds
        session = body.session or {}
        echo = self._checked(session).echo(new_id("sess"), expires_at)
        return JSONResponse(
            {
                "value": self._access.make_secret(session, expires_at),
                "expires_at": expires_at,
                "session": echo,
            }
        )

    async def create_beta(self, request: Request) -> Response:
        """Answer `POST /v1/realtime/sessions`, as the protocol's beta had it."""
        self._access.grant_key(request.headers)
        session = await self._read(request, dict[str, Any])
        expires_at = int(time.time()) + BETA_S
        echo = beta.session(self._checked(session).echo(new_id("sess"), 0))
        secret = {"value": self._access.make_secret(session, expires_at), "expires_at": expires_at}
        return JSONResponse(echo | {"client_secret": secret})

    def _checked(self, session: dict[str, Any]) -> SessionConfig:
        """The settings of a session. Raises ApiError, which names the field at fault."""
        context = self._context
        base = SessionConfig(model=context.model_name, can_transcribe=context.transcriber is not None)
        return base.merged(session)

    async def _read(self, request: Request, kind: Any) -> Any:
        data = await request.body()
        try:
            return msgspec.json.decode(data or b"{}", type=kind)
        except msgspec.ValidationError as error:
            raise ApiError("invalid_value", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiError("invalid_json", f"the body is no JSON: {error}") from None
