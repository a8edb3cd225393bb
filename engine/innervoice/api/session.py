"""Session: a conversation that keeps its pages, so that a turn only costs its new tokens."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Annotated, Any

import numpy as np

from innervoice.api.live_audio import LiveEncoder, Prefetcher, UserAudio
from innervoice.api.request_builder import NO_SPEECH_TOKENIZER, RequestBuilder, RequestOptions, SpokenCodes
from innervoice.codec.audio import read_frame
from innervoice.fields import Encodable, NotNegative, checked
from innervoice.runtime.interrupt import Behind, Cut
from innervoice.runtime.record import request_line
from innervoice.runtime.request import Request
from innervoice.runtime.snapshot import PausedReply, SessionSnapshot
from innervoice.runtime.stream import Stream
from innervoice.runtime.worker import Worker
from innervoice.schedule import Schedule, Segment
from innervoice.types import Heard, Prompt


class Session:
    """Turns that share one history. Made by `Engine.open_session`.

    Thread-safe; one reply at a time; a context manager.
    """

    def __init__(
        self,
        worker: Worker,
        live_encoder: LiveEncoder | None,
        requests: RequestBuilder,
        options: RequestOptions,
        model_id: str,
        injected: Sequence[int] = (),
    ) -> None:
        self.session_id = uuid.uuid4().hex
        self._worker = worker
        self._live_encoder = live_encoder
        self._requests = requests
        self._options = options
        self._model_id = model_id
        self._lock = threading.RLock()
        self._pushed: UserAudio | None = None
        self._committed: UserAudio | None = None
        self._is_closed = False
        self._injected = list(injected)

    @classmethod
    def open(
        cls,
        worker: Worker,
        live_encoder: LiveEncoder | None,
        requests: RequestBuilder,
        options: RequestOptions,
        model_id: str,
        snapshot: SessionSnapshot | None = None,
    ) -> Session:
        """Open a new session, or restore a snapshot. Raises OutOfCapacity, ValueError."""
        injected = () if snapshot is None else snapshot.injected
        session = cls(worker, live_encoder, requests, options, model_id, injected)
        worker.call_sessions(lambda sessions: sessions.open(session.session_id, snapshot))
        return session

    @checked
    def reply(self, prompt: Prompt | None = None, **request: Any) -> Stream:
        """Answer the prompt, or the committed audio, or go on with the reply that a fork or restore left
        unfinished.

        request: as for `Engine.stream`; the options of `open_session` are the defaults. A prompt leaves
        committed audio to a later reply. Raises ValueError for bad input, for a session that is closed or
        still replying, and for a history that the cache does not hold; RequestFailed when the audio could not
        be encoded.
        """
        submitted_s = self._worker.clock()
        options = self._options.changed(**request)
        # Wait for the codes of committed audio without the lock, so that the session can be closed meanwhile.
        committed = self._committed if prompt is None else None
        given = prompt if committed is None else SpokenCodes(tuple(committed.codes()))
        with self._lock:
            length, paused = self._worker.call_sessions(
                lambda sessions: sessions.session_state(self.session_id)
            )
            if prompt is None and committed is not self._committed:
                raise ValueError("the committed audio changed before it was answered: call reply() again")
            if given is None:
                return self._resume(paused, options, submitted_s)
            options, first = self._with_injected(options), length == 0
            made = self._requests.request(
                given, options, submitted_s, first=first, session_id=self.session_id
            )
            stream = self._submit(made)
            self._injected = []
            if committed is not None:
                self._committed = None
            return stream

    def push_audio(self, pcm: np.ndarray | bytes | bytearray | memoryview, rate: int) -> None:
        """Add frames of any size while the user speaks: float32 in [-1, 1] or int16, [T] or [T, C]; bytes are
        int16 mono.

        They are encoded as they come, whether a reply is running or not. Raises ValueError, nothing changed,
        for a rate that changes before commit_audio or clear_audio, for samples that are no sound, for a turn
        too long for a prompt and on a closed session; RequestFailed when earlier sound could not be encoded:
        clear_audio and begin again.
        """
        samples = read_frame(pcm, rate)
        with self._lock:
            self._check_open()
            if self._live_encoder is None:
                raise ValueError(NO_SPEECH_TOKENIZER)
            pushed = self._pushed
            if pushed is None:
                pushed = self._live_encoder.open(rate, self._prefetch)
            elif pushed.rate != rate:
                raise ValueError(
                    f"the rate changed from {pushed.rate} to {rate} Hz within a turn: commit_audio or clear_audio first"
                )
            try:
                pushed.push(samples)
            except BaseException:
                if self._pushed is None:
                    pushed.drop()
                raise
            self._pushed = pushed

    def commit_audio(self) -> None:
        """End the user's turn: the next `reply()` answers it.

        Raises ValueError when nothing was pushed, and while a turn before waits for its reply; then nothing
        changes.
        """
        with self._lock:
            self._check_open()
            if self._pushed is None:
                raise ValueError("nothing was pushed: push_audio first")
            if self._committed is not None:
                raise ValueError("a turn is committed and not answered: reply() to it, or clear_audio")
            self._pushed.end()
            self._pushed, self._committed = None, self._pushed

    def clear_audio(self) -> None:
        """Forget pushed audio that is not answered yet, committed or not."""
        with self._lock:
            for turn in (self._pushed, self._committed):
                if turn is not None:
                    turn.drop()
            self._pushed = None
            self._committed = None

    @checked
    def inject(self, text: Annotated[str, Encodable()]) -> None:
        """Queue a hidden segment, such as a tool's result, that the next reply begins with, word for word."""
        ids = self._requests.tokenizer.encode(text)
        if not ids:
            raise ValueError("the text to inject is empty")
        with self._lock:
            self._injected += ids

    @checked
    def ack_playback(self, played_ms: NotNegative, *, reply_id: str | None = None) -> None:
        """Report how much of a reply the player has played, from its beginning: of the last reply, or of the
        named one.

        Cumulative. From then on the engine goes by the reports; without any, the reply is taken to play in
        real time from its first sample. A report on an earlier reply of this session is counted and changes
        nothing. Raises ValueError, nothing changed, for a negative time, for more than was sent, and for a
        reply that this session did not make.
        """
        now = self._worker.clock()
        played_s = played_ms / 1e3
        self._worker.call_sessions(
            lambda sessions: sessions.acknowledge(self.session_id, now, played_s, reply_id)
        )

    @checked
    def interrupt(
        self, played_ms: NotNegative | None = None, *, cut: Cut = "speech", reflection: Behind = "drop"
    ) -> Heard:
        """Stop the reply because the user speaks, and cut the history to the part that was heard -> the part
        that is kept.

        played_ms: the part that was played, None: as acknowledged or assumed. cut "speech": keep up to the
        last speech token that was heard, with the text that had run ahead of it. "transcript": text that was
        not heard yet is removed too (estimate `proportional`), and the tokens behind it are computed again.
        reflection "keep": hidden tokens behind the cut stay. A reply that is over can be interrupted while it
        plays. Its stream ends with Done, "interrupted"; unread events are dropped. Raises ValueError, nothing
        changed, for bad arguments, as `ack_playback`, and in a session that has not replied.
        """
        now = self._worker.clock()
        played_s = None if played_ms is None else played_ms / 1e3
        return self._worker.interrupt(
            lambda sessions: sessions.interrupt(self.session_id, now, played_s, cut, reflection)
        )

    def fork(self) -> Session:
        """Open a second session with the same history, sharing its pages; a running reply is left unfinished
        in it.

        Raises OutOfCapacity when all sessions are in use.
        """
        with self._lock:
            twin = Session(
                self._worker,
                self._live_encoder,
                self._requests,
                self._options,
                self._model_id,
                self._injected,
            )
            self._worker.call_sessions(lambda sessions: sessions.fork(self.session_id, twin.session_id))
            twin._pushed = None if self._pushed is None else self._pushed.copy(twin._prefetch)
            twin._committed = self._committed
            return twin

    def export(self) -> bytes:
        """Return token ids, kinds, cursor and seed for `open_session(restore=)`, without audio that was
        pushed.
        """
        with self._lock:
            made: SessionSnapshot = self._worker.call_sessions(
                lambda sessions: sessions.export(self.session_id, self._model_id)
            )
            return replace(made, injected=list(self._injected)).to_bytes()

    def close(self) -> None:
        """End the session's reply and free its pages; any number of times."""
        with self._lock:
            self._is_closed = True
            self.clear_audio()
        self._worker.close_session(self.session_id)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the session is closed: open a new one, or restore it from an export")

    def _prefetch(self, sessions: Prefetcher, codes: Sequence[int] | None) -> None:
        """Pass on the beginning of the prompt whose recording is being pushed; on the core's thread."""
        if codes is None:
            sessions.prefetch(self.session_id, ())
            return
        length, _ = sessions.session_state(self.session_id)
        head = self._requests.spoken_head(codes, self._options.system, first=length == 0)
        sessions.prefetch(self.session_id, head)

    def _resume(self, paused: PausedReply | None, options: RequestOptions, submitted_s: float) -> Stream:
        if paused is None:
            raise ValueError(
                "there is nothing to reply to: give a prompt, or push_audio and commit_audio first"
            )
        options = options.changed(schedule=Schedule.from_dict(paused.schedule), sampling=paused.sampling)
        made = self._requests.request(None, options, submitted_s, session_id=self.session_id)
        return self._submit(made)

    def _submit(self, request: Request) -> Stream:
        stream = self._worker.submit(request, request.output_rate or self._requests.sample_rate)
        stream.make_record = partial(request_line, request, self._model_id, stream.history)
        return stream

    def _with_injected(self, options: RequestOptions) -> RequestOptions:
        """Put injected text into the schedule as its first segment, in open and close where the model has
        them.
        """
        if not self._injected:
            return options
        program = self._requests.compile(options.schedule)
        around = program.vocabulary
        ids = [i for i in (around.open, *self._injected, around.close) if i is not None]
        schedule = program.schedule
        if not schedule.guided:
            raise ValueError("a free reply takes no injected text: use a guided schedule")
        return options.changed(
            schedule=replace(schedule, prologue=(Segment("forced", ids=tuple(ids)), *schedule.prologue))
        )
