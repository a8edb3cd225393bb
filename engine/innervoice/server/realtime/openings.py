"""Hosted: a conversation with its place in the server; how one is begun, taken over, kept and given back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from innervoice.server.admission import RETRY_S, Slot
from innervoice.server.context import STORE_S, Opening, ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.conversation import Conversation
from innervoice.server.realtime.copies import Copy, offer_copies
from innervoice.server.realtime.protocol.beta import to_beta
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.server_events import ServerEvent, session_created
from innervoice.server.realtime.protocol.session_config import EVENTS, SessionConfig
from innervoice.server.realtime.saved import SavedDialogue, restore, save
from innervoice.server.realtime.writer import Send, Sent, Writer, WriterLimits

TAKEN_OVER = 4001
log = logging.getLogger(__name__)


class Holder(Protocol):
    """A connection that has a conversation."""

    async def end(self, code: int, error: ApiError) -> None:
        """Close the connection."""
        ...


@dataclass
class Hosted:
    """A conversation and the connection that has it, None: it waits for one to take it over.

    expires_s: the end of its time on the monotonic clock. term: how often servers took it over. after, greeting: of a
    client that has come back.
    """

    server: ServerContext
    conversation: Conversation
    slot: Slot
    holder: Holder | None
    token: str
    expires_s: float
    term: int = 0
    after: int | None = None
    greeting: ServerEvent | None = None
    _saving: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def is_resumable(self) -> bool:
        """Whether the client asked for extensions, of which resuming is one."""
        return bool(self.conversation.scope.config.events)

    async def write(self, send: Send) -> None:
        """Send events until the conversation is closed. Raises what `Writer.run` raises."""
        after, greeting = self.after, self.greeting
        self.after = self.greeting = None
        await self.conversation.scope.writer.run(send, after, greeting)

    def resumed(self, number: int | None) -> ServerEvent:
        """Greet a client that has come back; number: of the last event that it received."""
        missed = 0 if number is None else self.conversation.scope.writer.missed_after(number)
        echo: dict[str, Any] = self.conversation.echo()
        echo["innervoice"] |= {"resumed": True, "missed_events": missed}
        return session_created(echo)

    def enable_resume(self) -> None:
        """Number events, and let another connection take the conversation over."""
        self.conversation.scope.writer.is_numbering = True
        self.server.resumable.add(self, self.drop, None, self.token)
        self.slot.keep()
        if self.server.store is not None:
            self.conversation.on_turn = self.save_later
            self.save_later()

    def save_later(self) -> None:
        """Leave the conversation in the server's store, behind the engine calls that wait."""
        self.conversation.scope.lane.put(self._save)

    async def keep(self) -> None:
        """Have the client's events sent and the conversation in the store, before its connection is closed."""
        if self.server.store is None:
            return
        scope = self.conversation.scope
        try:
            async with asyncio.timeout(STORE_S):
                await scope.writer.drained()
                self.save_later()
                await scope.lane.drained()
                if self._saving is not None:
                    await self._saving
        except TimeoutError:
            log.warning("a conversation was not left in the store within %g s", STORE_S)

    async def _save(self) -> None:
        conversation = self.conversation
        if conversation.is_closed or conversation.replies.is_running:
            return  # the end of that reply saves
        await conversation.replies.settled()
        try:
            data = (await save(conversation)).to_bytes()
        except Exception as error:
            log.warning("a conversation could not be saved: %r", error)
            return
        if conversation.is_closed:
            return
        self._saving = asyncio.get_running_loop().create_task(self._send(data, self._saving))

    async def _send(self, data: bytes, before: asyncio.Task[None] | None) -> None:
        """Send a state to the store, once the state before it is there."""
        store, scope = self.server.store, self.conversation.scope
        assert store is not None, "only a server with a store saves"
        if before is not None:
            await before
        keep_s = self.server.options.resume_grace_s
        if self.holder is not None:
            keep_s += max(0.0, self.expires_s - scope.clock())
        try:
            async with asyncio.timeout(STORE_S):
                is_ours = await store.save(self.token, data, keep_s, self.term)
        except Exception as error:
            log.warning("a conversation was not left in the store: %r", error)
            return
        if not is_ours:
            await self.give_up()

    async def _forget_saved(self) -> None:
        """Take a conversation that is over out of the store."""
        store = self.server.store
        if store is None or not self.is_resumable:
            return
        if self._saving is not None:
            await self._saving
        try:
            async with asyncio.timeout(STORE_S):
                await store.forget(self.token)
        except Exception as error:
            log.warning("a conversation was not taken out of the store: %r", error)

    async def give_up(self) -> None:
        """Give up a conversation that goes on at another server."""
        if self.holder is not None:
            await self.holder.end(TAKEN_OVER, taken_over())
        self.server.resumable.forget(self.token)
        await self.drop()

    async def leave(self, holder: Holder, is_kept: bool) -> None:
        """Part the connection from its conversation, which ends unless it is kept for a while."""
        if self.holder is not holder:
            return
        self.holder = None
        if is_kept:
            grace_s = self.server.options.resume_grace_s
            self.server.resumable.add(self, self.drop, grace_s, self.token)
        else:
            self.server.resumable.forget(self.token)
            await self.drop()
            await self._forget_saved()

    async def drop(self) -> None:
        """End the conversation."""
        await self.conversation.close()
        if self.slot.is_kept:
            self.slot.release()


