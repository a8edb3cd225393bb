"""A speech output whose work is queued on a CUDA stream of its own: it neither waits for a decode step nor holds one up.

No tensor crosses: codes come as integers, samples leave as arrays, and the streaming state belongs to the output. A step may
be launched and collected later, once an event behind it says that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from innervoice.codec.slot_output import SlotOutput
from innervoice.codec.speech_codec import Ready, SpeechCall, SpeechOutput, SpokenChunk


class Mark(Protocol):
    """A point of a stream, as torch.cuda.Event is one."""

    def query(self) -> bool:
        """Whether the device has come to it."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this point to another, when the device has come to both."""
        ...


class OwnStream:
    """A SpeechOutput whose calls run `within` a stream: a function that makes the context of a call.

    mark: an event of the current stream, behind what is queued on it.
    """

    def __init__(
        self,
        output: SpeechOutput,
        within: Callable[[], AbstractContextManager[object]],
        mark: Callable[[], Mark],
    ) -> None:
        self._output = output
        self._within = within
        self._mark = mark

    @property
    def sample_rate(self) -> int:
        """Samples a second of the sound."""
        return self._output.sample_rate

    @property
    def codes_per_s(self) -> float:
        """Speech codes a second of sound."""
        return self._output.codes_per_s

    @property
    def codes_per_frame(self) -> int:
        """The number of codebooks."""
        return self._output.codes_per_frame

    @property
    def lag_s(self) -> float:
        """Seconds of sound by which a reply may be shorter than its codes."""
        return self._output.lag_s

    @property
    def num_slots(self) -> int:
        """Replies that may be open at once."""
        return self._output.num_slots

    @property
    def num_open(self) -> int:
        """Replies that hold a slot."""
        return self._output.num_open

    @property
    def errors(self) -> Mapping[str, str]:
        """The broken replies that are still open, each with a sentence of explanation."""
        return self._output.errors

    def next_border(self, num_codes: int) -> int | None:
        """The number of codes that completes a reply's next chunk."""
        return self._output.next_border(num_codes)

    def open(self, key: str) -> None:
        """Begin a reply. Raises ValueError when the key is in use or all slots are taken."""
        with self._within():
            self._output.open(key)

    def push(self, key: str, codes: Sequence[int]) -> None:
        """Append speech codes to a reply. Raises ValueError as the output does."""
        with self._within():
            self._output.push(key, codes)

    def tick(self, key: str) -> None:
        """Note that the reply went on by a token that is not speech."""
        self._output.tick(key)

    def finish(self, key: str) -> None:
        """End a reply's codes. Raises ValueError for an unknown or finished key."""
        self._output.finish(key)

    def ready(self) -> list[Ready]:
        """The replies for which a step would do something."""
        return self._output.ready()

    def ended(self) -> list[str]:
        """Finished replies of which no step will make a last chunk."""
        return self._output.ended()

    def step(self, keys: Collection[str] | None = None) -> Sequence[SpokenChunk]:
        """Decode all that is ready. Raises ValueError for an unknown key."""
        with self._within():
            return self._output.step(keys)

    def launch(self, keys: Collection[str] | None = None) -> SpeechCall:
        """Begin a step, and wait for nothing that an output over slots can collect later.

        Raises ValueError for an unknown key.
        """
        with self._within():
            begun = self._mark()
            if isinstance(self._output, SlotOutput):
                chunks: Callable[[], Sequence[SpokenChunk]] = self._output.begin_step(keys)
            else:
                made = self._output.step(keys)
                chunks = lambda: made  # noqa: E731
            ended = self._mark()
        return SpeechCall(ended.query, chunks, lambda: begun.elapsed_time(ended) / 1e3)

    def close(self, key: str) -> None:
        """Forget a reply. Raises ValueError for an unknown key."""
        with self._within():
            self._output.close(key)
