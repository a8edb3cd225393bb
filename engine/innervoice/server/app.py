"""The ASGI application: its routes, and what watches over its connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from innervoice.server.access import Access
from innervoice.server.admission import RETRY_S
from innervoice.server.chat.route import ChatRoute
from innervoice.server.client_secrets import ClientSecrets
from innervoice.server.context import ServerContext
from innervoice.server.draining import end_all
from innervoice.server.errors import ApiError
from innervoice.server.http_answers import refusal, refuse, refuse_plainly
from innervoice.server.origins import LOOPBACK_ORIGINS, CheckOrigins, Origins
from innervoice.server.page_route import PageFiles
from innervoice.server.realtime_route import RealtimeRoute

HEALTH_PERIOD_S = 0.5
log = logging.getLogger("innervoice")


def make_app(context: ServerContext) -> Starlette:
    """Make the application of a server; its lifespan ends the context's threads, and not the engine."""
    options = context.options
    access = Access(options.api_keys, context.signer)
    plain = PlainRoutes(context, access)
    secrets = ClientSecrets(context, access)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(options.allow_origins),
        allow_origin_regex=LOOPBACK_ORIGINS,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        context.listener.start()  # now, so that no connection waits for it
        watch = asyncio.create_task(watch_engine(context))
        try:
            yield
        finally:
            watch.cancel()
            await context.resumable.close()
            context.listener.close()
            if context.transcriber is not None:
                await context.transcriber.close()
            context.calls.shutdown(wait=False, cancel_futures=True)

    return Starlette(
        routes=[
            WebSocketRoute("/v1/realtime", RealtimeRoute(context, access).serve),
            Route("/v1/realtime", plain.no_upgrade),
            Route("/v1/realtime/calls", plain.calls, methods=["POST"]),
            Route("/v1/realtime/client_secrets", secrets.create, methods=["POST"]),
            Route("/v1/realtime/sessions", secrets.create_beta, methods=["POST"]),
            Route("/v1/chat/completions", ChatRoute(context, access), methods=["POST"]),
            Route("/v1/models", plain.models),
            Route("/v1/models/{name:path}", plain.model),
            Route("/health", plain.health),
            Route("/ready", plain.ready),
            Route("/metrics", plain.metrics),
            *PageFiles().routes,
        ],
        middleware=[cors, Middleware(CheckOrigins, origins=Origins.of(options))],
        exception_handlers={ApiError: refuse, HTTPException: refuse_plainly},
        lifespan=lifespan,
        max_body_size=options.max_message_bytes,
    )


class PlainRoutes:
    """The routes that say how the server is."""

    def __init__(self, context: ServerContext, access: Access) -> None:
        self._context = context
        self._access = access
        self._created = int(time.time())

    async def health(self, _: Request) -> Response:
        """200 while the engine runs, else 503 with the cause."""
        self._context.check_engine()
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """200 while a session would be admitted."""
        context = self._context
        context.check_engine()
        context.admission.check()
        if not context.admission.has_room:
            raise ApiError(
                "session_limit_reached",
                "all sessions are in use",
                type="rate_limit_error",
                status=503,
                retry_after_s=RETRY_S,
            )
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Figures of server and engine as Prometheus reads them."""
        self._access.grant_key(request.headers)
        context = self._context
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(context.calls, context.metrics.to_text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        """List the model that is served."""
        self._access.grant(request.headers)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Describe the model that is served."""
        self._access.grant(request.headers)
        name = request.path_params["name"]
        if name != self._context.model_name:
            return refusal(
                ApiError(
                    "model_not_found",
                    f"there is no model {name}: this server has {self._context.model_name}",
                    "model",
                    status=404,
                )
            )
        return JSONResponse(self._model())

    async def no_upgrade(self, _: Request) -> Response:
        """Refuse a request for the Realtime protocol that is no WebSocket."""
        answer = refusal(
            ApiError(
                "upgrade_required", "the Realtime protocol needs a WebSocket: send an upgrade", status=426
            )
        )
        answer.headers["Upgrade"] = "websocket"
        return answer

    async def calls(self, _: Request) -> Response:
        """Refuse WebRTC, which the server does not have."""
        message = "there is no WebRTC: open a WebSocket at /v1/realtime"
        return refusal(ApiError("not_implemented", message, status=501))

    def _model(self) -> dict[str, object]:
        return {
            "id": self._context.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "innervoice",
        }


async def watch_engine(context: ServerContext) -> None:
    """Close all connections with 1011 once the engine has stopped."""
    while True:
        await asyncio.sleep(HEALTH_PERIOD_S)
        try:
            context.check_engine()
        except ApiError as error:
            if context.live:
                log.error("%s", error)
                await end_all(context, 1011, error)