async def open_hosted(server: ServerContext, opening: Opening, holder: Holder) -> Hosted:
    """Begin a conversation, or take over the one that the client's token stands for.

    Raises ApiError, OutOfCapacity, EngineDead.
    """
    token = opening.query.get("resume")
    if not token:
        writer = new_writer(server, opening)
        config = first_config(server, opening)
        session = await server.engine.aopen_session()
        return _host(server, opening, holder, Conversation(server, session, config, writer))
    taken = await _take_saved(server, token)
    if taken is not None:
        return await _host_saved(server, opening, holder, token, *taken)
    found = server.resumable.find(token)
    if isinstance(found, Copy):
        return await _host_copy(server, opening, holder, token, found)
    assert isinstance(found, Hosted), "a token stands for a conversation or a copy of one"
    return await _take_over(found, opening, holder)


def first_config(server: ServerContext, opening: Opening) -> SessionConfig:
    """The settings that a connection begins with. Raises ApiError for presets that are refused."""
    model = (opening.model or server.model_name)[:256]
    config = SessionConfig(model=model, can_transcribe=server.transcriber is not None)
    if server.engine.parts.requests.vocabulary.speech is None:
        config = replace(config, output_modality="text")
    config = config.merged(opening.presets)
    if opening.query.get("innervoice") in ("1", "true"):
        config = replace(config, events=frozenset(EVENTS))
    return config


def new_writer(server: ServerContext, opening: Opening) -> Writer:
    """Make the queue of events to a client in its dialect."""
    limits = WriterLimits(stall_s=server.options.slow_reader_s)
    return Writer(to_beta if opening.dialect == "beta" else None, limits)


def _host(
    server: ServerContext,
    opening: Opening,
    holder: Holder,
    conversation: Conversation,
    token: str | None = None,
    term: int = 0,
) -> Hosted:
    """Give a conversation its place. token, term: of one that goes on, whose client is greeted otherwise."""
    scope = conversation.scope
    made = Hosted(
        server,
        conversation,
        opening.slot,
        holder,
        token or new_id("resume"),
        scope.clock() + server.options.max_session_s,
        term,
    )
    scope.writer.on_sent = lambda sent: _count(server, conversation, sent)
    offer_copies(conversation)
    conversation.on_extended = made.enable_resume
    conversation.resume_token = made.token
    if made.is_resumable:
        made.enable_resume()
    if token is None:
        conversation.greet()
    return made


