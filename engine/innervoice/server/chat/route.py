"""ChatRoute: `POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from innervoice.server.access import Access
from innervoice.server.chat.answers import ChatAnswer
from innervoice.server.chat.body import read_chat_body
from innervoice.server.chat.request import ChatLimits, ChatRequest, read_chat_request
from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.http_answers import as_api_error, refusal
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed

REFUSED = (ApiError, OutOfCapacity, EngineDead, RequestFailed, ValueError)


class ChatRoute:
    """An ASGI application for the route: each request is a session of the engine of its own."""

    def __init__(self, context: ServerContext, access: Access) -> None:
        self._context = context
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            await self._answer(request, send)
        except REFUSED as error:
            refused = as_api_error(error)
            self._context.metrics.refused(refused.code)
            await refusal(refused)(scope, receive, send)

    async def _answer(self, request: Request, send: Send) -> None:
        context = self._context
        self._access.grant_key(request.headers)
        context.check_engine()
        data = await request.body()
        loop = asyncio.get_running_loop()
        chat, model = await loop.run_in_executor(context.calls, self._read, data)
        slot = context.admission.hold()
        try:
            await self._reply(chat, model or context.model_name, request, send)
        finally:
            slot.release()

    def _read(self, data: bytes) -> tuple[ChatRequest, str]:
        """The request in a body, which may hold minutes of sound, and the model that it names."""
        context = self._context
        body = read_chat_body(data)
        limits = ChatLimits(context.options.schedule, context.options.max_output_tokens)
        return read_chat_request(body, context.kept, context.engine.parts.requests, limits), body.model

    async def _reply(self, chat: ChatRequest, model: str, request: Request, send: Send) -> None:
        export = None if chat.goes_on is None else chat.goes_on.export
        session = await self._context.engine.aopen_session(restore=export)
        try:
            answer = ChatAnswer(self._context, chat, session, self._context.kept, model)
            await answer.send(request.receive, send)
        finally:
            await session.aclose()
