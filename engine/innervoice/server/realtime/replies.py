"""Replies: the responses of one conversation, the one that answers it and those beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from innervoice.runtime.request import PromptTooLong
from innervoice.runtime.stream import Stream
from innervoice.server.errors import ApiError
from innervoice.server.realtime.extensions import ReplyExtensions
from innervoice.server.realtime.items import ConversationItem
from innervoice.server.realtime.protocol import response_events, server_events
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.server_events import ServerEvent
from innervoice.server.realtime.reply import RunningReply
from innervoice.server.realtime.reply_output import ReplyOutput
from innervoice.server.realtime.reply_request import Defaults, ReplyRequest, read_request, truncation_options
from innervoice.server.realtime.scope import Scope
from innervoice.server.realtime.writer import Sent
from innervoice.types import EngineDead

MAX_BESIDE = 8
MAX_RECENT = 4 * MAX_BESIDE


class Replies:
    """Starts, cancels and ends responses. All methods run on the event loop.

    on_idle: called when the conversation's reply has ended.
    """

    def __init__(self, scope: Scope, on_idle: Callable[[], None]) -> None:
        self._scope = scope
        scope.reveal = self._reveal
        self._on_idle = on_idle
        self._replies: dict[str, RunningReply] = {}
        self._current: RunningReply | None = None  # of the conversation, running or being closed
        self._last: RunningReply | None = None  # of the conversation, the newest, running or over
        self._of_session: RunningReply | None = None  # the newest that the engine's session makes
        self._recent: dict[str, RunningReply] = {}  # whose deltas may still wait to be sent
        self._is_spoken_turn = False
        self._turn_end_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # event loops hold theirs weakly
        self._is_closed = False

    def _reveal(self) -> None:
        if self._current is not None:
            self._current.reveal()

    @property
    def is_active(self) -> bool:
        """Whether the conversation is being answered."""
        return self._current is not None and not self._current.is_cancelled

    @property
    def is_running(self) -> bool:
        """Whether any reply has not ended."""
        return bool(self._replies)

    @property
    def current_id(self) -> str | None:
        """The id of the response that answers the conversation now."""
        return self._current.id if self._current is not None and self.is_active else None

    @property
    def audible_until_s(self) -> float:
        """The time at which the client has played all sound that was sent, by the estimate."""
        return float("-inf") if self._last is None else self._last.dry_s()

    @property
    def is_audible(self) -> bool:
        """Whether the client plays sound now, by the estimate."""
        last = self._last
        if last is None or last.spoken.frozen_s is not None or last.spoken.cut_s is not None:
            return False
        return last.dry_s() > self._scope.clock()

    def note_turn(self, is_spoken: bool, end_s: float | None = None) -> None:
        """Note whether the turn to be answered is spoken, and the time at which its speech ended."""
        self._is_spoken_turn = is_spoken
        self._turn_end_s = end_s

    def create(self, given: Mapping[str, Any] | None = None) -> None:
        """Begin a response. Raises ApiError for bad overrides, and while the conversation is being answered."""
        scope = self._scope
        server = scope.server
        if server.admission.is_draining:
            raise ApiError(
                "server_draining", "The server is shutting down: connect again.", type="server_error"
            )
        defaults = Defaults(server.options.schedule, server.options.max_output_tokens, scope.default_system)
        request = read_request(
            given, scope.config, scope.items, scope.conversation_id, scope.engine.parts.requests, defaults
        )
        if request.is_in_band and self.is_active:
            raise ApiError(
                "conversation_already_has_active_response",
                "The conversation is being answered: wait for response.done, or cancel it first.",
            )
        if len(self._replies) >= MAX_BESIDE:
            raise ApiError("rate_limit_exceeded", f"{MAX_BESIDE} responses are running: wait for one.")
        closing = self._current if request.is_in_band else None
        if closing is None:
            self._begin(request)
        else:
            self._current = None
            scope.lane.put(lambda: self._begin_after(closing, request))

    async def _begin_after(self, closing: RunningReply, request: ReplyRequest) -> None:
        await closing.finished.wait()
        if self._is_closed:
            return
        if self.is_active:
            self._scope.send_error(
                ApiError("conversation_already_has_active_response", "The conversation is being answered."),
                None,
            )
            return
        self._begin(request)

    def _begin(self, request: ReplyRequest) -> None:
        """Announce the response; the engine gets it when its turn in the lane comes."""
        scope = self._scope
        item = ConversationItem(new_id("item"), role="assistant", status="in_progress")
        is_of_session = request.is_in_band and request.context is None
        answered = scope.history.announce() if is_of_session else []
        previous = scope.items.insert(item) if request.is_in_band else None
        output = ReplyOutput(
            request.head, item, scope.codes_per_s, request.is_in_band, may_call=request.may_call
        )
        reply = RunningReply(
            output,
            scope.writer,
            previous,
            self._is_spoken_turn,
            self._extensions(request.head.id, item.id),
            scope.clock,
            self._list_calls,
            self._end,
        )
        self._remember(reply)
        if request.is_in_band:
            self._current = self._last = reply
        scope.send(response_events.created(request.head))
        reply.open()
        if is_of_session:
            before, self._of_session = self._of_session, reply
            scope.lane.put(lambda: self._ask(reply, before, answered, request))
        else:
            self._start(reply.begin(lambda: self._answer_apart(reply, request)))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _extensions(self, response_id: str, item_id: str) -> ReplyExtensions:
        scope = self._scope

        def put(event: ServerEvent, is_delta: bool) -> None:
            scope.writer.put(event, reply=response_id if is_delta else None)

        return ReplyExtensions(response_id, item_id, scope.config.events, put, scope.codes_per_s)

    async def _ask(
        self,
        reply: RunningReply,
        before: RunningReply | None,
        answered: list[ConversationItem],
        request: ReplyRequest,
    ) -> None:
        """Ask the engine for an announced reply, in the lane."""
        try:
            await reply.begin(lambda: self._answer(reply, before, answered, request))
        finally:
            self._scope.history.asked()

    async def _answer(
        self,
        reply: RunningReply,
        before: RunningReply | None,
        answered: list[ConversationItem],
        request: ReplyRequest,
    ) -> Stream:
        """Answer the conversation, once the engine is done with the reply before."""
        if before is not None:
            await before.drained.wait()
        options = {**request.options, **truncation_options(self._scope.config)}
        try:
            stream = await self._scope.history.reply(reply.spoken, answered, **options)
        except PromptTooLong as error:
            raise _too_long(error, can_drop=options["truncation"] == "auto") from error
        if stream.dropped_items and "timeline" in self._scope.config.events:
            self._scope.send(server_events.history_shortened(reply.id, list(stream.dropped_items)))
        return stream

    async def _answer_apart(self, reply: RunningReply, request: ReplyRequest) -> Stream:
        """Answer in a context of its own: given items, or a twin of the conversation."""
        scope = self._scope
        if request.context is not None:
            messages = scope.history.as_messages(list(request.context))
            options = dict(request.options)
            instructions = options.pop("instructions", None)
            options["system"] = instructions or options["system"]
            return scope.engine.astream(messages, **options)
        twin = await scope.session.afork()
        try:
            stream = await twin.areply([], **request.options, **truncation_options(scope.config))
        except BaseException:
            await twin.aclose()
            raise
        self._start(_close_after(reply, twin))
        return stream

    def cancel(self, reason: str, response_id: str | None = None) -> bool:
        """Cancel the named response, or the conversation's -> whether there was one that could be.

        The sound that was heard until now is noted, for the case that the client does not report it.
        """
        reply = self._current if response_id is None else self._replies.get(response_id)
        if reply is None or reply.is_cancelled or reply.finished.is_set():
            return False
        self.freeze(reply)
        reply.cancel(reason)
        self._scope.server.metrics.barge_in(reason)
        return True

    def barge_in(self) -> None:
        """Stop the conversation's reply because the user speaks, and note the part of it that was heard."""
        if not self.cancel("turn_detected") and self._last is not None and self.is_audible:
            self.freeze(self._last)
            self._scope.server.metrics.barge_in("turn_detected")

    def freeze(self, reply: RunningReply) -> None:
        """Note how much of a reply's sound has been heard by now."""
        if reply.spoken.frozen_s is None and reply.spoken.cut_s is None:
            reply.spoken.frozen_s = reply.heard_s()

    def on_sent(self, sent: Sent) -> None:
        """Count a message that left."""
        reply = self._recent.get(sent.reply or "")
        if sent.audio_s <= 0 or reply is None:
            return
        now = self._scope.clock()
        if not reply.playback.has_begun and self._turn_end_s is not None:
            self._scope.server.metrics.commit_to_audio(now - self._turn_end_s)
            self._turn_end_s = None
        reply.playback.send(now, sent.audio_s)
        reply.spoken.sent_s = reply.playback.sent_s

    async def acknowledge(self, response_id: str, played_ms: float) -> None:
        """Take the player's report; a late or odd one changes nothing."""
        reply = self._recent.get(response_id)
        if reply is None:
            return
        with suppress(ValueError):
            reply.playback.acknowledge(self._scope.clock(), played_ms / 1e3)
            if reply.spoken is self._scope.history.last:
                await self._scope.session.aack_playback(played_ms)

    def estimate_ms(self, item_id: str) -> float | None:
        """Milliseconds of an item's sound that were heard by the server's estimate, None: it is not the last."""
        last = self._last
        if last is None or last.output.item.id != item_id:
            return None
        frozen_s = last.spoken.frozen_s
        return 1e3 * (last.heard_s() if frozen_s is None else frozen_s)

    async def stopped(self, item_id: str) -> None:
        """Stop the reply that makes an item, if it runs, and wait until its end is sent."""
        for reply in list(self._replies.values()):
            if reply.spoken.item.id == item_id:
                self.cancel("client_cancelled", reply.id)
                await reply.finished.wait()

    async def settled(self) -> None:
        """Wait until the engine is done with the session's newest reply."""
        if self._of_session is not None:
            await self._of_session.drained.wait()

    def close(self) -> None:
        """Stop everything without a word: the client is gone."""
        self._is_closed = True
        for reply in list(self._replies.values()):
            reply.abandon()
        self._replies.clear()
        self._current = None

    def _list_calls(self, reply: RunningReply, calls: list[ConversationItem]) -> list[str | None]:
        """Put a reply's calls into the list, behind its message -> the id of the item before each."""
        items = self._scope.items
        if not reply.output.is_in_band:
            return [None] * len(calls)
        before = reply.output.item.id
        for call in calls:
            if call.id not in items:
                with suppress(ApiError):  # the list is full: the client has the call all the same
                    items.insert(call, before if before in items else None)
            before = call.id
        self._scope.history.add_calls(reply.spoken, calls)
        return [items.previous_of(call.id) if call.id in items else None for call in calls]

    def _end(self, reply: RunningReply) -> None:
        self._replies.pop(reply.id, None)
        if reply.failure is not None:
            self._check_engine()
        if not reply.output.is_in_band:
            return
        if reply.spoken.item.id not in self._scope.history.spoken:
            self._scope.history.add_detached(reply.spoken)
        if reply is self._current:
            self._current = None
        self._on_idle()

    def _check_engine(self) -> None:
        try:
            self._scope.engine.check_health()
        except EngineDead as error:
            self._scope.on_engine_dead(error)

    def _remember(self, reply: RunningReply) -> None:
        self._replies[reply.id] = reply
        self._recent[reply.id] = reply
        while len(self._recent) > MAX_RECENT:
            del self._recent[next(iter(self._recent))]


def _too_long(error: PromptTooLong, *, can_drop: bool) -> PromptTooLong:
    """The error in words for somebody who talks to the model."""
    what = "newest message, with the instructions," if can_drop else "conversation"
    remedy = "send a shorter one" if can_drop else "delete items, or set truncation to auto"
    held = f" tokens, and a conversation holds {error.most}, the reply included: "
    return PromptTooLong(
        f"The {what} has {error.num_tokens}", error.num_tokens, error.most, f"{held}{remedy}."
    )


async def _close_after(reply: RunningReply, twin: Any) -> None:
    await reply.finished.wait()
    await twin.aclose()
