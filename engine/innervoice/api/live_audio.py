"""Turns users' speech into codes while they speak, the blocks of all sessions in one call, so that the core
can prefetch.

A frame costs its sender a copy. One thread feeds the frames to the speech encoder's streams, a block's worth
of each session a round, so that a long recording holds up no other; after each round the core gets the
beginnings of prompts that have grown or changed, and computes them ahead (prefetch). When a turn ends, its
open block is left to encode, and the frames that came during the present round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Protocol

import numpy as np

from innervoice.api.encoded_counts import EncodedCounts
from innervoice.codec.audio import check_samples
from innervoice.codec.speech_codec import SpeechEncoder, SpeechStream
from innervoice.runtime.session_state import History
from innervoice.runtime.stoppable_thread import StoppableThread
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed, Samples


class Prefetcher(Protocol):
    """The part of a core that computes the beginning of a prompt while its user still speaks."""

    def history(self, session_id: str, *, tokens: bool = True) -> History:
        """The session's items, and its tokens if they are asked for.

        Raises ValueError while it replies.
        """
        ...

    def set_history(self, session_id: str, history: History) -> None:
        """Give the session other items and tokens. Raises ValueError while it replies."""
        ...

    def prefetch(self, session_id: str, ids: Sequence[int]) -> None:
        """Compute the likely beginning of the session's next prompt, behind its history, when there is room.

        It replaces the ids of the call before, with which it has a beginning in common; no ids: forget them.
        The `prompt_ids` of the request that follows count, whatever was prefetched. Raises ValueError for a
        session that replies or is gone, OutOfCapacity when there is no room: then the next frame tries again.
        """
        ...


Publish = Callable[[Prefetcher, Sequence[int] | None], None]
"""Passes the codes so far to a core, or None to have them forgotten; raises the errors of `prefetch`."""
CallCore = Callable[[Callable[[Prefetcher], None]], None]
"""Runs a function on the core's thread and waits for it, as `Worker.call` does."""
CountTokens = Callable[[str, int], None]