async def _host_copy(
    server: ServerContext, opening: Opening, holder: Holder, token: str, found: Copy
) -> Hosted:
    if found.session is not None:
        server.resumable.forget(token)
        opening.slot.release()
        opening = replace(opening, slot=found.slot or opening.slot)
    elif not opening.slot.is_counted:  # an export becomes one session more
        opening = replace(opening, slot=server.admission.hold())
        opening.slot.keep()
    try:
        conversation = await found.begin(server, new_writer(server, opening))
    except BaseException:
        opening.slot.release()
        raise
    return _host(server, opening, holder, conversation)


async def _take_saved(server: ServerContext, token: str) -> tuple[SavedDialogue, int] | None:
    """Take a conversation over that is not here, or is here as it was before it went on elsewhere -> it and its term.

    Raises ApiError for one that cannot be read, and while the store does not say where it is: then an old copy
    must not go on.
    """
    if server.store is None:
        return None
    try:
        async with asyncio.timeout(STORE_S):
            if token in server.resumable and not await server.store.is_elsewhere(token):
                return None
            taken = await server.store.take(token)
    except Exception as error:
        log.warning("the store of conversations does not answer: %r", error)
        raise store_unavailable() from None
    if taken is None:
        return None
    if token in server.resumable and isinstance(own := server.resumable.find(token), Hosted):
        await own.give_up()
    try:
        return SavedDialogue.from_bytes(taken[0]), taken[1]
    except ValueError as error:
        raise ApiError("invalid_resume_token", f"{error}.", "resume") from None


async def _host_saved(
    server: ServerContext, opening: Opening, holder: Holder, token: str, saved: SavedDialogue, term: int
) -> Hosted:
    """Go on with a conversation of another server, under the same token."""
    if not opening.slot.is_counted:
        opening = replace(opening, slot=server.admission.hold())
        opening.slot.keep()
    try:
        conversation = await restore(saved, server, new_writer(server, opening))
    except BaseException:
        opening.slot.release()
        raise
    made = _host(server, opening, holder, conversation, token, term)
    number = _read_number(opening.query.get("last_event"))
    made.after, made.greeting = number, made.resumed(number)
    return made


async def _take_over(found: Hosted, opening: Opening, holder: Holder) -> Hosted:
    while (before := found.holder) is not None:  # several may come at once
        await before.end(TAKEN_OVER, taken_over())
        if found.holder is before:  # it failed to leave
            found.holder = None
    found.server.resumable.find(found.token)  # the connection before may have ended it by itself
    found.holder = holder
    opening.slot.release()
    found.server.resumable.add(found, found.drop, None, found.token)
    number = _read_number(opening.query.get("last_event"))
    found.after, found.greeting = number, found.resumed(number)
    return found


def save_all(server: ServerContext) -> None:
    """Leave all conversations in the store again, which has lost them; those that reply now are saved after that."""
    for value in server.resumable.values():
        if isinstance(value, Hosted):
            value.save_later()


def store_unavailable() -> ApiError:
    """The refusal of a client that comes back while it is not known which server has its session."""
    return ApiError(
        "session_store_unavailable",
        "It is not known now which server has the session: connect again with the same token.",
        type="server_error",
        status=503,
        retry_after_s=RETRY_S,
    )


def taken_over() -> ApiError:
    """The error of a connection whose session another one has."""
    return ApiError("session_taken_over", "Another connection has taken the session over.")


def _read_number(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isdecimal() or len(given) > 15:
        raise ApiError(
            "invalid_value", "last_event is the event_seq of the last event received.", "last_event"
        )
    return int(given)


def _count(server: ServerContext, conversation: Conversation, sent: Sent) -> None:
    metrics = server.metrics
    metrics.event("out", sent.type)
    metrics.sent_bytes(sent.size)
    metrics.send_stall(sent.stall_s)
    if sent.reply is not None:
        metrics.queue(sent.queued_s)
        metrics.sent_audio(sent.audio_s)
    conversation.on_sent(sent)
