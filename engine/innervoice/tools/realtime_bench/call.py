"""Call: one caller's conversation, turn by turn, over one connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

from websockets.asyncio.client import connect

from innervoice.tools.realtime_bench.dialect import AUDIO_DELTAS, dialect_of, output_rate, session_update
from innervoice.tools.realtime_bench.microphone import Microphone
from innervoice.tools.realtime_bench.recordings import RATE, Recording
from innervoice.tools.realtime_bench.reply import HeardReply
from innervoice.tools.realtime_bench.settings import CallSettings
from innervoice.tools.realtime_bench.turn import BargeIn, CallLog, CallTurn
from innervoice.tools.realtime_bench.wire import CallFailed, Connect, ReceivedEvent, Wire, part

BARGE_IN_S = (0.3, 2.0)  # after the first sound of the reply that is interrupted
TURN_EVENTS = {
    f"input_audio_buffer.{name}": name for name in ("speech_started", "speech_stopped", "committed")
}
EARLY = "answered before the end of the question"
UNASKED = "reply cut short without a barge-in"


class Call:
    """Holds the state of one call; `run` holds the call and writes what happens into the log."""

    def __init__(
        self,
        wire: Wire,
        settings: CallSettings,
        recordings: Sequence[Recording],
        random: Random,
        log: CallLog,
        until_s: float = math.inf,
        on_turn: Callable[[CallTurn], None] = lambda turn: None,
    ) -> None:
        self._wire = wire
        self._settings = settings
        self._recordings = recordings
        self._random = random
        self._log = log
        self._until_s = until_s
        self._on_turn = on_turn
        self._loop = asyncio.get_running_loop()
        self._microphone = Microphone(wire, is_open=settings.turns == "server")
        self._changed = asyncio.Event()
        self._events = wire.events()
        self._rate = RATE
        self._turn: CallTurn | None = None
        self._barge: BargeIn | None = None  # of the question that is being spoken
        self._replies: dict[str, HeardReply] = {}
        self._is_updated = False
        self._refused_ids: set[str] = set()

    async def run(self) -> None:
        """Greet, and hold turn after turn. Raises CallFailed."""
        self._log.lags_s = self._microphone.lags_s
        await self._greet()
        reader = asyncio.create_task(self._read())
        dialogue = asyncio.create_task(self._converse())
        microphone = asyncio.create_task(self._microphone.run())
        tasks = (reader, dialogue, microphone)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # the reader knows best why a connection ended
                if task.done():
                    task.result()
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._log.stalled_s = self._microphone.stalled_s

    async def _greet(self) -> None:
        """Wait for the session and set its turn detection."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                event = await anext(self._events)
                while event.type != "session.created":
                    if event.type == "error":
                        self._note_error(event)
                        raise CallFailed(
                            f"error {self._wire.last_error}", str(part(event.error, "message") or "")
                        )
                    event = await anext(self._events)
        except TimeoutError:
            raise CallFailed("timeout: no session.created") from None
        session = event.session if isinstance(event.session, dict) else {}
        self._log.model = str(session.get("model") or "")
        dialect = dialect_of(session) if self._settings.dialect == "auto" else self._settings.dialect
        self._log.dialect = dialect
        await self._wire.send_event(session_update(dialect, self._settings) | {"event_id": "bench_session"})

    async def _converse(self) -> None:
        await self._until(lambda: self._is_updated, "session.updated")
        number, interrupted = 0, None
        while interrupted is not None or self._may_begin(number):
            recording = self._recordings[(self._log.caller + number) % len(self._recordings)]
            turn = CallTurn(self._log.caller, number, recording.name, begun_s=self._loop.time())
            self._log.turns.append(turn)
            number += 1
            try:
                is_cut = await self._hold(turn, recording, interrupted, number)
            except CallFailed as error:
                turn.error, turn.is_over = turn.error or error.kind, True
                raise
            finally:
                self._on_turn(turn)
            interrupted = turn if is_cut else None
            if not is_cut:
                await asyncio.sleep(self._random.uniform(0, 2 * self._settings.think_s))

    def _may_begin(self, number: int) -> bool:
        return number < self._settings.most_turns and self._loop.time() < self._until_s

    async def _hold(
        self, turn: CallTurn, recording: Recording, interrupted: CallTurn | None, number: int
    ) -> bool:
        """Hold one turn; returns whether the next question is to interrupt its reply."""
        speech = self._microphone.say(recording)
        self._turn = turn
        self._barge = None  # what the server hears now is this question
        turn.loud_s = await speech.loud
        turn.begun_s = speech.begun_s
        if interrupted is not None:
            await self._interrupt(interrupted, turn.loud_s)
        turn.submitted_s = await speech.ended
        if self._settings.turns == "manual":
            if interrupted is not None and interrupted.reply is not None:
                await self._until(lambda: interrupted.reply.is_done, "response.done of a cancelled reply")  # type: ignore[union-attr]
            turn.submitted_s = self._loop.time()
            await self._wire.send_event(
                {"type": "input_audio_buffer.commit", "event_id": f"bench_commit_{number}"}
            )
            await self._wire.send_event({"type": "response.create", "event_id": f"bench_create_{number}"})
        reply = await self._answer(turn, number)
        is_cut = False
        if reply is not None:
            draws_cut = self._random.random() < self._settings.barge_in
            after_s = self._random.uniform(*BARGE_IN_S)
            cut_s = reply.audio[0][0] + after_s if draws_cut and self._may_begin(number) else math.inf
            is_cut = await self._hear_out(reply, cut_s)
            self._judge(turn, reply, is_cut)
        turn.is_over = True
        return is_cut

    async def _interrupt(self, interrupted: CallTurn, loud_s: float) -> None:
        """Note the barge-in into a reply; a caller of manual turns stops it by itself."""
        reply = interrupted.reply
        if reply is None or not reply.is_playing(loud_s) or interrupted.barge is not None:
            return
        interrupted.barge = BargeIn(loud_s, noticed_s=reply.stopped_s)
        if self._settings.turns == "server":
            self._barge = interrupted.barge
            return
        interrupted.barge.noticed_s = self._loop.time()
        reply.stop(interrupted.barge.noticed_s)
        if not reply.is_done:
            cancel = {"type": "response.cancel", "response_id": reply.response_id}
            await self._wire.send_event(cancel | {"event_id": "bench_cancel"})
        await self._truncate(reply)

    async def _answer(self, turn: CallTurn, number: int) -> HeardReply | None:
        """Wait for the first sound of the turn's reply; None: it failed, and the call may go on."""
        refusals = {f"bench_commit_{number}", f"bench_create_{number}"}

        def is_known() -> bool:
            reply = self._reply_to(turn)
            return bool(self._refused_ids & refusals) or (
                reply is not None and (reply.has_sound or reply.is_done)
            )

        awaited = "first sound" if self._settings.turns == "manual" else "answer to a question"
        await self._until(is_known, awaited)
        reply = self._reply_to(turn)
        turn.reply = reply
        if reply is None:
            turn.error = f"error {self._wire.last_error}"
        elif not reply.has_sound:
            turn.error = f"reply without sound: {reply.status} {reply.failure}".strip()
        elif turn.submitted_s is not None and reply.created_s < turn.submitted_s:
            turn.error = EARLY
        return reply if reply is not None and reply.has_sound else None

    def _reply_to(self, turn: CallTurn) -> HeardReply | None:
        """The last reply that began after the turn's question did, unless the question went on over it."""
        assert turn.loud_s is not None and turn.submitted_s is not None, "the question is over"
        for reply in reversed(self._replies.values()):
            if reply.created_s < turn.loud_s:
                return None
            was_cut = reply.stopped_s is not None and reply.stopped_s <= turn.submitted_s
            if not was_cut and not (reply.status == "cancelled" and reply.created_s < turn.submitted_s):
                return reply
        return None

    async def _hear_out(self, reply: HeardReply, cut_s: float) -> bool:
        """Hear a reply to its end, or until some of it plays after cut_s; returns whether it was that."""
        while True:
            now, seen = self._loop.time(), len(reply.audio)
            if reply.stopped_s is not None and reply.is_done:
                return False
            if cut_s <= now < reply.dry_s:
                return True
            if reply.is_done and now >= reply.dry_s:
                return False
            # A player that has run dry is not spoken over: there is nothing to hear.
            end_s = min(reply.dry_s if reply.is_done else math.inf, cut_s if now < cut_s else math.inf)
            patience_s = math.inf if reply.is_done else self._settings.timeout_s
            await self._change(min(end_s - now, patience_s))
            is_silent = len(reply.audio) == seen and not reply.is_done
            if is_silent and self._loop.time() >= now + self._settings.timeout_s:
                raise CallFailed("timeout: reply stalled")

    def _judge(self, turn: CallTurn, reply: HeardReply, is_cut: bool) -> None:
        """Note what was wrong with a reply that was heard."""
        if turn.error is not None or is_cut:
            return
        if reply.status == "failed":
            turn.error = f"response failed {reply.failure}".strip()
        elif reply.stopped_s is not None or reply.status == "cancelled":
            turn.error = UNASKED

    async def _until(self, holds: Callable[[], bool], awaited: str) -> None:
        """Wait until something holds. Raises CallFailed after the settings' patience."""
        end_s = self._loop.time() + self._settings.timeout_s
        while not holds():
            await self._change(end_s - self._loop.time())
            if not holds() and self._loop.time() >= end_s:
                raise CallFailed(f"timeout: no {awaited}")

    async def _change(self, within_s: float) -> None:
        """Wait for the next event, for at most so long."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if within_s == math.inf else max(0.0, within_s)):
                await self._changed.wait()

    async def _read(self) -> None:
        async for event in self._events:
            now = self._loop.time()
            if event.type in AUDIO_DELTAS:
                self._reply(event.response_id, now).add(now, event.delta)
                self._note_place(event)
            elif event.type == "response.created":
                self._reply(part(event.response, "id"), now)
            elif event.type == "response.done":
                self._end_reply(event, now)
            elif event.type in TURN_EVENTS:
                await self._take_turn_event(TURN_EVENTS[event.type], now)
            elif event.type == "session.updated":
                self._is_updated = True
                self._rate = output_rate(event.session if isinstance(event.session, dict) else {})
            elif event.type == "error":
                self._note_error(event)
            else:
                continue
            self._changed.set()

    def _reply(self, response_id: object, now: float) -> HeardReply:
        """The reply of that id; a new one where there is none yet."""
        key = str(response_id)
        if key not in self._replies:
            self._replies[key] = HeardReply(key, now, self._rate)
        return self._replies[key]

    def _note_place(self, event: ReceivedEvent) -> None:
        reply = self._replies[str(event.response_id)]
        if reply.item_id is None and isinstance(event.item_id, str):
            reply.item_id = event.item_id
            reply.content_index = event.content_index if isinstance(event.content_index, int) else 0

    def _end_reply(self, event: ReceivedEvent, now: float) -> None:
        details = part(event.response, "status_details")
        failure = part(details, "error", "code") or part(details, "error", "type") or ""
        reply = self._reply(part(event.response, "id"), now)
        reply.end(now, str(part(event.response, "status") or ""), str(failure))
        message = part(details, "error", "message")
        if message:
            self._log.details.append(str(message))

    async def _take_turn_event(self, name: str, now: float) -> None:
        """Take the server's view of the user's turn; speech that began clears the player."""
        self._log.marks.append((now, name))
        if name == "speech_stopped" and self._turn is not None:
            self._turn.stopped_s = now
        if name != "speech_started":
            return
        if self._barge is not None and self._barge.noticed_s is None:
            self._barge.noticed_s = now
        for reply in self._replies.values():
            if reply.stopped_s is None and reply.is_playing(now):
                reply.stop(now)
                await self._truncate(reply)

    async def _truncate(self, reply: HeardReply) -> None:
        """Say how much of a reply was heard, as clients do."""
        if reply.item_id is None:
            return
        place = {"item_id": reply.item_id, "content_index": reply.content_index}
        cut = {"type": "conversation.item.truncate", "audio_end_ms": math.floor(1e3 * reply.heard_s)}
        await self._wire.send_event(cut | place | {"event_id": "bench_truncate"})

    def _note_error(self, event: ReceivedEvent) -> None:
        self._log.error_codes[self._wire.last_error] += 1
        self._refused_ids.add(str(part(event.error, "event_id")))
        message = part(event.error, "message")
        if message and len(self._log.details) < 8:
            self._log.details.append(f"{self._wire.last_error}: {message}")
        if part(event.error, "event_id") == "bench_session" and not self._is_updated:
            raise CallFailed(f"error {self._wire.last_error}", str(message or ""))


async def make_call(
    settings: CallSettings,
    recordings: Sequence[Recording],
    log: CallLog,
    *,
    until_s: float = math.inf,
    connect: Connect = connect,
    on_turn: Callable[[CallTurn], None] = lambda turn: None,
) -> None:
    """Call the server, hold the turns and hang up. All that goes wrong is in the log.

    until_s: the time after which no turn begins.
    """
    random = Random(f"{settings.seed} {log.caller} {log.number}")
    try:
        for is_beta in (False, True) if settings.dialect == "auto" else (settings.dialect == "beta",):
            try:
                wire = await Wire.open(settings, is_beta=is_beta, connect=connect)
            except CallFailed as error:
                if is_beta or settings.dialect != "auto" or not error.kind.startswith("HTTP 400"):
                    raise
                continue
            try:
                await Call(wire, settings, recordings, random, log, until_s, on_turn).run()
            finally:
                await wire.close()
            return
    except CallFailed as error:
        if not (log.turns and log.turns[-1].error == error.kind):
            log.failure = error.kind
        log.details.append(str(error))
    finally:
        log.ended_s = asyncio.get_running_loop().time()