class UserAudio:
    """The speech of a user in one turn, in frames at one rate. Made by `LiveEncoder.open`.

    `push`, `end`, `codes`, `drop` and `copy` are for any thread. The other methods are the encoder's, for its
    thread; those that say so want its lock held.
    """

    def __init__(self, encoder: LiveEncoder, stream: SpeechStream, publish: Publish) -> None:
        self.rate = stream.rate
        self.counts = EncodedCounts()
        self.stream = stream  # used on the encoder's thread alone
        self.is_dropped = False
        self._encoder = encoder
        self._publish = publish
        self._result: Future[list[int]] = Future()
        self._is_ended = False
        self._frames: list[Samples] = []  # kept for copies
        self._num_fed = 0  # frames that are in the stream
        self._num_samples = 0
        self._wake_len = 0  # samples from which on a push wakes the encoder
        self._codes: list[int] = []
        self._num_encoded_before = 0  # tokens whose sound was dropped, or that were encoded again without it
        self._is_too_long = False  # the stream has sound that was dropped: a shorter one takes its place
        self._published: list[int] | None = (
            None  # codes that the core has; used on the encoder's thread alone
        )

    def push(self, samples: Samples) -> None:
        """Append samples [T], which must not be changed afterwards.

        Raises the errors of `check_samples`, ValueError after the end and for more than a prompt holds,
        RequestFailed after a failure, EngineDead; then nothing changes.
        """
        check_samples(samples, self.rate, "frame")
        with self._encoder.lock:
            self._check_usable()
            if self._is_ended:
                raise ValueError("the turn has ended: open another one")
            self._encoder.check_len(self._num_samples + len(samples), self.rate)
            most = self._encoder.block_len(self.rate)
            self._frames += [samples[start : start + most] for start in range(0, len(samples), most)]
            self._num_samples += len(samples)
            if self._num_samples >= self._wake_len:
                self._encoder.wake(self)

    def end(self, drop_s: float = 0.0) -> None:
        """End the turn: the rest is encoded now, without the last drop_s seconds.

        Raises ValueError without samples and when none would be left, the errors of `push` after a failure.
        """
        with self._encoder.lock:
            self._check_usable()
            if not self._num_samples:
                raise ValueError("the turn holds 0 samples: push some sound before its end")
            num_kept = self._num_samples - round(drop_s * self.rate)
            if num_kept <= 0:
                raise ValueError(
                    f"drop_ms is {1e3 * drop_s:g} and the turn has {1e3 * self._num_samples / self.rate:.0f} ms: "
                    "nothing would be left, clear_audio forgets it"
                )
            if num_kept < self._num_samples:
                self._drop_end(num_kept)
            self._is_ended = True
            self._encoder.wake(self)

    def _drop_end(self, num_kept: int) -> None:
        """Keep the first samples. The lock is held."""
        num_fed = sum(map(len, self._frames[: self._num_fed]))
        self._is_too_long = num_fed > num_kept
        frames: list[Samples] = []
        left = num_kept
        for frame in self._frames:
            if left:
                frames.append(frame[:left])
                left -= len(frames[-1])
        self._frames, self._num_samples = frames, num_kept

    def codes(self) -> list[int]:
        """Wait until all is encoded, after `end`: the codes that the speech encoder gives of the whole.

        Raises RequestFailed when encoding failed, ValueError before the end or when the engine closed,
        EngineDead.
        """
        with self._encoder.lock:
            if not self._is_ended and not self.is_settled:
                raise ValueError("the turn has not ended: end it first")
        return list(self._result.result())

    def drop(self) -> None:
        """Forget the turn, and have the core forget it.

        One that has ended still has its codes, which a copy may wait for.
        """
        with self._encoder.lock:
            self.is_dropped = True
            if not self._is_ended:
                self.fail(ValueError("the turn was cleared: push its sound again"))
            self._encoder.wake(self)

    def copy(self, publish: Publish) -> UserAudio:
        """Another turn with the same sound so far; one that has ended is shared."""
        with self._encoder.lock:
            if self._is_ended or self.is_settled:
                return self
            twin = self._encoder.open(self.rate, publish)
            for frame in self._frames:
                twin.push(frame)
            return twin

    @property
    def done(self) -> Future[list[int]]:
        """The future of the codes, for those who wait in an event loop; not to be cancelled."""
        return self._result

    @property
    def is_settled(self) -> bool:
        """Whether the codes are complete, or will never be."""
        return self._result.done()

    def fail(self, error: BaseException) -> None:
        """Give those who wait for the codes an error, unless they have them. The lock is held."""
        if not self.is_settled:
            self._result.set_exception(error)
        self._frames = []

    def settle(self) -> None:
        """Give those who wait for the codes the codes, which are complete. The lock is held."""
        if not self.is_settled:
            self._result.set_result(self._codes)

    @contextmanager
    def owning_failures(self) -> Iterator[None]:
        """Make an exception inside the block the failure of this turn, and of no other."""
        try:
            yield
        except Exception as error:
            failure = RequestFailed(f"the sound could not be encoded: {error}")
            failure.__cause__ = error
            with self._encoder.lock:
                self.fail(failure)

    def feed(self, most: int) -> bool:
        """Push frames into the stream until they have `most` samples or more; returns whether the turn's last
        are among them.
        """
        self._shorten()
        with self._encoder.lock:
            frames: list[Samples] = []
            while self._num_fed < len(self._frames) and sum(map(len, frames)) < most:
                frames.append(self._frames[self._num_fed])
                self._num_fed += 1
            is_last = self._is_ended and self._num_fed == len(self._frames)
        with self.owning_failures():
            if frames:
                self.stream.push(np.concatenate(frames))
            if is_last:
                self.stream.end()
        return is_last

    def _shorten(self) -> None:
        """Have the stream hold the kept frames alone, if it has others: they stay as they are from now on."""
        with self._encoder.lock:
            kept = list(self._frames) if self._is_too_long else []
            self._is_too_long = False
        if kept:
            with self.owning_failures():
                self.stream = self.stream.shortened(np.concatenate(kept))
                self._num_encoded_before = self.counts.encoded_tokens - self.stream.num_encoded
                self._num_fed = len(kept)

    def absorb(self) -> EncodedCounts:
        """Take the codes that the stream has made or changed, and count them."""
        start, codes = self.stream.take()
        with self._encoder.lock:
            self._codes[start:] = codes
            num_again = self._num_encoded_before + self.stream.num_recomputed
            recomputed = num_again - self.counts.recomputed_tokens
            encoded = len(self._codes) + num_again - self.counts.encoded_tokens
            made = EncodedCounts(encoded, recomputed, encoded if self._is_ended else 0)
            self.counts.add(made)
            self._encoder.counts.add(made)
        return made

    @property
    def has_news(self) -> bool:
        """Whether the core has other codes than there are, or any of a turn that was dropped."""
        if self.is_dropped:
            return self._published is not None
        return self._published != self._codes

    def publish(self, core: Prefetcher) -> None:
        """Pass the codes to the core; if it refuses them now, they stay news. On the core's thread."""
        codes = None if self.is_dropped else list(self._codes)
        with suppress(ValueError, OutOfCapacity):
            self._publish(core, codes)
            self._published = codes

    def schedule(self, is_prefetched: bool) -> bool:
        """Decide when to come back to it; returns whether it is over. The lock is held."""
        if self.is_settled:
            self.forget_sound()
            return True
        if self._is_ended or self._num_fed < len(self._frames):
            self._encoder.wake(self)
        elif is_prefetched and self.has_news:
            self._wake_len = 0  # with the next frame
        else:
            self._wake_len = self._num_samples + self.stream.num_missing
        return False

    def forget_sound(self) -> None:
        """Drop the frames and the encoder's stream of a turn that is over. The lock is held."""
        self._frames = []
        if hasattr(self, "stream"):
            del self.stream

    def _check_usable(self) -> None:
        """Raise the error that ended the turn or the engine, if one did. The lock is held."""
        self._encoder.check_open()
        if self.is_settled:
            self._result.result()


