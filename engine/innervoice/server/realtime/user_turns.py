"""UserTurns: the user's turns, ended by the client or by turn detection, and what follows from them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from innervoice.server.errors import ApiError
from innervoice.server.realtime.items import ConversationItem, Part
from innervoice.server.realtime.protocol import server_events
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.replies import Replies
from innervoice.server.realtime.scope import Scope
from innervoice.server.realtime.sound_format import decode, encode
from innervoice.server.realtime.sound_input import SoundInput, Utterance
from innervoice.server.transcriber import TranscriptionFailed
from innervoice.server.turn_detector import SpeechStarted, SpeechStopped

log = logging.getLogger(__name__)


class UserTurns:
    """The user's sound and turns in one conversation. All methods run on the event loop."""

    def __init__(self, scope: Scope, replies: Replies) -> None:
        self._scope = scope
        self._replies = replies
        self._item_id = new_id("item")  # of the utterance to come
        self._has_unanswered = False  # a turn to be answered when the reply that runs has ended
        self._timer: asyncio.TimerHandle | None = None
        self._transcriptions: set[asyncio.Task[None]] = set()
        self.audio = SoundInput(
            scope.session,
            scope.server.listener,
            self._on_started,
            self._on_stopped,
            lambda: replies.is_audible,
            scope.report_failure,
            scope.config.input_format,
        )
        self.audio.configure(scope.config.turn_detection, scope.config.input_format)

    def append(self, sound: bytes) -> None:
        """Take sound of the client. Raises ApiError, and then it is not taken."""
        pcm = decode(sound, self._scope.config.input_format)
        before_ms = self.audio.now_ms
        self.audio.append(pcm)
        self._scope.server.metrics.received_audio((self.audio.now_ms - before_ms) / 1e3)

    def commit(self) -> None:
        """End the turn for the client; nothing is answered. Raises ApiError for less than 100 ms."""
        self._take(self._committed(), "manual")

    def clear(self) -> None:
        """Forget sound that is not committed."""
        self.audio.clear()
        self._item_id = new_id("item")
        self._scope.send(server_events.cleared())

    def on_idle(self) -> None:
        """Go on when the conversation's reply has ended: answer a turn that waited, or wait for the user."""
        if self._has_unanswered:
            self._answer()
        else:
            self._await_user()

    def close(self) -> None:
        """End detection, timers and transcriptions."""
        self.audio.close()
        self._stop_timer()
        for task in self._transcriptions:
            task.cancel()

    def _on_started(self, found: SpeechStarted) -> None:
        self._stop_timer()
        turns = self._scope.config.turn_detection or {}
        if turns.get("interrupt_response"):
            self._replies.barge_in()
        self._scope.send(server_events.speech_started(self._item_id, round(found.audio_start_ms)))
        try:
            self.audio.begin(found.audio_start_ms)
        except ApiError as error:
            self._scope.send_error(error, None)

    def _on_stopped(self, found: SpeechStopped) -> None:
        scope = self._scope
        scope.send(server_events.speech_stopped(self._item_id, round(found.audio_end_ms)))
        scope.server.metrics.speech_end_lag(max(0.0, self.audio.now_ms - found.speech_end_ms) / 1e3)
        try:
            utterance = self._committed(found.speech_end_ms, found.audio_end_ms)
        except ApiError as error:
            if error.code != "input_audio_buffer_commit_empty":
                scope.send_error(error, None)
            self.audio.clear()
            self._item_id = new_id("item")
            return
        turns = scope.config.turn_detection or {}
        self._take(utterance, str(turns.get("type", "manual")))
        if turns.get("create_response"):
            self._answer()

    def _committed(self, speech_end_ms: float | None = None, end_ms: float | None = None) -> Utterance:
        """Commit the open utterance; not to the session while a reply that must not answer it is asked for.

        Raises ApiError, nothing changed.
        """
        if self._item_id in self._scope.items:  # a client took the name
            self._item_id = new_id("item")
        self._scope.items.check_room()
        is_apart = self._scope.history.is_asking
        return self.audio.commit(self._item_id, speech_end_ms, end_ms, is_apart=is_apart)

    def _answer(self) -> None:
        """Begin a reply to the turn, or note that one is due when the present reply ends."""
        self._has_unanswered = self._replies.is_active
        if not self._has_unanswered:
            try:
                self._replies.create()
            except ApiError as error:
                self._scope.send_error(error, None)

    def _take(self, utterance: Utterance, detection: str) -> None:
        """Make an item of committed sound, and announce it."""
        scope = self._scope
        scope.reveal()
        part = Part("input_audio", audio=encode(utterance.samples, utterance.format), format=utterance.format)
        item = ConversationItem(utterance.item_id, role="user", content=[part])
        previous = scope.items.insert(item)
        if utterance.is_pending:
            scope.history.add_utterance(item)
        scope.remember_sound(item)
        self._item_id = new_id("item")
        self._replies.note_turn(True, scope.clock())
        scope.server.metrics.turn(detection)
        scope.send(server_events.committed(item.id, previous))
        scope.announce(item, previous)
        self._transcribe(item, utterance)

    def _transcribe(self, item: ConversationItem, utterance: Utterance) -> None:
        settings, transcriber = self._scope.config.transcription, self._scope.server.transcriber
        if settings is None or transcriber is None:
            return

        async def run() -> None:
            rate = 24000 if utterance.format == "audio/pcm" else 8000
            try:
                made = await transcriber.transcribe(
                    utterance.samples,
                    rate,
                    language=settings.get("language"),
                    prompt=settings.get("prompt"),
                )
            except TranscriptionFailed as error:
                self._scope.send(server_events.transcription_failed(item.id, f"{error}"))
                return
            except Exception:
                log.exception("a transcriber failed")
                message = "the transcription failed: see the server's log"
                self._scope.send(server_events.transcription_failed(item.id, message))
                return
            item.content[0].transcript = made.text
            self._scope.send(server_events.transcription_completed(item.id, made.text, made.duration_s))

        task = asyncio.get_running_loop().create_task(run())
        self._transcriptions.add(task)
        task.add_done_callback(self._transcriptions.discard)

    def _await_user(self) -> None:
        """Start the time that the user has to speak after the reply has been played."""
        self._stop_timer()
        timeout_ms = (self._scope.config.turn_detection or {}).get("idle_timeout_ms")
        if timeout_ms is None or self.audio.is_speaking:
            return
        unplayed_s = max(0.0, self._replies.audible_until_s - self._scope.clock())
        self._timer = self._scope.later(unplayed_s + timeout_ms / 1e3, self._on_timeout)

    def _on_timeout(self) -> None:
        """Commit the silence, and let the assistant speak."""
        self._timer = None
        scope = self._scope
        timeout_ms = (scope.config.turn_detection or {}).get("idle_timeout_ms")
        if timeout_ms is None or self.audio.is_speaking or self._replies.is_active:
            return
        end_ms = self.audio.now_ms
        id = self._item_id
        start_ms = max(0.0, end_ms - timeout_ms)
        scope.send(server_events.timeout_triggered(id, round(start_ms), round(end_ms)))
        with suppress(ApiError):
            self._take(self._committed(), "server_vad")
        self._answer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
