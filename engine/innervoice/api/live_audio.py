"""Listening: what users say becomes codes while they say it, the blocks of all sessions in one call, and the core reads ahead.

A frame costs its sender a copy. One thread feeds the frames to the speech tokenizer's streams, a block's worth of each session
a round, so that a long recording holds up nobody; after each round it tells the core how the prompts begin that have grown or
changed. When a turn ends, its open block is left to encode, and what came during the present round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from innervoice.codec.audio import check_samples
from innervoice.codec.speech_codec import SpeechEncoder, SpeechStream
from innervoice.runtime.snapshot import PausedReply
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed, Samples


class ReadsAhead(Protocol):
    """What a core offers to a listener."""

    def session_state(self, session_id: str) -> tuple[int, PausedReply | None]:
        """Tokens of the dialogue's history, and a reply that was left unfinished. Raises ValueError while it replies."""
        ...

    def prefetch(self, session_id: str, ids: Sequence[int]) -> None:
        """What the dialogue's next prompt seems to begin with, behind its history: worth computing now.

        It replaces what was told before, with which it has a beginning in common; no ids: forget it. The `prompt_ids` of the
        request that follows count, whatever was told. Raises ValueError for a dialogue that replies or is gone, OutOfCapacity
        when there is no room: then it is told again, with the next frame.
        """
        ...


Tell = Callable[
    [ReadsAhead, Sequence[int] | None], None
]  # the codes so far, None: forget them; raises what `prefetch` does
Call = Callable[[Callable[[ReadsAhead], None]], None]
Count = Callable[[str, int], None]


@dataclass
class Listened:
    """Speech tokens: encoded, again or not; of these, encoded again because a louder frame came, and after the turn's end."""

    encoded_tokens: int = 0
    recomputed_tokens: int = 0
    late_tokens: int = 0

    def add(self, encoded: int, recomputed: int, late: int) -> None:
        """Count some more."""
        self.encoded_tokens += encoded
        self.recomputed_tokens += recomputed
        self.late_tokens += late


class UserAudio:
    """What a user says in one turn, in frames at one rate. Thread-safe. Made by `Listener.open`."""

    def __init__(self, listener: Listener, stream: SpeechStream, tell: Tell) -> None:
        self.rate = stream.rate
        self.listened = Listened()
        self._listener, self._tell = listener, tell
        self._result: Future[list[int]] = Future()
        # All of the rest is under the listener's lock; the stream and _told are its thread's.
        self._stream = stream
        self._frames: list[Samples] = []  # kept for copies
        self._num_fed = 0  # frames
        self._num_samples = self._wake_len = 0
        self._is_ended = self._is_dropped = False
        self._codes: list[int] = []
        self._told: list[int] | None = None

    def push(self, samples: Samples) -> None:
        """The next samples [T], which nobody changes any more.

        Raises what `check_samples` does, ValueError after the end and for more than a prompt holds, RequestFailed after a
        failure, EngineDead; then nothing changes.
        """
        check_samples(samples, self.rate, "frame")
        with self._listener.lock:
            self._listener.check_open()
            if self._result.done():
                self._result.result()
            if self._is_ended:
                raise ValueError("the turn has ended: open another one")
            self._listener.check_len(self._num_samples + len(samples), self.rate)
            most = self._listener.block_len(self.rate)
            self._frames += [samples[start : start + most] for start in range(0, len(samples), most)]
            self._num_samples += len(samples)
            if self._num_samples >= self._wake_len:
                self._listener.wake(self)

    def end(self) -> None:
        """No more samples: the rest is encoded now. Raises ValueError when there are none, what `push` raises after a failure."""
        with self._listener.lock:
            self._listener.check_open()
            if self._result.done():
                self._result.result()
            if not self._num_samples:
                raise ValueError("the turn holds 0 samples: push some sound before its end")
            self._is_ended = True
            self._listener.wake(self)

    def codes(self) -> list[int]:
        """Wait until all is encoded, after `end`: the codes that `SpeechTokenizer.encode` gives of the whole.

        Raises RequestFailed when encoding failed, ValueError before the end or when the engine closed, EngineDead.
        """
        with self._listener.lock:
            if not self._is_ended and not self._result.done():
                raise ValueError("the turn has not ended: end it first")
        return list(self._result.result())

    def drop(self) -> None:
        """Nobody wants it any more: the core forgets it. One that has ended still has its codes, which a copy may wait for."""
        with self._listener.lock:
            self._is_dropped = True
            if not self._is_ended:
                self._fail(ValueError("the turn was cleared: push its sound again"))
            self._listener.wake(self)

    def copy(self, tell: Tell) -> UserAudio:
        """The same sound so far, to go its own way; one that has ended is shared."""
        with self._listener.lock:
            if self._is_ended or self._result.done():
                return self
            twin = self._listener.open(self.rate, tell)
            for frame in self._frames:
                twin.push(frame)
            return twin

    def _fail(self, error: BaseException) -> None:
        if not self._result.done():
            self._result.set_exception(error)
        self._frames = []


