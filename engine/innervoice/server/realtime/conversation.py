"""Conversation: one client's session, and what each of its events does."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from innervoice import __version__
from innervoice.api.request_builder import RequestBuilder
from innervoice.api.session import Session
from innervoice.runtime.request import PromptTooLong
from innervoice.schedule import Schedule
from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.history import EngineHistory
from innervoice.server.realtime.items import ConversationItem, ItemList
from innervoice.server.realtime.protocol import client_events as events
from innervoice.server.realtime.protocol import server_events
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.item_input import read_item
from innervoice.server.realtime.protocol.session_config import SessionConfig
from innervoice.server.realtime.replies import Replies
from innervoice.server.realtime.reply_request import can_call, check_schedule
from innervoice.server.realtime.scope import Scope
from innervoice.server.realtime.user_turns import UserTurns
from innervoice.server.realtime.writer import Sent, Writer
from innervoice.types import Heard


class Conversation:
    """A session of the protocol, whatever socket its client is on. All methods run on the event loop."""

    def __init__(
        self,
        server: ServerContext,
        session: Session,
        config: SessionConfig,
        writer: Writer,
        items: ItemList | None = None,
    ) -> None:
        listed = ItemList(server.options.max_items) if items is None else items
        self.scope = Scope(
            server=server,
            session=session,
            config=config,
            writer=writer,
            items=listed,
            history=EngineHistory(session, listed, self._on_heard, can_call(server.engine.parts.requests)),
            session_id=new_id("sess"),
            conversation_id=new_id("conv"),
            expires_at=int(time.time() + server.options.max_session_s),
        )
        self._leaving: set[str] = set()  # ids of deleted items of which the client has not heard yet
        self.replies = Replies(self.scope, self._on_idle)
        self.turns = UserTurns(self.scope, self.replies)
        self._pass_instructions()
        self.is_closed = False
        self.resume_token: str | None = None
        self.on_extended: Callable[[], None] = lambda: None
        self.on_turn: Callable[[], None] = lambda: None  # a reply has ended
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.SessionUpdate: self._update,
            events.AudioAppend: lambda event: self.turns.append(event.audio),
            events.AudioCommit: lambda event: self.turns.commit(),
            events.AudioClear: lambda event: self.turns.clear(),
            events.OutputClear: self._clear_output,
            events.ItemCreate: self._create_item,
            events.ItemRetrieve: self._retrieve_item,
            events.ItemDelete: self._delete_item,
            events.ItemTruncate: self._truncate_item,
            events.ResponseCreate: lambda event: self.replies.create(event.response),
            events.ResponseCancel: self._cancel,
            events.PlaybackAck: self._acknowledge,
            events.Inject: lambda event: self.scope.session.inject(event.text),
        }

    @property
    def is_busy(self) -> bool:
        """Whether a reply runs, or is still being played by the estimate."""
        return self.replies.is_running or self.replies.is_audible

    def greet(self) -> None:
        """Send what a connection begins with."""
        self.scope.send(server_events.session_created(self.echo()))
        self.scope.send(server_events.conversation_created(self.scope.conversation_id))

    def echo(self) -> dict[str, Any]:
        """Return the session as the client sees it, with the engine's own fields."""
        scope = self.scope
        schedule = scope.config.schedule or scope.server.options.schedule
        own: dict[str, Any] = {
            "version": __version__,
            "schedule": schedule.preset_name if isinstance(schedule, Schedule) else schedule,
            "reflection_budget": scope.config.reflection_budget,
            "max_model_len": scope.engine.parts.requests.max_model_len,
        }
        if scope.config.events:
            own |= {"events": sorted(scope.config.events), "resume_token": self.resume_token}
        return scope.config.echo(scope.session_id, scope.expires_at) | {"innervoice": own}

    def add_handler(self, kind: type, handler: Callable[[Any], None]) -> None:
        """Say what an event of an extension does."""
        self._handlers[kind] = handler

    def handle(self, event: events.AnyClientEvent) -> None:
        """Do what an event asks for. Raises ApiError when it is refused."""
        self._handlers[type(event)](event)

    def close_quietly(self) -> None:
        """Stop replies, detection and timers: the client is gone."""
        self.replies.close()
        self.turns.close()

    async def close(self) -> None:
        """Stop everything, and give the engine's session back; any number of times."""
        if self.is_closed:
            return
        self.is_closed = True
        self.close_quietly()
        self.scope.lane.clear()
        await self.scope.session.aclose()

    def on_sent(self, sent: Sent) -> None:
        """Count a message that left."""
        self.replies.on_sent(sent)

    def _on_idle(self) -> None:
        self.turns.on_idle()
        self.on_turn()

    def _on_heard(self, item: ConversationItem, heard: Heard) -> None:
        if "playback" in self.scope.config.events:
            self.scope.send(
                {
                    "type": "innervoice.heard",
                    "item_id": item.id,
                    "speech_tokens": heard.speech_tokens,
                    "transcript": heard.transcript,
                    "unheard_text_tokens": heard.unheard_text_tokens,
                    "history_tokens": heard.history_tokens,
                }
            )

    def _update(self, event: events.SessionUpdate) -> None:
        scope = self.scope
        changed = scope.config.merged(event.session)
        if changed.schedule is not None and changed.schedule != scope.config.schedule:
            check_schedule(changed.schedule, scope.engine.parts.requests, "session.innervoice.schedule")
        self.turns.audio.configure(changed.turn_detection, changed.input_format)
        if changed.events and not scope.config.events:
            self.on_extended()
        scope.config = changed
        self._pass_instructions()
        scope.send(server_events.session_updated(self.echo()))

    def _pass_instructions(self) -> None:
        """Give the engine's session instructions and tools, so that it reads ahead with them while the user speaks."""
        scope = self.scope
        text = scope.config.instructions.strip()
        if text:  # from now on none at all are the model's own, and not those before
            scope.default_system = scope.engine.parts.requests.default_system([]) or ""
        scope.session.update(system=text or scope.default_system)
        if scope.history.can_call:
            scope.session.update(tools=scope.config.tools)

    def _create_item(self, event: events.ItemCreate) -> None:
        scope = self.scope
        item = read_item(event.item, "item", scope.server.options.max_session_text, scope.config.input_format)
        scope.check_sound(item)
        _check_texts(item, scope.engine.parts.requests)
        previous = scope.items.insert(item, event.previous_item_id)
        try:
            scope.history.add(item)
        except ApiError:
            scope.items.delete(item.id)
            raise
        if item.role == "user":
            self.replies.note_turn(any(part.audio for part in item.content))
        scope.remember_sound(item)
        self._say_deleted(item.id)  # of an earlier item with this id
        scope.announce(item, previous)

    def _retrieve_item(self, event: events.ItemRetrieve) -> None:
        id, event_id = event.item_id, event.event_id

        def answer() -> None:
            item = self.scope.items.get(id, "item_retrieve_invalid_item_id")
            self.scope.send(server_events.item_retrieved(item.to_json(with_audio=True)))

        self._when_settled(answer, event_id)

    def _when_settled(self, answer: Callable[[], None], event_id: str | None) -> None:
        """Answer at once, or behind the engine calls that earlier events wait for."""
        if self.scope.lane.is_idle:
            answer()
            return

        async def run() -> None:
            await self.scope.writer.control_room()  # the event was read when there was room: not any more
            answer()

        self._put(run, event_id)

    def _refuse_when_settled(self, error: ApiError, event_id: str | None) -> None:
        """Answer with an error, behind the engine calls that earlier events wait for."""

        def answer() -> None:
            raise error

        self._when_settled(answer, event_id)

    def _put(self, work: Callable[[], Awaitable[None]], event_id: str | None) -> None:
        """Put an event's work into the lane; what refuses it names the event."""

        async def run() -> None:
            try:
                await work()
            except ApiError as error:
                self.scope.send_error(error, event_id)

        self.scope.lane.put(run)

    def _delete_item(self, event: events.ItemDelete) -> None:
        scope, id = self.scope, event.item_id

        def delete() -> None:
            scope.history.remove(scope.items.delete(id))
            scope.send(server_events.item_deleted(id))

        async def stop_and_delete() -> None:
            await self.replies.stopped(id)
            delete()

        item = scope.items.find(id)
        if item is None:
            error = ApiError(
                "item_delete_invalid_item_id", f"The conversation has no item {id[:80]!r}.", "item_id"
            )
            self._refuse_when_settled(error, event.event_id)
        elif item.status == "in_progress":
            self.replies.cancel("client_cancelled")
            self._put(stop_and_delete, event.event_id)
        else:
            scope.history.remove(scope.items.delete(id))
            self._leaving.add(id)
            self._when_settled(lambda: self._say_deleted(id), event.event_id)

    def _say_deleted(self, id: str) -> None:
        if id in self._leaving:
            self._leaving.remove(id)
            self.scope.send(server_events.item_deleted(id))

    def _truncate_item(self, event: events.ItemTruncate) -> None:
        scope, id = self.scope, event.item_id
        item = scope.items.find(id)
        error = _truncation_error(item, event)
        if item is None or error is not None:
            assert error is not None, "an item that is not there cannot be cut"
            self._refuse_when_settled(error, event.event_id)
            return
        was_running = item.status == "in_progress"
        estimate_ms = self.replies.estimate_ms(id)
        if estimate_ms is not None:
            scope.server.metrics.truncate_gap((estimate_ms - event.audio_end_ms) / 1e3)

        async def run() -> None:
            await self.replies.stopped(id)
            found = scope.items.find(id)
            if found is not item and (was_running or found is not None):
                raise _no_item_to_cut(id)
            kept_ms = await scope.history.truncate(id, event.audio_end_ms)
            scope.send(server_events.item_truncated(id, event.content_index, round(kept_ms)))

        self._put(run, event.event_id)

    def _cancel(self, event: events.ResponseCancel) -> None:
        if not self.replies.cancel("client_cancelled", event.response_id):
            raise ApiError(
                "response_cancel_not_active", "Cancellation failed: no active response found.", "response_id"
            )

    def _clear_output(self, event: events.OutputClear) -> None:
        running = self.replies.current_id
        self.replies.cancel("client_cancelled")
        self.scope.send(server_events.output_cleared(running or ""))

    def _acknowledge(self, event: events.PlaybackAck) -> None:
        self.scope.lane.put(lambda: self.replies.acknowledge(event.response_id, event.played_ms))


