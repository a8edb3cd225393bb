"""A speech output over a slot table: what every implementation of `SpeechOutput` does alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch

from innervoice.codec.slot_table import SlotSession, SlotTable
from innervoice.codec.speech_codec import Ready, SpeechFormat, SpokenChunk
from innervoice.telemetry.trace import Tracer


@dataclass(kw_only=True)
class SpokenReply(SlotSession, ABC):
    """A reply that an output speaks."""

    key: str

    @abstractmethod
    def push(self, codes: Sequence[int]) -> None:
        """Take codes in, which are in range."""

    def tick(self) -> None:
        """Note that a token came that is not speech."""

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Codes that no step has decoded."""


_Reply = TypeVar("_Reply", bound=SpokenReply)


class SlotOutput(ABC, Generic[_Reply]):
    """Replies in slots. A subclass begins them, says which are due, and makes their sound."""

    def __init__(self, form: SpeechFormat, num_slots: int, tracer: Tracer | None = None) -> None:
        self.sample_rate = form.sample_rate
        self.codes_per_s = form.codes_per_s
        self.codes_per_frame = form.codes_per_frame
        self.lag_s = form.lag_s
        self.num_slots = num_slots
        self.table = SlotTable[str, _Reply]("voice", num_slots)
        self._num_codes = form.num_codes
        self._tracer = tracer or Tracer()

    @property
    def num_open(self) -> int:
        """Replies that hold a slot."""
        return len(self.table)

    @property
    def errors(self) -> Mapping[str, str]:
        """The broken replies that are still open, each with a sentence of explanation."""
        return self.table.errors

    def open(self, key: str) -> None:
        """Begin a reply. Raises ValueError when the key is in use or all slots are taken."""
        self.table.refuse_open(key)
        self.table.add(key, self._begin(key, self.table.free_place()))

    def push(self, key: str, codes: Sequence[int]) -> None:
        """Append speech codes to a reply.

        Raises ValueError: key unknown, finished or broken, code out of range.
        """
        self.table.unfinished(key).push(check_codes(codes, self._num_codes))

    def tick(self, key: str) -> None:
        """Note that a token came that is not speech.

        Raises ValueError for a key that is unknown, finished or broken.
        """
        self.table.unfinished(key).tick()

    def finish(self, key: str) -> None:
        """End a reply's codes. Raises ValueError for a key that is unknown, finished or broken."""
        self.table.unfinished(key).is_finished = True

    def ready(self) -> list[Ready]:
        """The replies for which a step would do something, in the order they were opened in."""
        return [Ready(r.key, r.num_waiting) for r in self.table.sessions if self._is_due(r)]

    def ended(self) -> list[str]:
        """No reply: a step gives each its last chunk."""
        return []

    def step(self, keys: Collection[str] | None = None) -> list[SpokenChunk]:
        """Decode all that is ready, of these replies or of all.

        A step that raises, or whose chunks break the protocol, ends its replies with an entry in `errors`; a
        chunk that cannot be heard ends its own. Raises ValueError for an unknown key, torch.AcceleratorError
        for a lost device.
        """
        return self.begin_step(keys)()

    def begin_step(self, keys: Collection[str] | None = None) -> Callable[[], list[SpokenChunk]]:
        """Begin a step -> what waits for its chunks, once. See `step`; a reply that is closed between has none."""
        replies = self.table.chosen(keys)
        with self._tracer.span("voice step", open=len(self.table)):
            due = [reply for reply in replies if self._is_due(reply)]
            waiting = [reply.num_waiting for reply in due]
            try:
                collect = self._launch(replies)
            except torch.AcceleratorError:
                raise  # a lost device belongs to no reply: it ends the engine
            except Exception as error:
                broken = [self._broke(reply, error) for reply in due]
                return lambda: broken
        is_stuck = bool(due) and all(map(self._is_due, due))
        is_stuck = is_stuck and [reply.num_waiting for reply in due] == waiting
        over = [reply for reply in due if reply.is_finished and not self._is_due(reply)]
        return partial(self._collect, collect, replies, due, over, is_stuck)

    def _collect(
        self,
        collect: Callable[[], Iterable[SpokenChunk]],
        replies: list[_Reply],
        due: list[_Reply],
        over: list[_Reply],
        is_stuck: bool,
    ) -> list[SpokenChunk]:
        """The chunks of a step. over: replies that nothing is left of; is_stuck: unless there are chunks."""
        closed = {reply.key for reply in replies if not self.table.holds(reply)}
        due, over = ([reply for reply in some if reply.key not in closed] for some in (due, over))
        try:
            chunks = list(collect())
            names = {reply.key for reply in replies}
            foreign = next((chunk.key for chunk in chunks if chunk.key not in names), None)
            if foreign is not None:
                raise ValueError(f"it made a chunk of {foreign!r}, which is not a reply of this step")
            if is_stuck and not chunks:
                raise ValueError("it did nothing for replies that are ready")
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return [self._broke(reply, error) for reply in due]
        return self._checked([chunk for chunk in chunks if chunk.key not in closed], over)

    def _checked(self, chunks: list[SpokenChunk], ending: list[_Reply]) -> list[SpokenChunk]:
        """The chunks of a step up to the last one of each reply; one that cannot be heard breaks its reply."""
        passed: list[SpokenChunk] = []
        over = set[str]()
        for chunk in chunks:
            reply = self.table.find(chunk.key)
            if chunk.key in over:
                continue
            try:
                made = chunk if chunk.key in self.errors else _audible(chunk, reply)
            except Exception as error:
                made = self._broke(reply, error)
            if made.is_last:
                over.add(chunk.key)
            passed.append(made)

        # A reply that nothing is left of has had its last chunk.
        for reply in ending:
            if reply.key not in over:
                passed.append(self._broke(reply, ValueError("no chunk of it was marked as the last")))
        return passed

    def close(self, key: str) -> None:
        """Forget a reply, finished or not. Raises ValueError for an unknown key."""
        self.table.close(key)

    def _failed(self, reply: _Reply, num_codes: int, error: Exception) -> SpokenChunk:
        """End a reply that broke after so many codes: its last chunk, which is empty."""
        self.table.fail(
            reply.key, f"the reply broke after {num_codes} codes: {error}; close it and start again"
        )
        return SpokenChunk(reply.key, np.zeros(0, np.float32), True)

    def _broke(self, reply: _Reply, error: Exception) -> SpokenChunk:
        """End a reply whose step broke the rules: its last chunk, which is empty."""
        if reply.key not in self.errors:
            what = f"{type(error).__name__}: {error}"
            self.table.fail(reply.key, f"the codec's step broke: {what}; close the reply and start again")
        return SpokenChunk(reply.key, np.zeros(0, np.float32), True)

    @abstractmethod
    def next_border(self, num_codes: int) -> int | None:
        """The number of codes that completes the next chunk; None: no chunk ends before the reply."""

    @abstractmethod
    def _begin(self, key: str, place: int) -> _Reply:
        """A new reply, its slot in the state before the first chunk."""

    @abstractmethod
    def _is_due(self, reply: _Reply) -> bool:
        """Whether a step would do something."""

    def _launch(self, replies: list[_Reply]) -> Callable[[], Iterable[SpokenChunk]]:
        """Begin to decode what is ready in these replies -> what waits for the chunks; here they are made at once."""
        chunks = list(self._step(replies))
        return lambda: chunks

    @abstractmethod
    def _step(self, replies: list[_Reply]) -> Iterable[SpokenChunk]:
        """Decode all that is ready in these replies; those that are not due are passed over."""


def _audible(chunk: SpokenChunk, reply: SpokenReply) -> SpokenChunk:
    """A chunk with samples [n] float32.

    Raises ValueError for another shape, for samples that are no finite numbers, and for a last chunk before
    the codes are over.
    """
    samples = np.asarray(chunk.samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"its samples are {samples.dtype} {list(samples.shape)}, expected [n] float32")
    if not np.isfinite(np.sum(samples)):
        raise ValueError("its samples are not finite")
    if chunk.is_last and not reply.is_finished:
        raise ValueError("a chunk is marked as the last before the reply's codes are over")
    if samples is chunk.samples and samples.dtype == np.float32:
        return chunk
    return SpokenChunk(chunk.key, samples.astype(np.float32), chunk.is_last)


def check_codes(codes: Sequence[int], num_codes: int) -> tuple[int, ...]:
    """The codes as plain integers. Raises ValueError for one that is not from 0 to num_codes - 1."""
    for code in codes:
        if not 0 <= code < num_codes:
            raise ValueError(
                f"speech code {code} is out of range: this decoder knows codes 0 to {num_codes - 1}"
            )
    return tuple(int(code) for code in codes)
