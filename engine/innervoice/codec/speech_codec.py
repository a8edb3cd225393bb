"""The seam of a speech codec that the engine listens and speaks through, and the
output of a model without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples

Streaming = Literal["steady", "offline", "reference"]
"""When sound is made: `steady` in chunks at fixed token indices, `reference` in the chunks of the model's own
demo, `offline` in one piece at the reply's end.
"""

ChunkMode = Literal["reference", "offline"]
"""The modes in which replies are decoded one by one."""


@dataclass(frozen=True)
class SpeechFormat:
    """Size and rates of a codec's codes and sound, in the terms of `SpeechOutput`.

    num_codes: a code is from 0 to num_codes - 1. Raises ValueError for a number out of range.
    """

    num_codes: int
    codes_per_s: float
    sample_rate: int
    codes_per_frame: int = 1
    lag_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_codes", "sample_rate", "codes_per_frame"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} is {value!r}: use a whole number from 1")
        for name, is_positive in (("codes_per_s", True), ("lag_s", False)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf) or (is_positive and value == 0):
                raise ValueError(
                    f"{name} is {value!r}: use a finite number {'above' if is_positive else 'from'} 0"
                )


class Ready(NamedTuple):
    """A reply that a step would decode; pending: its codes that wait for one, none when only
    the end of its sound is left.
    """

    key: str
    pending: int


class SpokenChunk(NamedTuple):
    """Samples [n] float32 that a step made of a reply. is_last: nothing follows; that chunk may be empty."""

    key: str
    samples: Samples
    is_last: bool


class SpeechOutput(Protocol):
    """Speech codes of many replies -> their sound, a chunk at a time.

    Replies are known by a key. Not thread-safe.
    """

    @property
    def sample_rate(self) -> int:
        """Samples a second of the sound."""
        ...

    @property
    def codes_per_s(self) -> float:
        """Speech codes a second of sound, those of all codebooks together."""
        ...

    @property
    def codes_per_frame(self) -> int:
        """Codes that stand for one piece of time together: the number of codebooks,
        whose codes are pushed in turn.
        """
        ...

    @property
    def lag_s(self) -> float:
        """Seconds of sound by which a reply may be shorter than its codes, because
        samples are made in whole frames.
        """
        ...

    @property
    def num_slots(self) -> int:
        """Replies that may be open at once."""
        ...

    @property
    def num_open(self) -> int:
        """Replies that hold a slot."""
        ...

    @property
    def errors(self) -> Mapping[str, str]:
        """The broken replies that are still open, each with a sentence of explanation."""
        ...

    def next_border(self, num_codes: int) -> int | None:
        """The number of codes, above this one, that completes a reply's next chunk; None: no
        chunk ends before the reply.
        """
        ...

    def open(self, key: str) -> None:
        """Begin a reply. Raises ValueError when the key is in use or all slots are taken."""
        ...

    def push(self, key: str, codes: Sequence[int]) -> None:
        """Append speech codes to a reply; none is fine.

        Raises ValueError for a key that is unknown, finished or broken, and for a code out of range.
        """
        ...

    def tick(self, key: str) -> None:
        """Note that the reply went on by a token that is not speech: in `reference`
        mode that closes a full chunk.
        """
        ...

    def finish(self, key: str) -> None:
        """End a reply's codes; the next step decodes the rest.

        Raises ValueError for an unknown or finished key.
        """
        ...

    def ready(self) -> list[Ready]:
        """The replies for which a step would do something, in the order they were opened in."""
        ...

    def ended(self) -> list[str]:
        """Finished replies of which no step will make a last chunk, because they have no sound."""
        ...

    def step(self, keys: Collection[str] | None = None) -> Sequence[SpokenChunk]:
        """Decode all that is ready, each reply's chunks in order. keys: of these replies alone; None: of all.

        A reply that breaks ends with an empty last chunk and an entry in `errors`; the others are not
        touched. Raises ValueError for an unknown key, before anything is decoded.
        """
        ...

    def close(self, key: str) -> None:
        """Forget a reply, finished or not. Raises ValueError for an unknown key."""
        ...


@dataclass(frozen=True)
class SpeechCall:
    """A step of an output whose work is queued on a device.

    is_done: whether its chunks are there. chunks: waits for them and gives them, once. took_s: seconds that the
    device worked for them, after that.
    """

    is_done: Callable[[], bool]
    chunks: Callable[[], Sequence[SpokenChunk]]
    took_s: Callable[[], float]


@runtime_checkable
class LaunchingOutput(Protocol):
    """A speech output whose steps need not be waited for."""

    def launch(self, keys: Collection[str] | None = None) -> SpeechCall:
        """Begin a step of these replies; see `SpeechOutput.step`. A reply that is closed meanwhile has no chunk."""
        ...


class SpeechStream(Protocol):
    """A recording that is encoded while it lasts. Not for two threads at once."""

    @property
    def rate(self) -> int:
        """Samples a second of the frames that are pushed."""
        ...

    @property
    def num_recomputed(self) -> int:
        """Codes that were made again because later sound changed them."""
        ...

    @property
    def num_missing(self) -> int:
        """Samples at `rate` without which nothing more can be encoded."""
        ...

    def push(self, samples: Samples) -> None:
        """Append samples [T] float32. Raises ValueError after the end and for numbers that are not finite."""
        ...

    def end(self) -> None:
        """End the recording: all that is left can be encoded. Raises ValueError for one of 0 samples."""
        ...

    def take(self) -> tuple[int, list[int]]:
        """Encode the complete blocks: (start, codes), from place `start` on the codes that are
        new or differ from those taken.
        """
        ...

    @property
    def num_encoded(self) -> int:
        """Codes that are known without more work."""
        ...

    def shortened(self, kept: Samples) -> SpeechStream:
        """A stream of the first samples [T] alone, as they were pushed; what they complete is not encoded again.

        This stream is not to be used any more.
        """
        ...


class SpeechEncoder(Protocol):
    """Recordings -> speech codes. Any thread may call it."""

    def encode(self, samples: Samples, rate: int) -> list[int]:
        """Codes of a whole recording [T].

        Raises ValueError for no samples, for NaN and for a rate that is none.
        """
        ...

    def stream(self, rate: int) -> SpeechStream:
        """A recording that comes in frames at `rate` Hz. Raises ValueError for a rate that is none."""
        ...

    def step(self, streams: Sequence[Any]) -> None:
        """Encode the complete blocks of these streams, in few calls; `take` then has it at no cost."""
        ...

    def count_codes(self, num_samples: int, rate: int) -> int:
        """The number of codes that so many samples at `rate` Hz make."""
        ...

    def block_len(self, rate: int) -> int:
        """Samples at `rate` Hz that are encoded at once while a recording lasts."""
        ...


@dataclass(frozen=True)
class CodecLoad:
    """The settings with which a codec's weights are loaded.

    dtype: by name. load_format "dummy": random weights. noise: of the vocoder.
    """

    device: str
    dtype: str
    load_format: str = "auto"
    noise: bool = True
    tracer: Tracer = field(default_factory=Tracer)


class SpeechCodec(Protocol):
    """The codec of a checkpoint, known from its config files.

    A subclass that lacks a half says nothing of it.
    """

    @property
    def num_codes(self) -> int:
        """A speech code is from 0 to num_codes - 1."""
        ...

    def encoder_bytes(self, dtype: str) -> int:
        """Bytes of the encoder's weights in that dtype, 0 without an encoder."""
        return 0

    def output_bytes(self, dtype: str) -> int:
        """Bytes of the decoder's weights in that dtype, 0 without a decoder."""
        return 0

    def slot_bytes(self, dtype: str, streaming: object) -> int:
        """Bytes that the output keeps of each reply.

        streaming: the engine's option; 0 where that keeps none.
        """
        return 0

    def load_encoder(self, how: CodecLoad) -> SpeechEncoder | None:
        """The encoder, None without one. Raises FileNotFoundError, ValueError."""
        return None

    def load_output(self, how: CodecLoad, streaming: object, num_slots: int) -> SpeechOutput | None:
        """The output of at most num_slots replies, None without a decoder.

        Raises FileNotFoundError, ValueError.
        """
        return None