def _check_texts(item: ConversationItem, builder: RequestBuilder) -> None:
    """Raise ApiError for an item with a text that no prompt holds, however it is encoded."""
    try:
        for part in item.content:
            builder.check_text(part.text, "the message")
    except PromptTooLong as error:
        raise ApiError(
            "context_length_exceeded",
            f"The message has at least {error.num_tokens} tokens, and a conversation holds {error.most}, the reply "
            "included: send a shorter one.",
            "item",
        ) from None


def _no_item_to_cut(id: str) -> ApiError:
    return ApiError("item_truncate_invalid_item_id", f"The conversation has no item {id[:80]!r}.", "item_id")


def _truncation_error(item: ConversationItem | None, event: events.ItemTruncate) -> ApiError | None:
    """The reason for which an item cannot be cut, None: it can."""
    if item is None:
        return _no_item_to_cut(event.item_id)
    if item.role != "assistant":
        return ApiError(
            "item_truncate_invalid_item_id", "Only messages of the assistant can be truncated.", "item_id"
        )
    num_parts = max(1, len(item.content))
    if not 0 <= event.content_index < num_parts:
        return ApiError(
            "invalid_value",
            f"The item has {num_parts} part{'s' * (num_parts > 1)}: content_index {event.content_index} is none of them.",
            "content_index",
        )
    return None