class Listener:
    """Encodes the utterances of all sessions on a thread of its own, which the first of them starts.

    max_tokens: more speech tokens than that no turn may have. call: runs what it is given on the core's thread and waits, as
    `Worker.call` does; None: nobody reads ahead. count: told of tokens encoded_ahead (before their turn's end), encoded_late,
    and encoded_again (of both: because a louder frame came). begin: what the thread does first.
    """

    def __init__(
        self,
        tokenizer: SpeechEncoder,
        max_tokens: int,
        call: Call | None = None,
        count: Count = lambda what, number: None,
        begin: Callable[[], object] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.listened = Listened()  # by all utterances together
        self._tokenizer, self._max_tokens, self._call, self._count = tokenizer, max_tokens, call, count
        self._begin_thread = begin
        self._changed = threading.Condition(self.lock)
        self._waiting: dict[UserAudio, None] = {}  # in order
        self._open: set[UserAudio] = set()
        self._is_closing = False
        self._death: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def num_open(self) -> int:
        """Utterances that are neither encoded to their end nor dropped."""
        return len(self._open)

    def open(self, rate: int, tell: Tell) -> UserAudio:
        """A new utterance at `rate` Hz; tell: how its codes become what the core reads ahead.

        Raises ValueError for a rate that sound has not and on a closed engine, EngineDead.
        """
        made = UserAudio(self, self._tokenizer.stream(rate), tell)
        with self.lock:
            self.check_open()
            self._open.add(made)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="innervoice-listener", daemon=True)
                self._thread.start()
        return made

    def close(self) -> None:
        """Take no more and stop; whoever waits for codes gets a ValueError."""
        with self.lock:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the thread has stopped on a failure."""
        if self._death is not None:
            raise EngineDead(f"the engine stopped listening: {self._death}") from self._death

    def check_open(self) -> None:
        """Raise EngineDead, or ValueError when it is closed."""
        self.check_health()
        if self._is_closing:
            raise ValueError("the engine is closed: make a new one with Engine.from_pretrained")

    def check_len(self, num_samples: int, rate: int) -> None:
        """Raise ValueError when so many samples are more than a prompt holds."""
        most = self._max_tokens
        num = self._tokenizer.count_codes(num_samples, rate)
        if num > most:
            raise ValueError(
                f"the turn would hold {num_samples / rate:.1f} s of sound, {num} tokens, and a prompt has at most {most}: "
                "end it, or load the model with a larger max_model_len"
            )

    def block_len(self, rate: int) -> int:
        """Samples at `rate` Hz of a block of the tokenizer's."""
        return self._tokenizer.block_len(rate)

    def wake(self, utterance: UserAudio) -> None:
        """There is something to do for that utterance. The lock is held."""
        self._waiting[utterance] = None
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            if self._begin_thread is not None:
                self._begin_thread()
            while batch := self._next_batch():
                self._round(batch)
            self._stop(ValueError("the engine was closed before the turn was encoded"))
        except BaseException as error:
            with self.lock:
                self._death = error
            failure = EngineDead(f"the engine stopped listening: {error}")
            failure.__cause__ = error
            self._stop(failure)

    def _stop(self, error: Exception) -> None:
        with self.lock:
            for utterance in self._open:
                utterance._fail(error)
            self._open.clear()

    def _next_batch(self) -> list[UserAudio]:
        """Wait for utterances with something to do, all of them; none: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            batch, self._waiting = list(self._waiting), {}
            return [] if self._is_closing else batch

    def _round(self, batch: Sequence[UserAudio]) -> None:
        alive = [utterance for utterance in batch if not utterance._result.done()]
        ended = {utterance for utterance in alive if self._feed(utterance)}
        self._encode(alive)
        for utterance in alive:
            self._absorb(utterance)
        self._read_ahead([u for u in batch if u not in ended or u._is_dropped])
        with self.lock:
            for utterance in ended:
                if not utterance._result.done():
                    utterance._result.set_result(utterance._codes)
            for utterance in batch:
                self._leave(utterance)

    def _feed(self, utterance: UserAudio) -> bool:
        """About a block of frames into its stream; whether the last are among them."""
        with self.lock:
            frames: list[Samples] = []
            while utterance._num_fed < len(utterance._frames) and sum(map(len, frames)) < self.block_len(
                utterance.rate
            ):
                frames.append(utterance._frames[utterance._num_fed])
                utterance._num_fed += 1
            is_last = utterance._is_ended and utterance._num_fed == len(utterance._frames)
        with _failures_of(utterance):
            if frames:
                utterance._stream.push(np.concatenate(frames))
            if is_last:
                utterance._stream.end()
        return is_last

    def _encode(self, utterances: Sequence[UserAudio]) -> None:
        """What is ready in all streams; when a call fails, one stream after the other, to find which it belongs to."""
        try:
            self._tokenizer.step([utterance._stream for utterance in utterances])
        except Exception:
            for utterance in utterances:
                with _failures_of(utterance):
                    self._tokenizer.step([utterance._stream])

    def _absorb(self, utterance: UserAudio) -> None:
        if utterance._result.done():
            return
        stream, counted = utterance._stream, utterance.listened
        start, codes = stream.take()
        with self.lock:
            utterance._codes[start:] = codes
            recomputed = stream.num_recomputed - counted.recomputed_tokens
            encoded = len(utterance._codes) + stream.num_recomputed - counted.encoded_tokens
            is_late = utterance._is_ended
            for counter in (counted, self.listened):
                counter.add(encoded, recomputed, encoded if is_late else 0)
        for what, number in (
            ("encoded_late" if is_late else "encoded_ahead", encoded),
            ("encoded_again", recomputed),
        ):
            if number:
                self._count(what, number)

    def _read_ahead(self, utterances: Sequence[UserAudio]) -> None:
        """Tell the core what has changed, in one call."""
        news = [u for u in utterances if (u._told is not None if u._is_dropped else u._told != u._codes)]

        def order(core: ReadsAhead) -> None:
            for utterance in news:
                codes = None if utterance._is_dropped else list(utterance._codes)
                with suppress(ValueError, OutOfCapacity):  # not now: it stays untold
                    utterance._tell(core, codes)
                    utterance._told = codes

        if news and self._call is not None:
            with suppress(ValueError, EngineDead):  # the engine is closed or dead, as replies will say
                self._call(order)

    def _leave(self, utterance: UserAudio) -> None:
        """When to come back to it. The lock is held."""
        if utterance._result.done():
            utterance._frames = []
            self._open.discard(utterance)
        elif utterance._is_ended or utterance._num_fed < len(utterance._frames):
            self.wake(utterance)
        elif self._call is not None and utterance._told != utterance._codes:
            utterance._wake_len = 0
        else:
            utterance._wake_len = utterance._num_samples + utterance._stream.num_missing


@contextmanager
def _failures_of(utterance: UserAudio) -> Iterator[None]:
    """What fails inside is that utterance's and nobody else's failure."""
    try:
        yield
    except Exception as error:
        failure = RequestFailed(f"the sound could not be encoded: {error}")
        failure.__cause__ = error
        with utterance._listener.lock:
            utterance._fail(failure)
