"""Copies of a conversation that a client may ask for: a twin that goes on from here, and an export."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from innervoice.api.session import Session
from innervoice.server.admission import Slot
from innervoice.server.context import STORE_S, ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.conversation import Conversation
from innervoice.server.realtime.items import ItemList
from innervoice.server.realtime.protocol.client_events import ClientEvent, SessionExport, SessionFork
from innervoice.server.realtime.protocol.session_config import SessionConfig
from innervoice.server.realtime.writer import Writer
from innervoice.types import OutOfCapacity

EXPORT_S = 3600.0
log = logging.getLogger(__name__)


@dataclass
class Copy:
    """A conversation's state apart from its client.

    session, slot: of a twin in the engine, None for an export, whose history is `blob`.
    """

    config: SessionConfig
    items: ItemList
    given: set[str]
    session: Session | None = None
    slot: Slot | None = None
    blob: bytes = field(default=b"", repr=False)

    async def begin(self, server: ServerContext, writer: Writer) -> Conversation:
        """Make a conversation of it. Raises what `Engine.aopen_session` raises."""
        session = self.session
        if session is None:
            session = await server.engine.aopen_session(restore=self.blob)
        made = Conversation(server, session, self.config, writer, self.items.copy())
        made.scope.history.given = set(self.given)
        return made

    async def drop(self) -> None:
        """Give the twin back."""
        if self.session is not None:
            await self.session.aclose()
        if self.slot is not None:
            self.slot.release()


def _state_of(conversation: Conversation) -> Copy:
    scope = conversation.scope
    return Copy(scope.config, scope.items.copy(), set(scope.history.given))


def offer_copies(conversation: Conversation) -> None:
    """Let the client fork and export the conversation."""
    scope = conversation.scope
    server = scope.server

    async def fork() -> None:
        made = _state_of(conversation)
        made.slot = server.admission.hold()
        made.slot.keep()
        try:
            made.session = await scope.session.afork()
        except BaseException:
            made.slot.release()
            raise
        grace_s = server.options.resume_grace_s
        token = server.resumable.add(made, made.drop, grace_s)
        await _note(server, token, grace_s)
        scope.send(
            {
                "type": "innervoice.session.forked",
                "resume_token": token,
                "expires_at": int(time.time() + grace_s),
            }
        )

    async def export() -> None:
        made = _state_of(conversation)
        made.blob = await scope.session.aexport()
        num_bytes = len(made.blob) + made.items.num_bytes
        token = server.resumable.add(made, made.drop, EXPORT_S, num_bytes=num_bytes)
        await _note(server, token, EXPORT_S)
        scope.send(
            {
                "type": "innervoice.session.exported",
                "resume_token": token,
                "expires_at": int(time.time() + EXPORT_S),
            }
        )

    def in_lane(job: Callable[[], Awaitable[None]]) -> Callable[[ClientEvent], None]:
        def handle(event: ClientEvent) -> None:
            async def run() -> None:
                try:
                    await job()
                except (ApiError, ValueError, OutOfCapacity) as error:
                    scope.send_error(_refusal(error), event.event_id)

            scope.lane.put(run)

        return handle

    conversation.add_handler(SessionFork, in_lane(fork))
    conversation.add_handler(SessionExport, in_lane(export))


async def _note(server: ServerContext, token: str, keep_s: float) -> None:
    """Let other servers know where a copy can be had."""
    if server.store is None:
        return
    try:
        async with asyncio.timeout(STORE_S):
            await server.store.save(token, None, keep_s)
    except Exception as error:
        log.warning("a copy of a conversation was not noted in the store: %r", error)


def _refusal(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfCapacity):
        return ApiError("session_limit_reached", f"{error}.", type="rate_limit_error")
    return ApiError("invalid_value", f"{error}.")
