"""Scope: the parts that belong to one conversation, for those that handle its events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from innervoice.api.engine import Engine
from innervoice.api.session import Session
from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.history import EngineHistory
from innervoice.server.realtime.items import ConversationItem, ItemList
from innervoice.server.realtime.job_lane import JobLane
from innervoice.server.realtime.protocol import server_events
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.session_config import SessionConfig
from innervoice.server.realtime.writer import Writer

log = logging.getLogger(__name__)
MAX_SOUND_BYTES = 16 * 2**20
MAX_UNHEARD_BYTES = 48 * 2**20


@dataclass
class Scope:
    """A conversation's settings, items, history and way to the client.

    lane: engine calls in the order of the events that need them. clock: monotonic seconds. expires_at: seconds
    since 1970. default_system: in place of instructions that were taken back. reveal: announces an item that is
    in the list already, before another one is.
    """

    server: ServerContext
    session: Session
    config: SessionConfig
    writer: Writer
    items: ItemList
    history: EngineHistory
    session_id: str
    conversation_id: str
    expires_at: int
    clock: Callable[[], float] = time.monotonic
    lane: JobLane = field(init=False)
    default_system: str | None = None
    on_engine_dead: Callable[[Exception], None] = lambda error: None
    reveal: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.lane = JobLane(self.report_failure)

    @property
    def engine(self) -> Engine:
        """The engine behind the conversation."""
        return self.server.engine

    @property
    def codes_per_s(self) -> float:
        """Speech tokens of a second of sound, 0 for a model that does not speak."""
        parts = self.engine.parts
        return 0.0 if parts.requests.vocabulary.speech is None else parts.core.speech.codes_per_s

    def send(self, event: dict[str, Any]) -> None:
        """Queue an event for the client."""
        self.writer.put(event)

    def send_error(self, error: ApiError, event_id: str | None) -> None:
        """Report a refused event of the client, None: the error answers no event."""
        self.server.metrics.error(error.code)
        self.send(server_events.error(error, event_id))

    def report_failure(self, error: Exception, event_id: str | None = None) -> None:
        """Report a failure of the server itself, under an id that the log has as well."""
        if isinstance(error, ApiError):
            self.send_error(error, event_id)
            return
        id = new_id("event")
        log.error("event failed (%s)", id, exc_info=error)
        message = f"The server failed to handle an event; its log has the reason under {id}."
        self.send_error(ApiError("server_error", message, type="server_error"), event_id)

    def announce(self, item: ConversationItem, previous: str | None) -> None:
        """Announce an item that is complete."""
        self.reveal()
        self.send(server_events.item_added(item.to_json(), previous))
        self.send(server_events.item_done(item.to_json(), previous))

    def remember_sound(self, item: ConversationItem) -> None:
        """Keep the sound of the newest items only, as far as the memory for it reaches, and what the engine
        has not heard yet.
        """
        if not item.num_audio_bytes:
            return
        num_bytes = sum(one.num_audio_bytes for one in self.items)
        for old in self.items:
            if num_bytes <= MAX_SOUND_BYTES:
                return
            if old.id in self.history.given:
                num_bytes -= old.num_audio_bytes
                for part in old.content:
                    part.audio = None

    def check_sound(self, item: ConversationItem) -> None:
        """Raise ApiError for an item whose sound is too much to be kept until a reply reads it."""
        if not item.num_audio_bytes:
            return
        unheard = sum(one.num_audio_bytes for one in self.items if one.id not in self.history.given)
        if unheard + item.num_audio_bytes > MAX_UNHEARD_BYTES:
            raise ApiError(
                "invalid_value",
                f"The conversation has {unheard} bytes of sound that no reply has read: ask for one first.",
                "item",
            )

    def change(self, **changes: Any) -> None:
        """Change the settings."""
        self.config = replace(self.config, **changes)

    def later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function after a delay."""
        return asyncio.get_running_loop().call_later(delay_s, call)
