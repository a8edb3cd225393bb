"""The route `GET /v1/realtime`: who is let in before the upgrade, and how others are refused.

A refused upgrade is an HTTP answer with status and body. A browser hides both from its page, so a page gets a
connection that says the reason as an event and closes.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from innervoice.server.access import Access
from innervoice.server.admission import Slot
from innervoice.server.context import Dialect, Opening, ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.http_answers import refusal
from innervoice.server.realtime.connection import serve_connection

PROTOCOL = "realtime"
BETA_PROTOCOL = "openai-beta.realtime-v1"
BETA_HEADER = "realtime=v1"
CLOSE_CODES = {401: 1008, 403: 1008, 429: 1013, 501: 1008}


class RealtimeRoute:
    """Admits connections; what follows the upgrade is the connection's."""

    def __init__(self, context: ServerContext, access: Access) -> None:
        self._context = context
        self._access = access

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection until it is closed."""
        protocols: Sequence[str] = websocket.scope.get("subprotocols", ())
        accepted = PROTOCOL if PROTOCOL in protocols else None  # a key in a sub-protocol is never sent back
        query = dict(websocket.query_params)
        slot: Slot | None = None
        try:
            grant = self._access.grant(websocket.headers, protocols)
            if query.get("intent") == "transcription":
                raise ApiError(
                    "unsupported_parameter",
                    "there are no sessions for transcription alone",
                    "intent",
                    status=501,
                )
            dialect = _dialect(websocket, protocols)
            self._context.check_engine()
            slot = self._context.admission.hold(or_beyond="resume" in query)
        except ApiError as error:
            self._context.metrics.refused(error.code)
            await _refuse(websocket, error, accepted)
            return
        try:
            await websocket.accept(subprotocol=accepted)
            opening = Opening(
                dialect=dialect,
                model=query.get("model"),
                presets=grant.presets,
                query=query,
                slot=slot,
            )
            await serve_connection(websocket, self._context, opening)
        finally:
            if not slot.is_kept:
                slot.release()


def _dialect(websocket: WebSocket, protocols: Sequence[str]) -> Dialect:
    """The dialect that a client asks for. Raises ApiError for one that there is not."""
    named = websocket.query_params.get("dialect", "ga")
    if named not in ("ga", "beta"):
        raise ApiError("invalid_value", f"dialect is {named[:80]!r}: use ga or beta", "dialect")
    headers = websocket.headers.get("openai-beta", "")
    is_beta = (
        BETA_HEADER in [one.strip() for one in headers.split(",")]
        or BETA_PROTOCOL in protocols
        or named == "beta"
    )
    return "beta" if is_beta else "ga"


async def _refuse(websocket: WebSocket, error: ApiError, accepted: str | None) -> None:
    if "origin" not in websocket.headers:
        await websocket.send_denial_response(refusal(error))
        return
    sent = error.body() | {"event_id": None}
    if error.retry_after_s is not None:
        sent["retry_after"] = error.retry_after_s
    with suppress(WebSocketDisconnect, RuntimeError):  # the page did not wait
        await websocket.accept(subprotocol=accepted)
        event = {"type": "error", "event_id": f"event_{uuid.uuid4().hex[:20]}", "error": sent}
        await websocket.send_json(event)
        await websocket.close(CLOSE_CODES.get(error.status, 1011 if error.code == "server_error" else 1013))