class LiveEncoder:
    """Encodes the turns of all sessions on a thread of its own, which the first of them starts.

    max_tokens: the most speech tokens of a turn. call_core: None: nothing is prefetched. count: gets the
    numbers of tokens encoded_ahead (before their turn's end), encoded_late, and encoded_again (of both,
    because a louder frame came). begin: runs first on the thread.
    """

    def __init__(
        self,
        speech_encoder: SpeechEncoder,
        max_tokens: int,
        call_core: CallCore | None = None,
        count: CountTokens = lambda name, number: None,
        begin: Callable[[], object] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.counts = EncodedCounts()  # of all turns together
        self._speech_encoder = speech_encoder
        self._max_tokens = max_tokens
        self._call_core = call_core
        self._count = count
        self._begin_thread = begin
        self._changed = threading.Condition(self.lock)
        self._waiting: dict[UserAudio, None] = {}  # in order
        self._open: set[UserAudio] = set()
        self._is_closing = False
        self._death: BaseException | None = None
        self._thread: StoppableThread | None = None

    @property
    def num_open(self) -> int:
        """Turns that the thread is not done with: it lets go of one in the round after its end or drop."""
        return len(self._open)

    def open(self, rate: int, publish: Publish) -> UserAudio:
        """Begin a turn at `rate` Hz; publish: passes its codes to the core for prefetching.

        Raises ValueError for a rate that sound has not and on a closed engine, EngineDead.
        """
        with self.lock:
            self.check_open()
            made = UserAudio(self, self._speech_encoder.stream(rate), publish)
            if self._thread is None:
                thread = StoppableThread(self._run, self.stop, "innervoice-listener")
                thread.start()
                self._thread = thread
            self._open.add(made)
        return made

    def close(self) -> None:
        """Take no more and stop; those who wait for codes get a ValueError."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        with self.lock:
            if self._thread is None or self._thread.is_over:
                self._free()

    def stop(self) -> None:
        """Take no more; the thread ends after the round that it is in."""
        with self.lock:
            self._is_closing = True
            self._changed.notify_all()

    def _free(self) -> None:
        """Drop the speech encoder with its weights: nothing reaches it after the end. The lock is held."""
        if hasattr(self, "_speech_encoder"):
            del self._speech_encoder

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
        num = self._speech_encoder.count_codes(num_samples, rate)
        if num > self._max_tokens:
            raise ValueError(
                f"the turn would hold {num_samples / rate:.1f} s of sound, {num} tokens, and a prompt has at most "
                f"{self._max_tokens}: end it, or load the model with a larger max_model_len"
            )

    def block_len(self, rate: int) -> int:
        """Samples at `rate` Hz of a block of the speech encoder."""
        return self._speech_encoder.block_len(rate)

    def wake(self, turn: UserAudio) -> None:
        """Have the thread look at a turn. The lock is held."""
        self._waiting[turn] = None
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
        finally:
            with self.lock:
                if self._is_closing:
                    self._free()

    def _stop(self, error: Exception) -> None:
        with self.lock:
            for turn in self._open:
                turn.fail(error)
                turn.forget_sound()
            self._open.clear()
            self._waiting.clear()

    def _next_batch(self) -> list[UserAudio]:
        """Wait for turns with something to do and return all of them; none once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            batch, self._waiting = list(self._waiting), {}
            return [] if self._is_closing else batch

    def _round(self, batch: Sequence[UserAudio]) -> None:
        """Encode about a block of each turn, publish the codes, and settle the turns that are complete."""
        alive = [turn for turn in batch if not turn.is_settled]
        ended = {turn for turn in alive if turn.feed(self.block_len(turn.rate))}
        self._encode(alive)
        for turn in alive:
            self._absorb(turn)
        self._prefetch([turn for turn in batch if turn not in ended or turn.is_dropped])
        with self.lock:
            for turn in ended:
                turn.settle()
            for turn in batch:
                if turn.schedule(self._call_core is not None):
                    self._open.discard(turn)

    def _encode(self, turns: Sequence[UserAudio]) -> None:
        """Encode the full blocks of all streams; when a call fails, stream by stream, to find the one that it
        belongs to.
        """
        try:
            self._speech_encoder.step([turn.stream for turn in turns])
        except Exception:
            for turn in turns:
                with turn.owning_failures():
                    self._speech_encoder.step([turn.stream])

    def _absorb(self, turn: UserAudio) -> None:
        """Take a turn's new codes and count them."""
        if turn.is_settled:
            return
        made = turn.absorb()
        late = made.late_tokens
        for name, number in (
            ("encoded_late", late),
            ("encoded_ahead", made.encoded_tokens - late),
            ("encoded_again", made.recomputed_tokens),
        ):
            if number:
                self._count(name, number)

    def _prefetch(self, turns: Sequence[UserAudio]) -> None:
        """Pass the changed codes of all turns to the core, in one call."""
        news = [turn for turn in turns if turn.has_news]

        def publish_all(core: Prefetcher) -> None:
            for turn in news:
                turn.publish(core)

        if news and self._call_core is not None:
            with suppress(ValueError, EngineDead):  # the engine is closed or dead, as replies will say
                self._call_core(publish_all)