class NullSpeechOutput:
    """The output of a model that does not speak: replies have no sound, and are over
    as soon as they are finished.

    It has no slots; its rates make any number of speech codes last no time.
    """

    sample_rate = 1
    codes_per_s = math.inf
    codes_per_frame = 1
    lag_s = 0.0
    num_slots = 0
    num_open = 0

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        self._replies: dict[str, bool] = {}  # key -> is it finished?

    def next_border(self, num_codes: int) -> int | None:
        """None: there are no chunks."""
        return None

    def open(self, key: str) -> None:
        """Begin a reply."""
        self._replies[key] = False

    def push(self, key: str, codes: Sequence[int]) -> None:
        """Ignore speech codes."""

    def tick(self, key: str) -> None:
        """Ignore a token that is not speech."""

    def finish(self, key: str) -> None:
        """End a reply: `ended` names it from now on."""
        self._replies[key] = True

    def ready(self) -> list[Ready]:
        """Nothing: there is no sound to make."""
        return []

    def ended(self) -> list[str]:
        """All finished replies, in the order they were opened in."""
        return [key for key, is_finished in self._replies.items() if is_finished]

    def step(self, keys: Collection[str] | None = None) -> list[SpokenChunk]:
        """An empty last chunk of every finished reply that is named."""
        silence = np.zeros(0, np.float32)
        return [SpokenChunk(key, silence, True) for key in self.ended() if keys is None or key in keys]

    def close(self, key: str) -> None:
        """Forget a reply."""
        del self._replies[key]


def rehearse(output: SpeechOutput, num: int, key: str, num_chunks: int = 8) -> None:
    """Speak `num` replies that mean nothing, in steps that they share: first chunk, later ones, the end in the midst
    of one. Then forget them.

    key, and errors, as for `try_out`. A reply that breaks is passed over.
    """
    keys = [f"{key}-{i}" for i in range(num)]
    for one in keys:
        output.open(one)
    try:
        said = 0
        for _ in range(num_chunks):
            border = output.next_border(said) or said + 1
            _say(output, keys, border - said)
            said = border
        _say(output, keys, output.codes_per_frame)
        for one in keys:
            if one not in output.errors:
                output.finish(one)
        _step_ready(output, keys)
    finally:
        for one in keys:
            output.close(one)


def _say(output: SpeechOutput, keys: Sequence[str], num_codes: int) -> None:
    for one in keys:
        if one not in output.errors:
            output.push(one, [0] * num_codes)
    _step_ready(output, keys)


def _step_ready(output: SpeechOutput, keys: Sequence[str]) -> None:
    ready = [one.key for one in output.ready() if one.key in keys]
    if ready:
        output.step(ready)


def try_out(output: SpeechOutput, num: int, key: str) -> None:
    """Make the first chunk of `num` replies that mean nothing, in one step, and forget
    them, to learn what it takes.

    key: what their keys begin with, and no other reply's does. Raises ValueError when
    there are not so many slots.
    """
    keys = [f"{key}-{i}" for i in range(num)]
    for one in keys:
        output.open(one)
        output.push(one, [0] * (output.next_border(0) or 1))
    try:
        output.step(keys)
    finally:
        for one in keys:
            output.close(one)
